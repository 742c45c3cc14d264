"""`iformer quickstart` on the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tiny.command_line import only_line, run


def test_quickstart_says_up_front_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "elpv_dataset" else find(name, *rest)
    )
    code, _, err = run(capsys, "quickstart", "--out", tmp_path / "q")
    assert code == 1
    assert only_line(err) == "error: quickstart needs elpv_dataset; run: pip install 'iformer[train,elpv,onnx]'"
    assert not (tmp_path / "q").exists()


def test_quickstart_leaves_an_earlier_one_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "q" / "run").mkdir(parents=True)
    (tmp_path / "q" / "run" / "config.yaml").write_text("recipe: {}")
    code, _, err = run(capsys, "quickstart", "--out", tmp_path / "q")
    assert code == 1
    assert "give --overwrite to replace it" in only_line(err)


def test_an_interrupted_quickstart_leaves_no_empty_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("elpv_dataset", "onnxruntime", "accelerate"):
        pytest.importorskip(module)

    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("iformer.data.sources.load_data", interrupted)
    code, _, _ = run(capsys, "quickstart", "--out", tmp_path / "new" / "q")
    assert code == 130
    assert not (tmp_path / "new").exists()


@pytest.mark.sweep
def test_quickstart_from_photographs_to_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for module in ("elpv_dataset", "onnxruntime", "accelerate"):
        pytest.importorskip(module)
    threads = torch.get_num_threads()
    folder = tmp_path / "q"
    code, out, _ = run(capsys, "quickstart", "--out", folder, "--epochs", "1", "--limit", "16", "--json")
    assert torch.get_num_threads() == threads
    assert code == 0
    said = json.loads(out)
    assert said["metrics"]["images"] == 16
    assert said["parity"]["max_relative_error"] < 1e-3
    assert set(said["timings"]) == {"PyTorch", "PyTorch, folded", "ONNX Runtime"}
    report = (folder / "report.md").read_text()
    for picture in ("predict.png", "explain.png", "run/curves.png", "run/confusion.png"):
        assert f"]({picture})" in report
        assert (folder / picture).exists()
