"""Checks shared by the config dataclasses, and strict conversion from and to plain data."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from iformer.errors import ConfigError

ConfigT = TypeVar("ConfigT")


def check(condition: bool, config: object, field: str, expected: str) -> None:
    """Raise `ConfigError` naming `config`'s field, its value and what it may be, unless `condition` holds."""
    if not condition:
        value = getattr(config, field)
        raise ConfigError(f"{type(config).__name__}.{field} is {value!r}; expected {expected}")


def check_types(config: Any) -> None:
    """Check each field of a config dataclass against its annotation, so that `"4"` is not taken for 4.

    An int is accepted where a float is expected, a bool is not accepted where a number is.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        if not _fits(getattr(config, field.name), hints[field.name]):
            check(False, config, field.name, _describe(hints[field.name]))


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as nested dicts and lists that YAML and JSON can hold."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        plain[field.name] = _plain_value(getattr(config, field.name))
    return plain


def plain_defaults(cls: type[Any]) -> dict[str, Any]:
    """As `to_plain`, the fields of a config dataclass that have a default, as they are by default."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return {name: _plain_value(value) for name, value in defaults.items() if value is not dataclasses.MISSING}


def from_plain(cls: type[ConfigT], plain: Mapping[str, Any]) -> ConfigT:
    """Build a config dataclass from nested dicts and lists; an unknown or missing field is a `ConfigError`."""
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{cls.__name__} is {plain!r}; expected a mapping of its fields")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    unknown = sorted(str(key) for key in plain if key not in fields)
    if unknown:
        raise ConfigError(
            f"{cls.__name__} has no field {', '.join(unknown)}; its fields are {', '.join(sorted(fields))}"
        )
    hints = typing.get_type_hints(cls)
    values = {name: _typed_value(value, hints[name]) for name, value in plain.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}")
    return cls(**values)


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    return value


def _typed_value(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return _typed_value(value, inner[0]) if len(inner) == 1 else value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_plain(typing.cast(type[Any], hint), value)
    if origin is tuple and isinstance(value, list | tuple):
        args = typing.get_args(hint)
        item_hints = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(item_hints) != len(value):
            return tuple(value)  # the wrong length is reported by check_types, with the field's name
        return tuple(_typed_value(item, item_hint) for item, item_hint in zip(value, item_hints, strict=True))
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in typing.get_args(hint))
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in typing.get_args(hint))
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(args) == len(value) and all(_fits(v, a) for v, a in zip(value, args, strict=True))
    if origin is dict:
        key_hint, value_hint = typing.get_args(hint)
        return isinstance(value, dict) and all(
            _fits(k, key_hint) and _fits(v, value_hint) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(arg) for arg in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in typing.get_args(hint))
    if hint is type(None):
        return "nothing"
    if origin is tuple:
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a tuple of {_describe(args[0])}"
        return f"{len(args)} values: " + ", ".join(_describe(arg) for arg in args)
    if origin is dict:
        return "a mapping"
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
