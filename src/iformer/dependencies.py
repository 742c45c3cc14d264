"""Import optional packages where they are needed. Missing packages are reported, never installed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iformer.errors import MissingDependencyError, one_line


def require(module: str, *, extra: str) -> Any:
    """Import an optional module and return it.

    Args:
        module: full name of the module.
        extra: extra of this package that installs the module, for the error message.

    Raises:
        MissingDependencyError: the module is not installed, or its import fails, for example because of a missing
            shared library or an invalid environment variable.
    """
    name = module.partition(".")[0]
    try:
        with without_telemetry():
            return importlib.import_module(module)
    except Exception as error:  # importing a module can raise anything
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and module.startswith(error.name.partition(".")[0])
        ):
            raise MissingDependencyError(f"{name} is not installed; run: pip install 'iformer[{extra}]'") from None
        remedy = "install it again, or check the environment variables that it reads"
        if isinstance(error, ModuleNotFoundError):
            remedy = f"run: pip install 'iformer[{extra}]'"
        raise MissingDependencyError(f"{name} cannot be imported ({one_line(error)}); {remedy}") from error


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep OpenVINO's converter and NNCF from sending usage data while the block runs.

    By default both send usage data, except in continuous integration, so the environment variables `CI` and
    `NNCF_CI` are set. Sending also takes place in forked processes, which can hang if other libraries run threads.
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
