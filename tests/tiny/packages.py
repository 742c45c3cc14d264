"""Optional packages of a module's tests."""

import importlib.util

import pytest


def need_packages(*names: str) -> None:
    """Skip the module that calls this unless the packages are installed, without importing them.

    Each process of a test run collects all modules, and some packages take seconds to import.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)
