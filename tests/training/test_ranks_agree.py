"""Ranks that were started with different data or settings end with one message before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iformer.errors import UserError
from iformer.training import distributed
from iformer.training.distributed import check_ranks_agree
from iformer.training.loop import train
from iformer.training.records.provenance import rank_values, run_identity
from tiny.classification import tiny_job, tiny_recipe
from tiny.programs import Forked, ranks


def errors_of_ranks(*arguments: Sequence[str]) -> list[str]:
    """Start one rank with each list of arguments of `tiny.classification`; return what each says at its end."""
    processes = [
        Forked("tiny.classification", *own, **variables)
        for own, variables in zip(arguments, ranks(len(arguments)), strict=True)
    ]
    ended = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [1] * len(processes), ended
    return [next(line for line in text.splitlines() if line.startswith("error: ")) for text in ended]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_a_rank_that_lacks_an_image_stops_all_ranks(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "fewer")
    (tmp_path / "fewer/train/red/0.png").unlink()
    out = tmp_path / "out"
    errors = errors_of_ranks(*([str(data), str(out), "{}", "--linear"] for data in (images, tmp_path / "fewer")))
    assert errors[0] == errors[1]
    assert "the ranks of this run differ in data.train: rank 0 has 48 images (" in errors[0]
    assert "rank 1 has 47 images (" in errors[0]
    assert errors[0].endswith("; start every rank with the same data and settings")
    assert not out.exists()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.sweep
def test_a_rank_with_another_recipe_stops_all_ranks(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    errors = errors_of_ranks(
        *([str(images), str(out), json.dumps({"lr": lr, "workers": 0}), "--linear"] for lr in (0.001, 0.002))
    )
    assert errors[0] == errors[1]
    assert "differ in recipe.lr: rank 0 has 0.001, rank 1 has 0.002;" in errors[0]
    assert not out.exists()


def values_of(images: Path, out: Path, *, model_name: str = "tiny", resume: bool = False, **fields: Any) -> Any:
    job = tiny_job(images, out, recipe=tiny_recipe(**fields), resume=resume)
    job = replace(job, model_name=model_name)
    return rank_values(job, run_identity(job, "fp32"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"workers": 2, "cache": "ram", "checkpoint_minutes": 3.0}, None),
        ({"log_every": 3}, "recipe.log_every"),
        ({"checkpoint_steps": 3}, "recipe.checkpoint_steps"),
        ({"eval_batch_size": 3}, "recipe.eval_batch_size"),
        ({"augment": {"hflip": 0.1}}, "recipe.augment.hflip"),
        ({"resume": True}, "resume"),
        ({"model_name": "iformer_s"}, "model"),
    ],
)
def test_which_settings_may_differ(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], field: str | None
) -> None:
    both = [values_of(images, tmp_path / "out"), values_of(images, tmp_path / "out", **options)]
    monkeypatch.setattr(distributed, "all_gather", lambda value: both)
    if field is None:
        check_ranks_agree(both[0])
    else:
        with pytest.raises(UserError, match=f"differ in {field}: rank 0 has "):
            check_ranks_agree(both[0])


def test_paths_may_be_spelled_differently(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder of the data, a copy of the weights, a link to the run folder."""
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    shutil.copytree(images, tmp_path / "copy")
    models = [tmp_path / "a/m.safetensors", tmp_path / "b/m.safetensors"]
    for model in models:
        model.parent.mkdir()
        model.touch()
    both = [
        values_of(images, tmp_path / "out", model_name=str(models[0])),
        values_of(tmp_path / "copy", tmp_path / "link/out", model_name=str(models[1])),
    ]
    monkeypatch.setattr(distributed, "all_gather", lambda value: both)
    check_ranks_agree(both[0])
    both[1] = values_of(images, tmp_path / "other", model_name=str(models[0]))
    with pytest.raises(UserError, match=r"differ in out: rank 0 has .*out, rank 1 has .*other; start every rank"):
        check_ranks_agree(both[0])


def test_a_rank_that_sees_another_state_stops_all_ranks(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a second machine, where `--out` is not the same folder."""
    out = tmp_path / "out"
    train(tiny_job(images, out, recipe=tiny_recipe(epochs=1)))
    before = {file: file.read_bytes() for file in out.iterdir()}

    def gather(value: Any) -> list[Any]:
        return [value, {"the saved state": ("none",)} if "the saved state" in value else value]

    monkeypatch.setattr(distributed, "all_gather", gather)
    with pytest.raises(
        UserError, match=r"differ in the saved state: rank 0 has step 6, rank 1 has none; --out .*"
    ):
        train(tiny_job(images, out, recipe=tiny_recipe(epochs=1), resume=True))
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_the_first_ranks_are_listed_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_gather", lambda value: [{"a": ["x"]}, *[{"a": ["y"]}] * 6, {}])
    with pytest.raises(UserError, match=r"differ in a: rank 0 has x, rank 1 has y, .*, and 4 more; start"):
        check_ranks_agree({"a": ["x"]})
