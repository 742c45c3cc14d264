"""The provenance in a checkpoint."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import iformer
from iformer.training.records.provenance import origin


def test_commit_is_that_of_the_checkout_of_the_package() -> None:
    package = Path(iformer.__file__).parent
    git = ["git", "-C", str(package), "rev-parse"]
    root = subprocess.run([*git, "--show-toplevel"], capture_output=True, text=True)
    if root.returncode or Path(root.stdout.strip()) / "src" / "iformer" != package:
        pytest.skip("the package is not in a checkout")
    head = subprocess.run([*git, "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert origin()["commit"] == head
