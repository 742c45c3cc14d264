"""Training: files, losses, reports and the ways to stop."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

import iformer
from iformer import files
from iformer.errors import ConfigError, MissingDependencyError, UserError
from iformer.models.factory import build
from iformer.models.weights.checkpoint import save
from iformer.models.weights.read import read_weights
from iformer.models.weights.resolve import load
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.classification.evaluate import NetworkPredictor
from iformer.tasks.classification.training import classification_job
from iformer.training.distributed import one_training_per_process
from iformer.training.job import RunSettings
from iformer.training.loop import train
from iformer.training.records.results import TrainResult
from iformer.training.state import saved_step
from iformer.training.step import check_batch_size
from tiny.classification import PLAIN, Linear, tiny_config, tiny_job, tiny_recipe


def job(images: Path, out: Path, *, fields: dict[str, Any] | None = None, **options: Any) -> Any:
    return tiny_job(images, out, recipe=tiny_recipe(**(fields or {})), **options)


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run that learns the tiny images, with everything that it writes."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    fields = {"epochs": 14, "lr": 4e-3, "precision": "auto", "eval_every": 4}
    return train(job(images, out, fields=fields, tensorboard=True, report=True))


def test_it_learns(finished: TrainResult) -> None:
    assert finished.metrics["top1"] == 100.0
    losses = [record["train_loss"] for record in finished.history]
    assert losses[-1] < 0.8 * losses[0]


def test_result_is_complete(finished: TrainResult) -> None:
    assert [record["epoch"] for record in finished.history] == list(range(1, 15))
    assert [record["epoch"] for record in finished.history if "val_top1" in record] == [4, 8, 12, 14]
    assert finished.train_images == 48
    assert finished.processes == 1
    assert finished.evaluation.indices.tolist() == list(range(12))
    assert finished.best["top1"] >= max(r["val_top1"] for r in finished.history if "val_top1" in r)
    for record in finished.history:
        assert record["images_per_second"] > 0
        assert 0 <= record["data_wait"] <= 1


def test_outputs_that_overflow_in_validation_are_counted(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of a training step may be finite where the outputs of an evaluation are not."""
    answer = NetworkPredictor.__call__

    def overflows_on_the_first(self: NetworkPredictor, batch: Tensor) -> Tensor:
        logits = answer(self, batch).clone()
        logits[0] = torch.inf
        return logits

    monkeypatch.setattr(NetworkPredictor, "__call__", overflows_on_the_first)
    train(job(images, tmp_path / "run", fields={"epochs": 1, "eval_batch_size": 12}))
    assert "note: the network's outputs overflow on 1 of 12 validation images\n" in capsys.readouterr().err


def test_files_of_a_run(finished: TrainResult) -> None:
    names = {file.name for file in finished.folder.iterdir()}
    assert names >= {
        "best.safetensors",
        "last.safetensors",
        "resume.safetensors",
        "config.yaml",
        "log.jsonl",
        "tensorboard",
        "metrics.json",
        "report.md",
    }
    assert finished.report == finished.folder / "report.md"
    assert not [name for name in names if name.startswith(".")]
    events = [json.loads(line)["event"] for line in (finished.folder / "log.jsonl").read_text().splitlines()]
    assert events.count("start") == events.count("end") == 1
    assert events.count("epoch") == 14
    assert events.count("step") == 14 * 3


def test_kept_network_is_the_evaluated_one(finished: TrainResult) -> None:
    network = load(finished.folder / "last.safetensors")
    metadata = network.metadata
    assert metadata.class_names == ("blue", "green", "red")
    assert metadata.preprocessing.size == (32, 32)
    assert metadata.metrics["top1"] == finished.metrics["top1"]
    assert metadata.metrics["macro"] == finished.metrics["macro"]
    assert set(metadata.provenance) >= {"command", "commit", "versions", "data", "recipe"}
    assert len(metadata.provenance["data"]["train_fingerprint"]) == 64
    state = load_file(finished.folder / "resume.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[f"average/{name}"])
    assert any(not torch.equal(state[f"average/{name}"], state[f"model/{name}"]) for name in network.state_dict())


def test_best_network_says_its_epoch(finished: TrainResult) -> None:
    metadata = read_weights(finished.folder / "best.safetensors").metadata
    assert metadata.provenance["epoch"] == finished.best["epoch"]
    assert metadata.metrics["top1"] == finished.best["top1"]


def test_resolved_config_lies_beside_the_results(finished: TrainResult) -> None:
    config = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert ClassificationRecipe.from_plain(config["recipe"]) == finished.recipe
    assert config["precision"] == finished.precision in ("fp32", "bf16")
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    assert metrics["metrics"]["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]


def test_progress_is_said_on_stderr(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(job(images, tmp_path / "run", fields={"epochs": 2}))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith(
        "training: tiny on tiny, 48 images of 3 classes, 12 to validate; recipe tiny, 2 epochs"
    )
    assert lines[1].startswith("epoch 1/2, loss ")
    for word in ("accuracy", "validation loss", "validation top-1", "images/s"):
        assert word in lines[2]


def test_used_folder_is_refused_and_untouched(images: Path, finished: TrainResult) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in finished.folder.iterdir()}
    with pytest.raises(UserError, match="holds a run already"):
        train(job(images, finished.folder))
    assert {file.name: file.stat().st_mtime_ns for file in finished.folder.iterdir()} == before


def test_a_second_training_in_one_process_is_refused(images: Path, tmp_path: Path) -> None:
    second = job(images, tmp_path / "second")
    with one_training_per_process():
        for start in (lambda: train(second), lambda: iformer.train(images, out=tmp_path / "third")):
            with pytest.raises(UserError, match="this process is training already"):
                start()
    assert not list(tmp_path.iterdir())


def test_overwrite_begins_anew(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(job(images, out, fields={"epochs": 2}))
    result = train(job(images, out, fields={"epochs": 1, "seed": 5}, overwrite=True))
    assert len(result.history) == 1
    assert yaml.safe_load((out / "config.yaml").read_text())["recipe"]["seed"] == 5


def test_same_seed_same_weights(images: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        np.random.seed(len(name))  # noqa: NPY002 (what came before must not matter)
        torch.rand(seed * 7)
        train(job(images, tmp_path / name, fields={"epochs": 1, "seed": seed}))
    a, b, c = (load_file(tmp_path / name / "last.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_accumulated_gradient_is_that_of_the_whole_batch(images: Path, tmp_path: Path) -> None:
    weights = []
    for passes in (1, 2, 4):
        out = tmp_path / str(passes)
        run = replace(job(images, out, fields={**PLAIN, "epochs": 2, "grad_accum": passes}), model=Linear())
        train(run)
        weights.append(load_file(out / "resume.safetensors")["model/linear.weight"])
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_gradient(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any) -> Any:
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack(gradients).norm().item())
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(job(images, tmp_path / "run", fields={"epochs": 1, "clip_grad": 0.01}))
    assert len(norms) == 6
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_any_network_can_be_trained_as_a_peer(images: Path, tmp_path: Path) -> None:
    run = replace(job(images, tmp_path / "run", fields={"epochs": 1}), model=Linear(), model_name="a peer")
    result = train(run)
    assert result.parameters == 12
    assert set(load_file(tmp_path / "run" / "last.safetensors")) == {"linear.weight", "linear.bias"}


# ------------------------------------------------------------------------------------- starting weights


def fine_tuning_job(images: Path, out: Path, *, recipe: Any = None, **options: Any) -> Any:
    run = job(images, out)
    settings = RunSettings(data_name="tiny", recipe=recipe or run.recipe, recipe_name="tiny", folder=out)
    return classification_job(run.data, settings, **options)


def test_fine_tuning_starts_from_a_checkpoint_with_a_new_head(images: Path, tmp_path: Path) -> None:
    from iformer.config.preprocessing import Preprocessing

    source = build(tiny_config(num_classes=7))
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    save(source, tmp_path / "source.safetensors", preprocessing=preprocessing)
    run = fine_tuning_job(images, tmp_path / "run", model=str(tmp_path / "source.safetensors"))
    assert run.model.num_classes == 3
    assert torch.equal(run.model.stem.conv1.conv.weight, source.stem.conv1.conv.weight)
    # the weights have seen images normalised in their way
    assert run.preprocessing.mean == (0.5, 0.5, 0.5)
    assert run.preprocessing.size == (32, 32)


def test_two_sources_of_weights_are_refused(images: Path, tmp_path: Path) -> None:
    save(build(tiny_config()), tmp_path / "source.safetensors")
    recipe = tiny_recipe(weights="other.safetensors")
    with pytest.raises(UserError, match="give one of --model and --weights"):
        fine_tuning_job(images, tmp_path / "run", model=str(tmp_path / "source.safetensors"), recipe=recipe)


def test_released_weights_out_of_reach_say_what_to_do(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    recipe = tiny_recipe(weights="pretrained")
    with pytest.raises(UserError, match=r"--weights none") as caught:
        fine_tuning_job(images, tmp_path / "run", model="iformer_t", recipe=recipe)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- stopping


class Diverging(nn.Module):
    """Its output is not finite from its 9th training step on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.steps = 0

    def forward(self, images: Tensor) -> Tensor:
        self.steps += self.training
        logits: Tensor = self.network(images) * (float("nan") if self.steps > 8 else 1.0)
        return logits


def test_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = replace(job(images, out, fields={**PLAIN, "checkpoint_steps": 4}), model=Diverging(Linear()))
    with pytest.raises(UserError, match=r"not finite at step 8 \(epoch 2\)") as caught:
        train(run)
    assert f"last good checkpoint is {out / 'resume.safetensors'}, of step 8" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(tensor.isfinite().all() for tensor in load_file(out / "resume.safetensors").values())


class Exploding(nn.Module):
    """Its loss is finite, its gradient is not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits + (logits.abs() * 0).sqrt() if self.training else logits


def test_weights_that_are_not_finite_are_never_saved(images: Path, tmp_path: Path) -> None:
    fields = {**PLAIN, "checkpoint_steps": 1}
    run = replace(job(images, tmp_path / "run", fields=fields), model=Exploding(Linear()))
    with pytest.raises(UserError, match=r"not finite at step 1 .*no checkpoint was saved before it"):
        train(run)
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize("file", ["resume.safetensors", "last.safetensors"])
def test_full_disk_stops_with_one_line_and_loses_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    out = tmp_path / "run"
    replacing = files._replacing

    @contextlib.contextmanager
    def filling_up(path: Any) -> Iterator[Any]:
        if Path(path).name == file and (out / file).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with replacing(path) as opened:
            yield opened

    run = job(images, out, fields={"checkpoint_steps": 4})
    monkeypatch.setattr(files, "_replacing", filling_up)
    with pytest.raises(UserError, match="No space left on device") as caught:
        train(run)
    monkeypatch.undo()
    assert "--resume continues from step " in str(caught.value)
    assert "\n" not in str(caught.value)
    step = saved_step(out / "resume.safetensors")
    assert step is not None
    result = train(job(images, out, fields={"checkpoint_steps": 4}, resume=True))
    assert len(result.history) == 3


def test_folder_that_cannot_be_made(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, OSError)):
        train(job(images, tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == ""


def test_batch_that_mixing_cannot_pair(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        train(job(images, tmp_path / "run", fields={"batch_size": 6, "grad_accum": 2}))
    with pytest.raises(UserError, match="fp16"):
        train(job(images, tmp_path / "run", fields={"precision": "fp16"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["accelerate", "torchmetrics", "matplotlib.figure"])
def test_what_is_not_installed_is_named_before_training(
    module: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"run: pip install 'iformer\[train\]'"):
        train(job(images, tmp_path / "run", report=True))
    assert not (tmp_path / "run").exists()


def test_evaluation_batches_that_the_processes_cannot_share() -> None:
    with pytest.raises(ConfigError, match=r"eval_batch_size is 100; expected a multiple of the 8 processes"):
        check_batch_size(tiny_recipe(batch_size=16, eval_batch_size=100), 8)
    check_batch_size(tiny_recipe(batch_size=16, eval_batch_size=96), 8)


def test_batches_of_one_image_are_one_clear_line(images: Path, tmp_path: Path) -> None:
    fields = {"batch_size": 1, "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "grad_accum": 1, "epochs": 1}
    with pytest.raises(ConfigError, match=r"a forward pass has one image, and batch norm needs .* two or more"):
        train(job(images, tmp_path / "run", fields=fields))
