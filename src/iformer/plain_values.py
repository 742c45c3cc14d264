"""Numbers, flags and texts of NumPy and torch as Python's own, which type checks, YAML and JSON know."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from iformer.errors import UserError

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")

_LEVELS = 4
"""Levels of lists, tuples and dicts in which values are converted. A list may hold itself."""


def plain(value: Any, *, levels: int = _LEVELS) -> Any:
    """Return a scalar of NumPy or torch as a value of Python, also inside lists, tuples and dicts.

    Other values are returned as they are.
    """
    convert = functools.partial(plain, levels=levels - 1)
    if levels and type(value) in (list, tuple):
        return type(value)(map(convert, value))
    if levels and type(value) is dict:
        return {convert(key): convert(item) for key, item in value.items()}
    is_scalar = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return value.item() if is_scalar else value


def plain_arguments(function: Callable[ParametersT, ResultT]) -> Callable[ParametersT, ResultT]:
    """Decorate a function so that it gets its arguments as `plain` returns them."""

    @functools.wraps(function)
    def wrapper(*args: ParametersT.args, **kwargs: ParametersT.kwargs) -> ResultT:
        return function(*map(plain, args), **plain(kwargs))

    return wrapper


def check_text(name: str, text: str | bytes) -> None:
    """Raise `UserError` if a text has a NUL character, which no name of a file has."""
    if "\0" in os.fsdecode(text):
        raise UserError(f"{name} is {text[:160]!r}; expected a text without NUL characters")
