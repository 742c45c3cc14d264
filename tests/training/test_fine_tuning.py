"""The settings of fine-tuning: each changes what its documentation says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from iformer import load
from iformer.data.sampling import EpochSampler
from iformer.errors import ConfigError, UserError
from iformer.models.backbone import FROZEN_PARTS
from iformer.models.classifier import Classifier
from iformer.models.factory import build
from iformer.tasks.classification.evaluate import ClassificationEvaluation
from iformer.tasks.classification.loss import LabelLoss
from iformer.tasks.classification.training import classification_job
from iformer.training.job import RunSettings, TrainJob
from iformer.training.loop import train
from iformer.training.optimizer import base_lr, build_optimizer
from iformer.training.records.history import read_history
from iformer.training.records.results import TrainResult
from iformer.training.schedule import RunLength, build_schedule, recipe_hints
from tiny.classification import Linear, assert_same_tensors, make_images, tiny_config, tiny_job, tiny_recipe
from tiny.networks import randomize

FAST: dict[str, Any] = {"epochs": 1, "batch_size": 8, "ema_decay": None, "max_steps": 1, "eval_every": 9}


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 training images of each of three classes, 12 for validation."""
    return make_images(tmp_path_factory.mktemp("few"), 6)


def job(images: Path, out: Path, **fields: Any) -> TrainJob:
    options = {name: fields.pop(name) for name in ("resume",) if name in fields}
    return tiny_job(images, out, recipe=tiny_recipe(**{**FAST, **fields}), **options)


def network() -> Classifier:
    torch.manual_seed(0)
    model = build(tiny_config())
    assert isinstance(model, Classifier)
    return model


# ------------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize("part", list(FROZEN_PARTS))
def test_frozen_parts_keep_weights_and_statistics(part: str) -> None:
    model = network()
    randomize(model)
    model.freeze(part)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.randn(4, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    frozen = ["stem."] if part != "none" else []
    frozen += [f"stages.{index}." for index in range(FROZEN_PARTS[part] or 0)]
    for name, value in model.state_dict().items():
        is_frozen = name.startswith(tuple(frozen))
        if is_frozen or name.endswith(("num_batches_tracked", "conv.weight", "linear.weight")):
            assert torch.equal(value, before[name]) == is_frozen, name
    model.freeze("none")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.train().modules())


def test_a_frozen_run_trains_the_head_only(few_images: Path, tmp_path: Path) -> None:
    run = job(few_images, tmp_path / "run", freeze="backbone")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    train(run)
    after = load(tmp_path / "run/last.safetensors").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head"}
    settings = {name: getattr(run, name) for name in ("data_name", "recipe", "recipe_name", "folder")}
    with pytest.raises(ConfigError, match=r"recipe\.freeze is for networks of this package; got Linear"):
        classification_job(run.data, RunSettings(**settings), model=Linear())


def rates(model: Classifier, **fields: Any) -> dict[str, float]:
    """The learning rate of each parameter at the peak of the schedule."""
    recipe = tiny_recipe(warmup_epochs=0, **fields)
    optimizer = build_optimizer(model, recipe)
    build_schedule(optimizer, recipe, RunLength(recipe, steps_per_epoch=10)).step_update(0)
    assert base_lr(optimizer) == pytest.approx(recipe.peak_lr)
    by_parameter = {p: group["lr"] / recipe.peak_lr for group in optimizer.param_groups for p in group["params"]}
    return {name: by_parameter[parameter] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_layer_decay_and_head_lr(optimizer: str) -> None:
    found = rates(network(), layer_decay=0.5, head_lr=10.0, optimizer=optimizer)
    assert [found[name] for name in found if name.startswith("head.")] == pytest.approx([10] * 4)
    # 1 + 1 + 2 + 2 blocks: the last one has 0.5, the stem 0.5 ** 7
    assert found["stages.3.blocks.1.ffn.expand.conv.weight"] == pytest.approx(0.5)
    assert found["stages.3.blocks.0.expand.conv.weight"] == pytest.approx(0.5**2)
    assert found["stages.3.downsample.conv.weight"] == pytest.approx(0.5**2)
    assert found["stages.0.blocks.0.expand.conv.weight"] == pytest.approx(0.5**6)
    assert found["stem.conv1.conv.weight"] == pytest.approx(0.5**7)
    assert set(rates(network()).values()) == {1.0}
    assert sorted(set(rates(network(), head_lr=3.0).values())) == pytest.approx([1, 3])


# -------------------------------------------------------------------------------------------------- run length


NO_GAIN: dict[str, Any] = {"epochs": 9, "max_steps": None, "eval_every": 1, "lr": 1e-9, "min_lr": 0.0}
"""A learning rate of nearly 0 changes no answer, so the first evaluation stays the best."""


def epochs_of(result: TrainResult) -> list[int]:
    return [record["epoch"] for record in result.history]


@pytest.fixture(scope="module")
def stopped(few_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped early after epoch 3."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    result = train(job(few_images, out, **NO_GAIN, patience=2))
    assert epochs_of(result) == [1, 2, 3]
    assert result.best["epoch"] == 1
    assert load(out / "last.safetensors").metadata.provenance["epoch"] == 3
    return out


def test_a_run_that_stopped_early_stays_stopped_and_says_how_to_continue(
    few_images: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    again = train(job(few_images, out, resume=True, **NO_GAIN, patience=2))
    assert epochs_of(again) == [1, 2, 3]
    assert again.metrics == json.loads((stopped / "metrics.json").read_text())["metrics"]
    line = (
        "stopped after epoch 3: top-1 was best in epoch 1, and patience is 2; "
        "--resume with a larger --patience or --epochs continues"
    )
    assert line in capsys.readouterr().err.splitlines()


def test_a_larger_patience_continues_as_if_it_had_been_given_at_the_start(
    few_images: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, out = tmp_path / "straight", Path(shutil.copytree(stopped, tmp_path / "run"))
    expected = train(job(few_images, straight, **NO_GAIN, patience=4))
    result = train(job(few_images, out, resume=True, **NO_GAIN, patience=4))
    assert "note: patience was 2, is 4\n" in capsys.readouterr().err
    assert epochs_of(result) == epochs_of(expected) == [1, 2, 3, 4, 5]
    assert result.metrics == expected.metrics
    for name in ("last", "best", "resume"):
        assert_same_tensors(out / f"{name}.safetensors", straight / f"{name}.safetensors")
    assert yaml.safe_load((out / "config.yaml").read_text())["recipe"]["patience"] == 4


def test_more_epochs_count_the_patience_anew(
    few_images: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, longer = Path(shutil.copytree(stopped, tmp_path / "run")), {**NO_GAIN, "epochs": 20, "patience": 2}
    assert epochs_of(train(job(few_images, out, resume=True, **longer))) == [1, 2, 3, 4, 5]
    printed = capsys.readouterr().err
    assert "note: epochs was 9, is 20; the learning rate follows the longer schedule\n" in printed
    assert "stopped after epoch 5: top-1 was best in epoch 1, and patience is 2 since epoch 3; " in printed
    assert epochs_of(train(job(few_images, out, resume=True, **longer))) == [1, 2, 3, 4, 5]


def test_a_run_stops_early_only_at_an_evaluation(few_images: Path, tmp_path: Path) -> None:
    fields = {**NO_GAIN, "eval_every": 3, "patience": 2}
    assert epochs_of(train(job(few_images, tmp_path / "run", **fields))) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"patience": None}, None),
        ({"patience": 8}, None),
        ({"patience": 2, "eval_every": 2}, None),
        ({"patience": 9}, "an early stop is possible from epoch 10 on, and the run has 10 epochs"),
        ({"patience": 4, "eval_every": 5}, "possible from epoch 10 on, and the run has 10 epochs"),
        ({"patience": 3, "max_steps": 12}, "possible from epoch 4 on, and the run has 4 epochs"),
        ({"patience": 2, "eval_every": 3}, "only every 3 epochs are evaluated .*smaller eval_every"),
        ({"schedule": "step", "milestones": [4, 9]}, None),
        (
            {"schedule": "step", "milestones": [4, 10, 12]},
            "10 epochs, so .* at the milestones 10, 12;",
        ),
        ({"schedule": "step", "milestones": [4, 5], "max_steps": 12}, "4 epochs, so .* at the milestones 4, 5;"),
    ],
    ids=str,
)
def test_settings_without_effect_are_named(fields: dict[str, Any], expected: str | None) -> None:
    recipe = tiny_recipe(epochs=10, **fields)
    hints = recipe_hints(recipe, RunLength(recipe, steps_per_epoch=3))
    assert hints == [] if expected is None else re.search(expected, "\n".join(hints))


def test_a_finished_run_can_be_extended(
    few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(job(few_images, out, epochs=2, max_steps=None))
    train(job(few_images, out, epochs=2, max_steps=None, resume=True))
    ended = "nothing to train: all 2 epochs are done; --resume with a larger --epochs continues"
    assert ended in capsys.readouterr().err.splitlines()
    result = train(job(few_images, out, epochs=4, max_steps=None, resume=True))
    assert "note: epochs was 2, is 4" in capsys.readouterr().err
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4]
    assert yaml.safe_load((out / "config.yaml").read_text())["recipe"]["epochs"] == 4
    assert read_history(out / "log.jsonl")[3]["lr"] < read_history(out / "log.jsonl")[2]["lr"]
    with pytest.raises(UserError, match="epochs was 4, is 3"):
        train(job(few_images, out, epochs=3, max_steps=None, resume=True))


# ------------------------------------------------------------------------------------------------------- data


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    labels = [0] * 90 + [1] * 10
    weights = [1 / labels.count(label) for label in labels]
    plain = EpochSampler(100, batch_size=10, seed=1)
    balanced = EpochSampler(100, batch_size=10, seed=1, weights=weights)
    drawn = [labels[index] for epoch in range(20) for index in order(balanced, epoch)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.05)
    assert sorted(order(plain, 0)) == list(range(100))
    assert order(balanced, 3) == order(balanced, 3)
    assert order(balanced, 3) != order(balanced, 4)


def order(sampler: EpochSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return sampler.order()


def test_the_recipe_balances_the_loader(few_images: Path, tmp_path: Path) -> None:
    from iformer.training.distributed import RankContext

    for sampling, expected in (("shuffle", None), ("balanced", [1 / 6] * 18)):
        run = job(few_images, tmp_path / "run", sampling=sampling)
        workload = run.workload(run, RankContext(device=torch.device("cpu"), precision="fp32"))
        loader = workload.train_loader()
        assert loader.sampler.weights == expected
        workload.close()


LOPSIDED = {"blue": 6, "green": 2, "red": 2}


@pytest.fixture(scope="module")
def lopsided(few_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `few_images`, with `LOPSIDED` training images."""
    folder = tmp_path_factory.mktemp("lopsided")
    shutil.copytree(few_images, folder, dirs_exist_ok=True)
    for name, count in LOPSIDED.items():
        for number in range(count, 6):
            (folder / "train" / name / f"{number}.png").unlink()
    return folder


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, LabelLoss()),
        ({"loss": "focal", "focal_gamma": 3.0}, LabelLoss(kind="focal", focal_gamma=3.0)),
        ({"loss": "bce"}, LabelLoss(kind="bce")),
        ({"class_weights": "balanced"}, LabelLoss(class_weights=torch.tensor([10 / 18, 10 / 6, 10 / 6]))),
        ({"class_weights": {"red": 5.0}}, LabelLoss(class_weights=torch.tensor([1.0, 1.0, 5.0]))),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_run_has_the_loss_and_the_weights_of_the_recipe(
    lopsided: Path, tmp_path: Path, fields: dict[str, Any], expected: LabelLoss
) -> None:
    plain = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "label_smoothing": 0.0}
    task = job(lopsided, tmp_path / "run", **plain, **fields).task
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 0, 1])
    model = Linear()
    loss = task.loss(model, {"images": images, "labels": labels})["loss"]
    torch.testing.assert_close(loss, expected(model(images), labels, label_smoothing=0.0))
    others = [LabelLoss(), LabelLoss(kind="bce"), LabelLoss(kind="focal", focal_gamma=2.0)]
    different = [other for other in others if repr(other) != repr(expected)]
    assert all(abs(loss - other(model(images), labels, label_smoothing=0.0)) > 1e-4 for other in different)


class LeftAndRight(torch.nn.Module):
    """Logits of three classes: the brightness of the left and of the right half, and 0."""

    def forward(self, images: Tensor) -> Tensor:
        halves = [half.mean((1, 2, 3)) for half in images.chunk(2, dim=3)]
        return torch.stack([*halves, torch.zeros(len(images))], dim=1)


@pytest.mark.parametrize("flip", [False, True])
def test_the_recipe_flips_the_evaluation(few_images: Path, tmp_path: Path, flip: bool) -> None:
    from iformer.training.distributed import RankContext

    run = job(few_images, tmp_path / "run", test_flip=flip)
    workload = run.workload(run, RankContext(device=torch.device("cpu"), precision="fp32"))
    found = workload.evaluate(LeftAndRight(), precision="fp32")
    workload.close()
    assert isinstance(found, ClassificationEvaluation)
    assert np.allclose(found.probabilities[:, 0], found.probabilities[:, 1]) == flip


def test_a_flipped_evaluation_averages_the_mirror_images() -> None:
    from iformer.tasks.classification.evaluate import with_mirror_images

    def left(images: Tensor) -> Tensor:
        return images[:, 0, :, :1].float().mean((1, 2))[:, None]

    images = torch.zeros(1, 3, 2, 4)
    images[..., -1] = 8
    assert left(images).item() == 0
    assert with_mirror_images(left)(images).item() == 4
