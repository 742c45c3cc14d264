"""The fields of config dataclasses as a table, for the help of the command line and for the docs."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iformer.config.checking import describe, field_types, is_config, without_range


@dataclass(frozen=True, kw_only=True)
class FieldRow:
    """One field of a recipe."""

    name: str
    """Name of the field with the section as prefix: `augment.hflip`."""
    hint: Any
    """Annotation of the field, including ranges."""
    type: str
    """`int`, `float`, `bool`, `str`, `list` or several of them: `float | null`."""
    default: str
    """The default as JSON, which is YAML; empty: the field must be given."""
    allowed: str
    """Description of the allowed values."""
    doc: str
    """Docstring of the field on one line."""

    @property
    def summary(self) -> str:
        """The first sentence of `doc`, without the full stop."""
        return self.doc.split(". ")[0].rstrip(".")


def recipe_fields(cls: type[Any]) -> list[FieldRow]:
    """Return the fields of a config dataclass, such as a recipe. Fields of a section have its name as prefix.

    `doc` is the field's attribute docstring in the source file, empty if there is none.
    """
    return list(_rows(cls, ""))


def _rows(cls: type[Any], prefix: str) -> Iterator[FieldRow]:
    docs = _field_docs(cls)
    hints = field_types(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if is_config(hint):
            yield from _rows(hint, f"{prefix}{field.name}.")
            continue
        yield FieldRow(
            name=prefix + field.name,
            hint=hint,
            type=_type_name(hint),
            default="" if field.default is dataclasses.MISSING else json.dumps(field.default),
            allowed=describe(hint),
            doc=docs.get(field.name, ""),
        )


def _type_name(hint: Any) -> str:
    hint = without_range(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type_name(arg) for arg in args))
    if origin is typing.Literal:
        return " | ".join(dict.fromkeys(type(arg).__name__ for arg in args))
    if hint is type(None):
        return "null"
    return "list" if origin is tuple else getattr(origin or hint, "__name__", str(hint))


@functools.cache
def _module_docs(path: str) -> dict[str, dict[str, str]]:
    """Return the attribute docstrings of a source file: class name -> field name -> text on one line."""
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except OSError:  # only compiled files are installed
        return {}
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {
                field.target.id: inspect.cleandoc(text.value.value).replace("\n", " ")
                for field, text in zip(node.body, node.body[1:], strict=False)
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return found


def _field_docs(cls: type[Any]) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _module_docs(inspect.getfile(base)).get(base.__name__, {})
    return docs
