"""Every Python block of the pages that show the package's use from Python runs as it stands there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import iformer
from iformer.api.train import train
from iformer.config.variants import VARIANTS
from tiny.classification import make_images
from tiny.networks import tiny_variant
from tiny.pages import ROOT, Block, blocks, code

OPTIONAL = {"segmentation_models_pytorch": "segmentation-models-pytorch", "transformers": "transformers"}


def python_blocks(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


def marked(page: str) -> list[object]:
    """Blocks that import a large library belong to the sweep."""
    return [
        pytest.param(block, marks=[pytest.mark.sweep] if any(name in block.code for name in OPTIONAL) else [])
        for block in python_blocks(page)
    ]


@pytest.mark.parametrize("block", marked("how-to/other-libraries.md"))
def test_other_libraries(block: Block) -> None:
    for name in OPTIONAL:
        if name in block.code and importlib.util.find_spec(name) is None:
            pytest.skip(f"{OPTIONAL[name]} is not installed")
    exec(compile(block.code, "docs/how-to/other-libraries.md", "exec"), {"__name__": "snippet"})


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder: `photos` and the pictures of the docs; `train` and `export` take tiny settings."""
    make_images(tmp_path / "photos", 8)
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name}|all" for path in (tmp_path / "photos").rglob("*.png")
    ]
    (tmp_path / "photos.csv").write_text("\n".join(["image,label", *rows]))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
    monkeypatch.chdir(tmp_path)
    small = {"model": "iformer_tiny", "weights": "none", "epochs": 1, "size": 32, "workers": 0, "device": "cpu"}
    for name in ("train", "cross_validate"):
        shorten(monkeypatch, name, small)
    shorten(monkeypatch, "export", {"calibration_images": 4, "max_drop": 100.0})


def shorten(monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]) -> None:
    """Replace a public function by itself with other options."""
    function: Callable[..., Any] = getattr(iformer, name)
    monkeypatch.setattr(
        iformer, name, lambda *args, **given: function(*args, **{**given, **options}), raising=False
    )


def test_pretraining(photos: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"epochs": 1, "size": 32, "workers": 0, "device": "cpu"}
    shorten(monkeypatch, "pretrain", {**options, "model": "iformer_tiny", "batch_size": 8})
    monkeypatch.setattr(iformer, "train", train)
    shorten(monkeypatch, "train", options)
    exec(compile(code("how-to/pretrain.md", "pretrain"), "docs/how-to/pretrain.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) == 2


@pytest.mark.parametrize(
    "label", ["train", "folds", "predict", "labels", pytest.param("flow", marks=pytest.mark.sweep)]
)
def test_from_python(label: str, photos: None, capsys: pytest.CaptureFixture[str]) -> None:
    text = code("how-to/python.md", label)
    assert label != "flow" or len(text.strip().splitlines()) - 1 <= 8
    exec(compile(text, "docs/how-to/python.md", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out
