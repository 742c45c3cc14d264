"""Config dataclasses: checked when they are built, converted to and from plain data.

The type and the range of a field stand in its annotation: `epochs: Annotated[int, Range(1, 100_000)]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

from iformer.errors import ConfigError, UserError
from iformer.plain_values import check_text, plain

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Range:
    """Bounds of a number. Both belong to the range unless `above` or `below` says that they do not."""

    least: float
    most: float
    above: bool = False
    """Whether `least` itself is outside the range."""
    below: bool = False
    """Whether `most` itself is outside the range."""
    step: int = 1
    """Distance between allowed numbers, counted from `least`; 1 allows every number between the bounds."""

    def allows(self, value: float) -> bool:
        """Return whether a number is in the range."""
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and (self.step == 1 or (value - self.least) % self.step == 0)

    def describe(self, kind: str) -> str:
        """Return a description of the range, such as "a number from 0 to 1", where `kind` is "a number"."""
        if self.most == math.inf:
            return f"{self.least} or more"
        if self.step == 2:
            kind = "an odd whole number" if self.least % 2 else "an even whole number"
        elif self.step > 1:
            kind = f"a multiple of {self.step}"
        low = f"above {self.least}" if self.above else f"from {self.least}"
        high = ("and " if self.above else "to ") + f"below {self.most}" if self.below else f"to {self.most}"
        return f"{kind} {low}{',' if self.above and not self.below else ''} {high}"


@dataclass(frozen=True)
class Length:
    """Bounds of the length of a text or tuple."""

    least: int
    most: int

    def allows(self, value: str | tuple[Any, ...]) -> bool:
        """Return whether the length of a value is in the bounds."""
        return self.least <= len(value) <= self.most

    def describe(self, kind: str) -> str:
        """Return a description such as "a text (length 1 to 9)", where `kind` is "a text"."""
        return f"{kind} (length {self.least} to {self.most})"


@dataclass(frozen=True)
class Pattern:
    """A regular expression that a whole text has to match."""

    pattern: str
    example: str

    def allows(self, value: str) -> bool:
        """Return whether a text has fewer than 200 characters and matches the pattern as a whole."""
        return len(value) < 200 and re.fullmatch(self.pattern, value) is not None

    def describe(self, kind: str) -> str:
        """Return a description such as 'a text such as "rand-m9"', where `kind` is "a text"."""
        return f'{kind} such as "{self.example}"'


Share = Annotated[float, Range(0, 1)]
"""A number from 0 to 1: a probability or a part of a whole."""
Count = Annotated[int, Range(1, math.inf)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
Text = Annotated[str, Length(1, 4096)]
"""A name or a path of 1 to 4096 characters."""
FileName = Annotated[str, Length(1, 4096)] | os.PathLike[str]
"""A function argument that names a file or a network: a text of 1 to 4096 characters, or a path object."""


class FieldError(ConfigError):
    """A field of a config is invalid. The message names the field, its value and what is allowed."""

    def __init__(self, owner: str, field: str, value: Any, expected: str) -> None:
        """Build the message. `owner` is the label of the config, or its path inside another config."""
        self.owner, self.field, self.value, self.expected = owner, field, value, expected
        super().__init__(f"{owner}.{field} is {shown(value)}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the config dataclasses."""

    label: ClassVar[str] = ""
    """Name of the config in error messages. Empty: the name of the class."""

    def __post_init__(self) -> None:
        for name in field_types(type(self)):
            object.__setattr__(self, name, plain(getattr(self, name)))  # frozen
        check_types(self)

    def to_plain(self) -> dict[str, Any]:
        """Return nested dicts and lists for YAML, JSON and checkpoint metadata."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Build a config from nested dicts and lists: the inverse of `to_plain`.

        Raises:
            ConfigError: a field is unknown, missing or invalid; the message names the field.
        """
        return from_plain(cls, plain)


def check(condition: bool, config: object, field: str, expected: str) -> None:
    """Raise `FieldError` for a field of `config` unless `condition` holds."""
    if not condition:
        raise FieldError(label_of(type(config)), field, getattr(config, field), expected)


def check_types(config: Any) -> None:
    """Check each field of a config dataclass against the type and the range of its annotation.

    An int is accepted where a float is expected. A bool or a text is never accepted as a number.

    Raises:
        FieldError: a value has the wrong type or is out of range; the message names the first such field.
    """
    for name, hint in field_types(type(config)).items():
        if not _fits(getattr(config, name), hint):
            check(False, config, name, describe(hint))


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check arguments against the types and ranges of a function's annotations.

    Args:
        function: the function whose annotations are checked.
        arguments: arguments by name, such as `locals()` in the first line of the function.

    Raises:
        UserError: an argument has the wrong type, is out of range or has a NUL character; the message names it.
    """
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name not in arguments:
            continue
        given = arguments[name]
        if isinstance(given, str | os.PathLike):
            check_text(name, os.fspath(given))
        if hint is Any or _fits(given, hint):
            continue
        if type(None) in typing.get_args(hint):
            hint = functools.reduce(operator.or_, (arg for arg in typing.get_args(hint) if arg is not type(None)))
        kind = without_range(hint)
        short = given is None or isinstance(given, int | float | bytes | Sequence | Mapping)
        text = shown(given) if short else f"of type {type(given).__name__}"
        raise UserError(f"{name} is {text}; expected {describe(hint if _fits(given, kind) else kind)}")


def to_plain(config: Any) -> dict[str, Any]:
    """Return a config dataclass as nested dicts and lists that YAML and JSON can hold."""
    return {field.name: _plain_value(getattr(config, field.name)) for field in dataclasses.fields(config)}


def plain_defaults(cls: type[Any]) -> dict[str, Any]:
    """Return the defaults of a config dataclass as plain values; fields without a default are left out."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return {name: _plain_value(value) for name, value in defaults.items() if value is not dataclasses.MISSING}


def short_repr(value: Any) -> str:
    """Return the `repr` of a dataclass without the fields that are None or have their default value."""
    shown = []
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.repr and found is not None and found != default:
            shown.append(f"{field.name}={found!r}")
    return f"{type(value).__name__}({', '.join(shown)})"


def from_plain(cls: type[ConfigT], plain: Mapping[str, Any], path: str = "") -> ConfigT:
    """Build a config dataclass from nested dicts and lists.

    Args:
        path: where `plain` is inside another config, for error messages: "NetworkConfig.stages[2]".

    Raises:
        ConfigError: a field is unknown, missing or invalid; the message names its path.
    """
    path = path or label_of(cls)
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{path} is {shown(plain)}; expected a mapping of its fields")
    hints = field_types(cls)
    for name in plain:
        if name not in hints:
            raise unknown_field(path, name, hints)
    missing = [
        field.name
        for field in dataclasses.fields(typing.cast(Any, cls))
        if field.name not in plain
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{path} needs {', '.join(missing)}")
    values = {name: _typed_value(value, hints[name], f"{path}.{name}") for name, value in plain.items()}
    try:
        return cls(**values)
    except FieldError as error:
        raise FieldError(path, error.field, error.value, error.expected) from None


def unknown_field(
    path: str,
    name: object,
    known: typing.Iterable[str],
    *,
    options: Mapping[str, str] = types.MappingProxyType({}),
    listed_by: str = "",
) -> ConfigError:
    """Return the error for a field that does not exist; the message suggests the nearest names.

    Args:
        path: label or path of the config.
        name: the unknown name.
        known: names of the fields.
        options: settings that are given in another way, each with a text that says how.
        listed_by: command that lists the fields. Empty: if no name is near, the message lists them.
    """
    known, spelled = sorted(known), str(name)[:100].replace("-", "_")
    names = ", ".join(known)
    error = f"{path} has no field {shown(name)}"
    if spelled in options:
        return ConfigError(f"{error}; it is an option and not a field: {options[spelled]}")
    nearest = [spelled] if spelled in known else []
    nearest = nearest or difflib.get_close_matches(spelled, [*known, *options], cutoff=0.6 if listed_by else 0.4)
    hints = [f"did you mean {' or '.join(options.get(near, near) for near in nearest)}?"] if nearest else []
    if listed_by:
        hints.append(f"{listed_by} lists all fields")
    return ConfigError(f"{error}; {' '.join(hints) or f'its fields are {names}'}")


def label_of(cls: type[Any]) -> str:
    """Return the name of a config dataclass in error messages."""
    return getattr(cls, "label", "") or cls.__name__


_FIELD_TYPES: dict[type[Any], dict[str, Any]] = {}


def field_types(cls: type[Any]) -> dict[str, Any]:
    """Return each field of a dataclass with its resolved annotation, ranges included."""
    if cls not in _FIELD_TYPES:
        hints = typing.get_type_hints(cls, include_extras=True)
        _FIELD_TYPES[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return _FIELD_TYPES[cls]


def is_config(hint: Any) -> bool:
    """Return whether an annotation is a config dataclass."""
    return isinstance(hint, type) and issubclass(hint, Config)


def without_range(hint: Any) -> Any:
    """Return the type of an annotation without its ranges, also within a union."""
    if typing.get_origin(hint) is Annotated:
        return typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(without_range, typing.get_args(hint)))
    return hint


def shown(value: Any) -> str:
    """Return `repr(value)`, shortened to at most about 160 characters."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to print very long integers
        return f"a {type(value).__name__} that is too long to print"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 160


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    return value


def _typed_value(value: Any, hint: Any, path: str) -> Any:
    """Turn lists into tuples, mappings into configs and texts into numbers, as the annotation requires."""
    hint = without_range(hint)
    if hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-6, without a dot, as a text
        except ValueError:
            return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        return value if value is None or len(inner) > 1 else _typed_value(value, inner[0], path)
    if origin is dict and isinstance(value, Mapping):
        return {key: _typed_value(item, args[1], f"{path}[{key}]") for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_plain(typing.cast(type[Any], hint), value, path)
    if origin is tuple and isinstance(value, list | tuple):
        item_hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(item_hints) != len(value):
            return tuple(value)  # check_types reports the length
        return tuple(
            _typed_value(item, item_hint, f"{path}[{index}]")
            for index, (item, item_hint) in enumerate(zip(value, item_hints, strict=True))
        )
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _fits(value, args[0]) and all(rule.allows(value) for rule in args[1:])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return len(items) == len(value) and all(_fits(v, a) for v, a in zip(value, items, strict=True))
    if origin is Sequence:
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return is_list and all(_fits(item, args[0]) for item in value)
    if origin is dict or origin is Mapping:
        return isinstance(value, origin) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if isinstance(origin, type):  # such as os.PathLike and Callable
        return isinstance(value, origin)
    if hint is int or hint is float:
        is_number = isinstance(value, int | hint) and not isinstance(value, bool)
        return is_number and (isinstance(value, int) or math.isfinite(value))
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """Return a description of the values that a type annotation allows, such as "a whole number from 1 to 100"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return functools.reduce(lambda kind, rule: rule.describe(kind), args[1:], describe(args[0]))
    if origin is typing.Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(repr(arg) for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in sorted(args, key=lambda arg: arg is not type(None)))
    if hint is type(None):
        return "null"
    if origin is tuple:
        items = list(dict.fromkeys(describe(arg) for arg in args if arg is not Ellipsis))
        count = "any number of" if args[-1] is Ellipsis else len(args)
        return f"{count} values, each {items[0]}" if len(items) == 1 else f"{count} values: {', '.join(items)}"
    if dataclasses.is_dataclass(hint):
        return f"the fields of {typing.cast(type, hint).__name__}"
    if origin is Sequence or origin is Iterable:
        return "a list of texts" if args == (str,) else "a list"
    if origin is dict or origin is Mapping:
        return "a mapping"
    if origin is os.PathLike:
        return "a path"
    if origin is Callable:
        return "a function"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
