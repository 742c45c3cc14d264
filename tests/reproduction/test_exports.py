"""Each network of the paper's tables, as an ONNX file that agrees with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iformer.deploy.export import export_artifact
from iformer.models.factory import build
from iformer.tasks.export import exportable
from iformer_paper.ablations import every_network
from tiny.networks import randomize

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NETWORKS = every_network()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_artifact_is_the_network(name: str, tmp_path: Path) -> None:
    """`export_artifact` keeps nothing that does not agree; what it measured is looked at all the same."""
    model: Any = build(NETWORKS[name].with_options(num_classes=3))
    randomize(model)
    info = export_artifact(exportable(model.eval()), tmp_path / "network.onnx", "onnx", size=(64, 64))
    assert info.status == "run here"
    assert info.parity is not None
    assert info.parity["max_relative_error"] < 1e-3
    assert info.parity["images"] >= 3
