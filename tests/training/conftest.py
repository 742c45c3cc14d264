"""Tiny runs for the training tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

TINY_RUN = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny_run`, which is a program too."""
    spec = importlib.util.spec_from_file_location("tiny_run", TINY_RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def images(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 images to train on and 12 to validate, of three classes."""
    folder: Path = tiny.make_images(tmp_path_factory.mktemp("images"))
    return folder


@pytest.fixture(scope="session")
def many_images(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 192 images to train on: three batches of 64."""
    folder: Path = tiny.make_images(tmp_path_factory.mktemp("many"), 64)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
