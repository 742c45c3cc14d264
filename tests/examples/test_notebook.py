"""The notebook: its text is a notebook, and it runs from top to bottom in a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny.pages import ROOT

NOTEBOOK = ROOT / "examples/notebooks/photographs.py"
SMALL = """
folder, step = Path("notebook"), 40
settings = {"weights": "none", "epochs": 1, "size": 32, "batch_size": 16, "workers": 0, "tensorboard": False}
export_settings = {"calibration_images": 4, "max_drop": 100.0}
"""


def test_the_notebook_is_one() -> None:
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(NOTEBOOK)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("code") >= 8
    assert kinds[0] == "markdown"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, "cell", "exec")
    assert [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


@pytest.mark.sweep
def test_the_notebook_runs_and_draws(tmp_path: Path) -> None:
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    pytest.importorskip("elpv_dataset")
    notebook = jupytext.read(NOTEBOOK)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = SMALL
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    text = "".join(output.get("text", "") for output in outputs)
    assert "epoch 1/1" in text  # progress shows in the notebook
    assert "last_int8.onnx" in text or "run_int8.onnx" in text
    assert (tmp_path / "notebook/run/report.md").is_file()
