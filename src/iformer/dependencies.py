"""Optional packages: imported where they are needed, never installed by us."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iformer.errors import MissingDependencyError


def require(module: str, *, extra: str) -> Any:
    """Import an optional module.

    Raises:
        MissingDependencyError: it is not installed; the message says which extra of iformer brings it.
    """
    try:
        with without_telemetry():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.partition(".")[0]):
            raise
        raise MissingDependencyError(
            f"{module.partition('.')[0]} is not installed; run: pip install 'iformer[{extra}]'"
        ) from None


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep OpenVINO's converter and NNCF from sending usage data, which they do unasked but for automatic builds.

    They also do so in forked processes, which can hang where other libraries run threads.
    """
    names = ("CI", "NNCF_CI")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "true"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
