"""Import optional packages where they are needed. Missing packages are reported, never installed."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from iformer.errors import MissingDependencyError, one_line


def require(module: str, *, extra: str) -> Any:
    """Import an optional module and return it.

    Args:
        module: full name of the module.
        extra: extra of this package that installs the module, for the error message.

    Raises:
        MissingDependencyError: the module is not installed, its version does not work with this package, or its
            import fails, for example because of a missing shared library or an invalid environment variable.
    """
    name = module.partition(".")[0]
    remedy = f"run: pip install 'iformer[{extra}]'"
    if (wrong := _wrong_version(name)) is not None:
        raise MissingDependencyError(f"{wrong}; {remedy}")
    try:
        with without_telemetry():
            found = importlib.import_module(module)
    except Exception as error:  # importing a module can raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] == name:
            raise MissingDependencyError(f"{name} is not installed; {remedy}") from None
        if not isinstance(error, ModuleNotFoundError):
            remedy = "install it again, or check the environment variables that it reads"
        raise MissingDependencyError(f"{name} cannot be imported ({one_line(error)}); {remedy}") from error
    folders = list(getattr(found, "__path__", [])) if getattr(found, "__file__", None) is None else []
    if folders and _version(name) is None:  # any folder can be imported
        raise MissingDependencyError(f"{name} is not installed ({folders[0]} is a folder of its name); {remedy}")
    return found


def _version(module: str) -> str | None:
    """Return the version of a package; None if it is not installed, or under another name."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache  # masks are read by a function that `require` returns, for each object
def _wrong_version(module: str) -> str | None:
    """Return the installed and the expected version of a package; None if they agree, or one is not known."""
    version = _version(module)
    if version is None or _version("iformer") is None:
        return None
    for needed in map(Requirement, importlib.metadata.requires("iformer") or ()):
        if canonicalize_name(needed.name) == canonicalize_name(module):
            wrong = not needed.specifier.contains(version, prereleases=True)
            return f"{module} {version} is installed; expected {needed.specifier}" if wrong else None
    return None


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
