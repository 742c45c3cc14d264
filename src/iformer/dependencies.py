"""Optional packages: imported where they are needed, never installed by us."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iformer.errors import MissingDependencyError, one_line


def require(module: str, *, extra: str) -> Any:
    """Import an optional module.

    Raises:
        MissingDependencyError: it is not installed, and the message says which extra of iformer brings it; or it
            is installed and cannot be imported, such as without a shared library or with a variable of its own in
            the environment that has no meaning.
    """
    name = module.partition(".")[0]
    try:
        with without_telemetry():
            return importlib.import_module(module)
    except Exception as error:  # whatever the module does when it is imported
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and module.startswith(error.name.partition(".")[0])
        ):
            raise MissingDependencyError(f"{name} is not installed; run: pip install 'iformer[{extra}]'") from None
        raise MissingDependencyError(
            f"{name} cannot be imported ({one_line(error)}); install it again, or check the environment variables "
            "that it reads"
        ) from error


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
