"""Notes about a recipe and the number of images; the default recipes take smaller batches for few of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iformer.config.variants import VARIANTS
from iformer.tasks.training_job import training_job
from iformer.training.job import TrainJob
from tiny.networks import tiny_variant


@pytest.fixture(autouse=True)
def _tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())


def job(images: Path, folder: Path, *, about: str = "batches of", **options: Any) -> tuple[TrainJob, list[str]]:
    notes: list[str] = []
    overrides = {"weights": "none", "size": 32, **options.pop("overrides", {})}
    data = None if options.get("resume") else str(images)
    made = training_job(
        folder, data=data, model="iformer_tiny", overrides=overrides, warn=notes.extend, device="cpu", **options
    )
    return made, [note for note in notes if about in note]


def test_batches_are_halved_down_to_eight(images: Path, tmp_path: Path) -> None:
    made, notes = job(images, tmp_path / "run")
    assert made.recipe.batch_size == 8
    assert made.recipe.eval_batch_size == 64
    assert made.recipe.peak_lr == pytest.approx(5e-4 / 8)
    assert notes == [
        "48 training images: batches of 8 instead of 64, so that an epoch has 6 steps; --batch-size 64 keeps them"
    ]
    made, _ = job(images, tmp_path / "run", overrides={"lr": 2e-6})  # below min_lr for the small batch
    assert made.recipe.min_lr == made.recipe.peak_lr == pytest.approx(2.5e-7)


@pytest.mark.parametrize("overrides", [{"batch_size": 64}, {"max_steps": 5}])
def test_a_choice_is_kept(overrides: dict[str, int], images: Path, tmp_path: Path) -> None:
    made, notes = job(images, tmp_path / "run", overrides=overrides)
    assert (made.recipe.batch_size, notes) == (64, [])


def test_other_recipes_are_kept(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 1\nbatch_size: 48\nlr: 0.001\n")
    for recipe, batch in ((str(file), 48), ("imagenet-300", 4096)):
        made, notes = job(images, tmp_path / "run", recipe=recipe)
        assert (made.recipe.batch_size, notes) == (batch, [])


def test_several_processes_share_the_batch(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    made, _ = job(images, tmp_path / "run")
    assert made.recipe.batch_size == 32  # finetune mixes images in pairs


def test_no_pass_is_left_with_one_image(images: Path, tmp_path: Path) -> None:
    overrides = {"grad_accum": 8, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    made, _ = job(images, tmp_path / "run", overrides=overrides)
    assert made.recipe.batch_size // made.recipe.grad_accum == 2


def test_a_patience_is_compared_with_the_length_of_the_run(images: Path, tmp_path: Path) -> None:
    _, notes = job(images, tmp_path / "run", about="patience", overrides={"epochs": 9, "patience": 5})
    assert notes == []
    fields = {"epochs": 9, "patience": 5, "max_steps": 5}  # one epoch
    _, notes = job(images, tmp_path / "run", about="patience", overrides=fields)
    assert len(notes) == 1
