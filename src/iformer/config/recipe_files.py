"""Recipe files: YAML with the fields of a `Recipe`. The files in `config/recipes` are known by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from iformer.config.checking import shown
from iformer.errors import ConfigError, UnknownNameError
from iformer.safe_yaml import MAX_BYTES, parse_yaml, read_yaml


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def read_recipe(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Read the fields of a recipe; names and values are not checked.

    Args:
        name_or_path: a name (see `list_recipes`) or a file.

    Returns:
        The fields, and the mapping `by_model`: name of a network -> fields that replace the others for it.

    Raises:
        UnknownNameError: no recipe or file has this name; the message suggests the nearest names.
        ConfigError: a `.yaml` or `.yml` file does not exist, the file is not a YAML mapping, or its `by_model` is
            invalid.
    """
    name = str(name_or_path)
    if name in list_recipes():
        path = _folder() / f"{name}.yaml"
    elif os.path.isfile(name):
        path = Path(name)
    elif Path(name).suffix in (".yaml", ".yml"):
        raise ConfigError(f"recipe {name}: no such file")
    else:
        raise UnknownNameError("recipe", name, list_recipes())
    fields = read_yaml(path, f"recipe {name}")
    if not isinstance(fields, dict):
        raise ConfigError(f"recipe {name} is {shown(fields)}; expected a mapping of fields to values")
    by_model = fields.pop("by_model", {})
    if not isinstance(by_model, dict) or not all(isinstance(own, dict) for own in by_model.values()):
        raise ConfigError(
            f"recipe {name}: by_model is {shown(by_model)}; expected a mapping of networks to fields"
        )
    return fields, by_model


def parse_override(text: str) -> tuple[str, Any]:
    """Parse the `field=value` of a command line into the field's name and its value, which is YAML.

    Raises:
        ConfigError: there is no `=` or no name, or the value is too long or not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or len(value) > MAX_BYTES:
        raise ConfigError(f"--set {shown(text)}: expected field=value")
    return name.strip(), parse_yaml(value, f"--set {name.strip()}: {shown(value)}")


def merge_overrides(assignments: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `--set` assignments and options. Options override `--set`; a later `--set` overrides an earlier one.

    Raises:
        ConfigError: an assignment is invalid; see `parse_override`.
    """
    return {**dict(parse_override(text) for text in assignments), **options}


def _folder() -> Any:
    return resources.files("iformer.config") / "recipes"
