"""The range test of the learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iformer.cli.main import main
from iformer.config.variants import VARIANTS
from iformer.training.lr_finder import HIGHEST, LOWEST, find_lr, steepest_rate
from tiny.classification import make_images, tiny_job, tiny_recipe
from tiny.networks import tiny_variant


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), 8)


def test_the_steepest_descent_is_found() -> None:
    rates = np.logspace(-6, 0, 61)
    losses = 2 - 1 / (1 + np.exp(-4 * (np.log10(rates) + 3))) + 50 * np.maximum(0, np.log10(rates) + 1) ** 2
    assert np.log10(steepest_rate(rates.tolist(), losses.tolist())) == pytest.approx(-3, abs=0.11)


def test_a_range_test_of_a_run(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(batch_size=8, lr_batch=16)
    found = find_lr(tiny_job(images, tmp_path / "run", recipe=recipe), steps=30)
    assert len(found.rates) == len(found.losses) <= 30
    assert found.rates[0] == LOWEST
    assert list(found.rates) == sorted(found.rates)
    assert LOWEST < found.steepest < HIGHEST
    assert found.lr == pytest.approx(2 * found.steepest), "lr is for lr_batch images"
    assert not (tmp_path / "run").exists()


def test_the_verb(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
    monkeypatch.setattr(find_lr, "__kwdefaults__", {"steps": 12})
    words = ["train", "--data", str(images), "--model", "iformer_tiny", "--weights", "none", "--size", "64"]
    words += ["--batch-size", "8", "--set", "workers=0", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*words, "--find-lr", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["losses"]) >= 10
    assert main([*words, "--find-lr"]) == 0
    assert "try --lr" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "--out", str(tmp_path), "--find-lr"]) == 1
    assert "--find-lr is for a new run" in capsys.readouterr().err
