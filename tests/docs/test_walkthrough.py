"""Every command and snippet of the start page and the tutorials runs as it stands there, only shorter.

A page runs from top to bottom in an empty folder. Commands of `iformer` get the options of `SHORTER`, for a tiny
network and few steps; set-up commands, which download, are replaced by what they bring.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from iformer.cli.main import main
from iformer.config.variants import VARIANTS
from tiny.composed import make_pictures
from tiny.labels import make_yolo
from tiny.networks import tiny_variant
from tiny.pages import ROOT, blocks

TINY = "--model iformer_tiny --epochs 1 --set workers=0 --device cpu --no-tensorboard"

SHORTER: dict[str, str] = {
    "train": f"{TINY} --size 64 --batch-size 4 --set warmup_epochs=0 --weights none",
    "train --task detect": f"{TINY} --weights none --size 96 --set max_size=96 --set fpn_channels=32 "
    "--set proposals=16",
    "train --task segment": f"{TINY} --size 96 --set max_size=96 --set fpn_channels=32",
    "export --precision int8": "--calibration-images 4 --max-drop 100",
    "bench": "--rounds 1 --calls 1 --warmup 0",
}
"""Options added to a verb's commands; the longest key whose words are all in the command counts."""

BENCH = "iformer bench artifacts/last.onnx artifacts/last_int8.onnx"

ELSEWHERE = (
    BENCH,  # test_bench, in the sweep: each artifact costs a new process
    "iformer quickstart",  # tests/cli/test_quickstart.py runs it and looks at what it writes
    "python3 -m venv .venv && . .venv/bin/activate",
    "apt-get download tuxpaint-stamps-default gnome-backgrounds plasma-workspace-wallpapers",
    'for package in *.deb; do dpkg -x "$package" pictures; done',
)
"""Commands not run here: another test runs them, or they download what the fixtures bring."""


def shorter(arguments: list[str]) -> list[str]:
    fitting = [key for key in SHORTER if set(key.split()) <= set(arguments)]
    return [*arguments, *SHORTER[max(fitting, key=len)].split()] if fitting else arguments


def run_command(line: str) -> None:
    if line in ELSEWHERE:
        return
    if line.startswith("pip install "):
        (extras,) = re.findall(r"\[([\w,]+)\]", line)
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extras.split(",")) <= known.keys(), line
        return
    program, *arguments = shlex.split(line)
    if program == "python":
        arguments += ["--train", "8", "--val", "4", "--size", "96"]
        run_script(arguments)
        return
    assert program == "iformer", f"{line}: no test runs it"
    assert main(shorter(arguments)) == 0, line


def run_script(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(arguments[0], run_name="__main__")
    assert stop.value.code in (0, None), arguments


def walk(name: str) -> None:
    """Run the shell and Python blocks of a page in their order."""
    for block in blocks(name):
        if block.language == "python":
            exec(compile(block.code, f"docs/{name}", "exec"), {"__name__": "snippet"})
        elif block.language == "sh":
            for line in block.commands():
                run_command(line)
        else:
            assert block.language == "text", f"{block.language}: no test runs such a block"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a clone, as far as the pages use one."""
    for path in ("docs/images/cell.png", "examples/composed"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        copy: Callable[..., object] = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        copy(ROOT / path, tmp_path / path)
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photograph(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (72, 80, 3), dtype=np.uint8))


@pytest.mark.sweep
def test_start(folder: Path) -> None:
    for label, name in enumerate(("daisy", "rose", "tulip")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(5):
            photograph(10 * label + number).save(folder / "photos" / name / f"{number}.jpg")
    walk("index.md")
    assert (folder / "runs/photos/report.md").is_file()
    assert (folder / "answers/predictions.jsonl").is_file()
    assert (folder / "photos.onnx.json").is_file()


@pytest.mark.sweep
def test_photographs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cells = np.random.default_rng(0).integers(0, 255, (96, 64, 64), dtype=np.uint8)
    probabilities = np.arange(len(cells)) // 6 % 2 * 1.0  # the tutorial takes every sixth
    dataset = SimpleNamespace(load_dataset=lambda: (cells, probabilities, None))
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", dataset)
    walk("tutorials/photographs.md")
    assert len(list((folder / "photos").glob("*/*.png"))) == 16
    for artifact in ("last.onnx", "last.openvino", "last_int8.onnx"):
        assert (folder / "artifacts" / artifact).exists()
    assert re.search(r"photos/\w+/\d+\.png (functional|defective)", capsys.readouterr().out)


@pytest.mark.sweep
def test_labels(folder: Path) -> None:
    make_yolo(folder / "labels")
    walk("tutorials/labels.md")
    record = json.loads((folder / "artifacts" / "labels_int8.onnx.json").read_text())
    assert record["class_names"] == ["cat", "dog"]
    assert record["precision"] == "int8"
    report = (folder / "runs" / "labels" / "report.md").read_text()
    assert "The best confidence is" in report
    assert len(list((folder / "answers").glob("*.png"))) == 3
    assert (folder / "coco" / "annotations" / "instances_train.json").is_file()


@pytest.mark.sweep
def test_bench(folder: Path) -> None:
    assert BENCH in [line for block in blocks("tutorials/photographs.md") for line in block.commands()]
    for artifact in shlex.split(BENCH)[2:]:
        assert main(["export", "elpv", "--size", "64", "--out", artifact]) == 0
    assert main(shorter(shlex.split(BENCH)[1:])) == 0


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_detection_and_segmentation(folder: Path, task: str) -> None:
    make_pictures(folder / "pictures")
    if task == "segment":  # its data are those of the other tutorial
        lines = [line for block in blocks("tutorials/detect.md") for line in block.commands()]
        run_command(next(line for line in lines if "compose.py" in line))
    walk(f"tutorials/{task}.md")
    assert (folder / "runs" / task / "report.md").is_file()
    assert len(list((folder / "answers").glob("0*.png"))) == 4
