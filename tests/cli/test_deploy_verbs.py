"""`export --precision int8` and `bench` on the command line: errors before any work, and full disks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iformer.bench.latency import Latency
from iformer.cli.main import main


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    return code, line


def test_int8_needs_labelled_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    code, line = said(capsys, "export", "elpv", "--precision", "int8", "--out", out)
    assert (code, line.startswith("error: --precision int8 needs --calibration DATA")) == (1, True), line
    code, line = said(capsys, "export", "elpv", "--calibration", "elpv", "--out", out)
    assert (code, line) == (1, "error: --calibration is for --precision int8, int8-dynamic and palette6")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["unlabelled", "other classes", "no folder"])
def test_calibration_images_of_the_wrong_kind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    from PIL import Image

    data = tmp_path / "data"
    for name in {"unlabelled": ["."], "other classes": ["cat", "dog"], "no folder": []}[kind]:
        (data / name).mkdir(parents=True, exist_ok=True)
        for index in range(4):
            Image.new("L", (40, 40), 20 * index).save(data / name / f"{index}.png")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "new" / "a.onnx"
    code = main(["export", "elpv", "--precision", "int8", "--calibration", str(data), "--out", str(out)])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    expected = {
        "unlabelled": "expected one sub-folder per class",
        "other classes": "the classes of the data are not those of the network",
        "no folder": "no such folder",
    }
    assert code == 1
    assert expected[kind] in line, line
    assert not out.parent.exists()


def test_bench_says_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = said(capsys, "bench")
    assert (code, line) == (1, "error: nothing to time; name networks or artifacts, or give --peers")
    code, line = said(capsys, "bench", "iformer_t", "iformer_m", "iformer_t")
    assert (code, line) == (1, "error: iformer_t is named twice; name each network once")
    code, line = said(capsys, "bench", "iformer_t", "--on", "onxx")
    assert (code, "did you mean onnx" in line) == (1, True), line
    code, line = said(capsys, "bench", "iformer_t", "--iphone", "any")
    assert (code, line) == (1, "error: --iphone needs --on coreml; got --on onnx")
    code, line = said(capsys, "bench", "iformer_t", "--team", "X")
    assert (code, line) == (1, "error: --team is for --iphone; give both")
    code, line = said(capsys, "bench", "iformer_t", "--device", "cuda")
    assert (code, line) == (1, "error: --device is 'cuda'; the runtimes of bench run on the CPU")


def test_bench_names_checkpoints_of_the_same_name_by_their_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from iformer.bench import subjects
    from iformer.cli.bench import _subjects
    from iformer.deploy.runtimes.registry import find_runtime

    monkeypatch.setattr(subjects, "prepare_all", lambda *_args, label, **_options: [SimpleNamespace(label=label)])
    models = ["a/best.safetensors", "b/best.safetensors", "c/last.safetensors"]
    found = _subjects(models, False, find_runtime("onnx"), Path(), [], 1, None, {})
    assert [subject.label for subject in found] == [*models[:2], "last"]


def test_bench_says_which_of_the_papers_peers_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from iformer.bench import subjects
    from iformer.cli.bench import _left_out, _subjects
    from iformer.deploy.runtimes.registry import find_runtime
    from iformer.errors import UserError

    def prepare(name: str, *_: object, label: str, **_options: object) -> SimpleNamespace:
        if name == "timm/repvit_m1_1":
            raise UserError("the conversion failed")
        return SimpleNamespace(label=label)

    monkeypatch.setattr(subjects, "prepare_subject", prepare)
    left_out = _left_out()
    assert len(left_out) == 25
    found = _subjects([], True, find_runtime("onnx"), Path(), [], 1, None, left_out)
    assert len(found) == 4 + 74 - 25 - 1
    assert left_out["RepViT-M1.1 in ONNX Runtime"] == "the conversion failed"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "49 of the paper's 74 peers can be measured"
    assert said[1].startswith("left out, not in timm: SBCFormer-XS, EfficientMod-xxs, ")
    assert "left out, timm has it for 224 x 224 pixels only: EfficientFormer-L1, EfficientFormer-L3" in said
    assert "RepViT-M1.1 is left out: the conversion failed" in said


def test_a_file_that_cannot_be_written_loses_no_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Latency(
        label="iFormer-T", runtime="onnx", device="this machine", precision="fp32", size=(32, 32), batch=1,
        median_ms=2.5, p10_ms=2.0, p90_ms=3.0, rounds=1, times_as_fast=1.0, load_ms=9.0,
        file_mb=1.0, gmacs=None, gflops=None,
    )  # fmt: skip
    monkeypatch.setattr("iformer.cli.bench._subjects", lambda *_: [])
    monkeypatch.setattr("iformer.bench.subjects.prepare_matrix_product", lambda *_: None)
    monkeypatch.setattr("iformer.bench.latency.measure", lambda *_, **__: [row])
    (tmp_path / "bench.json").mkdir()
    assert main(["bench", "iformer_t", "--out", str(tmp_path), "--json"]) == 1
    printed = capsys.readouterr()
    assert "cannot write" in printed.err
    assert json.loads(printed.out)["figures"]["onnx"][0]["median_ms"] == 2.5


def test_the_allowed_drop_is_a_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--precision", "int8", "--calibration", "elpv", "--out", tmp_path / "a.onnx"]
    code, line = said(capsys, "export", "elpv", *options, "--max-drop", "inf")
    assert (code, line) == (1, "error: --max-drop is inf; expected percentage points such as 1")
    code, line = said(capsys, "export", "elpv", *options, "--max-drop", "nan")
    assert (code, "--max-drop" in line) == (2, True), line
