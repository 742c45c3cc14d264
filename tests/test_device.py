"""Names of devices, on machines with and without an accelerator."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from iformer.device import resolve_device
from iformer.errors import UserError


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> object:
    """Make torch report an accelerator type and its number of devices."""

    def pretend(kind: str | None, count: int = 1) -> None:
        device = None if kind is None else torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: device)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return pretend


def test_auto_takes_the_accelerator_or_the_cpu(accelerator: object) -> None:
    for kind, expected in (("cuda", "cuda"), ("mps", "mps"), (None, "cpu")):
        accelerator(kind)
        assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_is_always_there(name: str) -> None:
    assert resolve_device(name) == torch.device("cpu")


def test_an_index_is_kept_where_the_device_exists(accelerator: object) -> None:
    accelerator("cuda", 2)
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device(torch.device("cuda:1")) == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("kind", "count", "name", "available"),
    [
        (None, 0, "cuda", "cpu"),
        (None, 0, "mps", "cpu"),
        (None, 0, "toaster", "cpu"),
        (None, 0, "cuda:x", "cpu"),
        (None, 0, "meta", "cpu"),
        (None, 0, "", "cpu"),
        ("cuda", 1, "cuda:1", "cpu, cuda, cuda:0"),
        ("cuda", 2, "cuda:2", "cpu, cuda, cuda:0, cuda:1"),
        ("mps", 1, "cuda", "cpu, mps, mps:0"),
    ],
)
def test_an_unavailable_device_is_one_line_that_lists_the_available_ones(
    accelerator: object, kind: str | None, count: int, name: str, available: str
) -> None:
    accelerator(kind, count)
    with pytest.raises(UserError) as caught:
        resolve_device(name)
    assert str(caught.value) == f"device is '{name}'; this machine has {available} (auto takes the best)"


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, iformer.device; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
