"""Optional packages: imported where they are needed, never installed by us."""

from __future__ import annotations

import importlib
from typing import Any

from iformer.errors import MissingDependencyError


def require(module: str, *, extra: str) -> Any:
    """Import an optional module.

    Raises:
        MissingDependencyError: it is not installed; the message says which extra of iformer brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.partition(".")[0]):
            raise
        raise MissingDependencyError(
            f"{module.partition('.')[0]} is not installed; run: pip install 'iformer[{extra}]'"
        ) from None
