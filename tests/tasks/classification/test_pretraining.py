"""Pretraining by a teacher's features: it learns them, resumes exactly, and is the start of the next training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import iformer
from iformer.cli.main import main
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import VARIANTS
from iformer.data.sources.unlabelled import load_unlabelled
from iformer.errors import ConfigError, DataError, UnknownNameError, UserError, WeightsError
from iformer.tasks.classification.pretraining.features import FeatureTeacher, Level, ProjectedNetwork
from iformer.tasks.classification.pretraining.training import PretrainingWorkload
from iformer.tasks.classification.teacher import TeacherSource
from iformer.training.records.history import read_history
from iformer.training.records.results import TrainResult
from tiny.interruption import stopped_after
from tiny.networks import labelled_classifier, randomize_statistics, tiny_variant
from tiny.programs import torchrun_on_two_processes

SMALL: dict[str, Any] = {
    "model": "iformer_tiny",
    "epochs": 2,
    "batch_size": 18,
    "lr_batch": 18,
    "warmup_epochs": 0,
    "size": 32,
    "workers": 0,
    "precision": "fp32",
    "device": "cpu",
    "tensorboard": False,
}


@pytest.fixture(autouse=True)
def _tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with features that depend on the image."""
    torch.manual_seed(3)
    model = labelled_classifier()
    randomize_statistics(model)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    iformer.save(model, path)
    return str(path)


@pytest.fixture(scope="module")
def run(images: Path, teacher: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A finished pretraining; its last weights are not averaged. Read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
        out = tmp_path_factory.mktemp("runs") / "pretrained"
        augment = {"scale": None, "hflip": 0.0, "color_jitter": 0.0}
        options = {**SMALL, "epochs": 12, "lr": 1e-2, "ema_decay": None, "augment": augment}
        return iformer.pretrain(images, out=out, teacher=teacher, **options)


def test_features_become_those_of_the_teacher(run: TrainResult) -> None:
    first, last = run.history[0], run.history[-1]
    assert last["train_cosine"] > first["train_cosine"] + 30
    assert last["val_cosine"] > 40
    assert run.metrics["cosine"] == pytest.approx(last["val_cosine"], abs=0.1)
    assert run.metrics["loss"] == pytest.approx(1 - run.metrics["cosine"] / 100)
    levels = run.metrics["levels"]
    assert list(levels) == ["stride 4", "stride 8", "stride 16", "stride 32"]
    assert run.metrics["dense"] == pytest.approx(sum(levels.values()) / 4)
    assert run.metrics["cosine"] == pytest.approx((run.metrics["dense"] + run.metrics["pooled"]) / 2)
    assert run.report is not None
    text = run.report.read_text()
    assert "iformer train" in text
    assert "## Classes" not in text


def test_checkpoints_hold_the_backbone_alone(run: TrainResult, capsys: pytest.CaptureFixture[str]) -> None:
    network = iformer.load(run)
    assert network.num_classes == 0
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
    assert load_file(run.paths.last).keys() == network.state_dict().keys()
    assert run.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert main(["predict", str(run.folder), "--weights", str(run.folder)]) == 1
    assert "holds a backbone without classes" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["weights", "model"])
def test_the_next_training_starts_from_it(option: str, run: TrainResult, images: Path, tmp_path: Path) -> None:
    still = {"epochs": 1, "lr": 1e-9, "min_lr": 0.0, "ema_decay": None, "weight_decay": 0.0}
    tuned = iformer.train(
        images, out=tmp_path / "tuned", **{**SMALL, **still, "weights": "pretrained", option: run}
    )
    start, end = (iformer.load(folder).stages[3].blocks[0].state_dict() for folder in (run, tuned))
    for name, tensor in start.items():
        if name.endswith("weight"):
            torch.testing.assert_close(end[name], tensor, atol=1e-6, rtol=1e-5)
    random = iformer.create_model("iformer_tiny").stages[3].blocks[0].state_dict()
    assert any(not torch.allclose(start[name], random[name], atol=1e-2) for name in start)


class StoppedError(Exception):
    pass


@pytest.fixture
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainingWorkload, "write_report", lambda self, result: result.folder)


@pytest.mark.usefixtures("_no_report")
def test_a_run_that_was_stopped_ends_with_the_same_weights(images: Path, teacher: str, tmp_path: Path) -> None:
    options = {**SMALL, "teacher": teacher, "ema_decay": 0.9, "checkpoint_steps": 1, "eval_every": 1}
    whole = iformer.pretrain(images, out=tmp_path / "whole", **options)
    with stopped_after(4, StoppedError):
        iformer.pretrain(images, out=tmp_path / "stopped", **options)
    resumed = iformer.pretrain(out=tmp_path / "stopped", resume=True, device="cpu", tensorboard=False)
    for file in ("last", "best", "resume"):
        one, other = (load_file(folder / f"{file}.safetensors") for folder in (whole.folder, resumed.folder))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    histories = [[record["val_cosine"] for record in read_history(each.paths.log)] for each in (whole, resumed)]
    assert histories[0] == histories[1]


def test_a_resumed_run_needs_the_same_teacher(run: TrainResult, images: Path, tmp_path: Path) -> None:
    other = tmp_path / "teacher.safetensors"  # another file of the same name
    iformer.save(labelled_classifier(), other)
    with pytest.raises(UserError, match="this is not the run that was started there: teacher was"):
        iformer.pretrain(images, out=run.folder, resume=True, teacher=other, device="cpu")


def source(name: str, **options: Any) -> TeacherSource:
    torch.manual_seed(0)
    return TeacherSource(network=timm.create_model(name), preprocessing=Preprocessing(), **options)


def test_each_stage_learns_the_map_of_its_stride() -> None:
    teacher = FeatureTeacher(source("test_resnet"), name="test_resnet", student=Preprocessing())
    assert [level.stage for level in teacher.levels] == [0, 1, 2, 3]
    pooled_BD, maps = teacher(torch.zeros(2, 3, 64, 96))
    assert pooled_BD.shape == (2, teacher.channels)
    shapes = [
        (level.channels, 64 // stride, 96 // stride)
        for level, stride in zip(teacher.levels, (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(map_.shape[1:]) for map_ in maps] == shapes
    transformer = FeatureTeacher(source("test_vit", fixed_size=(160, 160)), name="", student=Preprocessing())
    assert [(level.stage, level.index) for level in transformer.levels] == [(2, 5)]  # the last of its blocks
    _, (map_,) = transformer(torch.zeros(1, 3, 32, 32))  # resized
    assert map_.shape[2:] == (10, 10)


def test_maps_of_another_size_are_interpolated_and_offsets_do_not_count() -> None:
    torch.manual_seed(0)
    levels = (Level(index=0, stage=2, channels=6),)
    model = ProjectedNetwork(labelled_classifier(), channels=5, levels=levels)
    images, pooled_BD, map_ = torch.randn(8, 3, 32, 32), torch.randn(8, 5), torch.randn(8, 6, 3, 3)
    with torch.no_grad():
        for _ in range(60):
            model.train()(images, pooled_BD + 100, [3 * map_ + 100])  # statistics of these features
        shifted = model.eval()(images, pooled_BD + 100, [3 * map_ + 100])
        standard = (
            features - features.mean(axes, keepdim=True) for features, axes in ((pooled_BD, 0), (map_, (0, 2, 3)))
        )
        pooled_BD, map_ = standard
        model = model.eval()
        for norm in (model.pooled_statistics, *model.dense_statistics):
            norm.reset_running_stats()  # type: ignore[operator]
        plain = model(images, pooled_BD / pooled_BD.std(0), [map_ / map_.std((0, 2, 3), keepdim=True)])
    torch.testing.assert_close(shifted, plain, atol=0.03, rtol=0)


@pytest.mark.usefixtures("_no_report")
def test_a_teacher_of_timm_from_a_file(images: Path, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet")
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    options = {**SMALL, "max_steps": 1, "epochs": 1, "teacher": "timm/test_resnet"}
    done = iformer.pretrain(images, out=tmp_path / "run", teacher_weights=tmp_path / "net.safetensors", **options)
    assert done.recipe.teacher_weights == str(tmp_path / "net.safetensors")  # type: ignore[attr-defined]
    with pytest.raises(WeightsError, match=r"missing.safetensors; there is no such file"):
        iformer.pretrain(images, out=tmp_path / "a", teacher_weights=tmp_path / "missing.safetensors", **options)
    options["teacher"] = "timm/test_vit"
    with pytest.raises(
        WeightsError, match=r"net.safetensors does not hold the weights of timm's test_vit: .*Missing"
    ):
        iformer.pretrain(images, out=tmp_path / "b", teacher_weights=tmp_path / "net.safetensors", **options)
    options["teacher"] = str(tmp_path / "run")
    with pytest.raises(UserError, match="teacher_weights is for the name of a timm network"):
        iformer.pretrain(images, out=tmp_path / "c", teacher_weights=tmp_path / "net.safetensors", **options)
    # a pretrained backbone, which has no classes, teaches too
    again = iformer.pretrain(images, out=tmp_path / "d", **options)
    assert again.metrics["images"] == 6
    assert not any((tmp_path / name).exists() for name in "abc")


def test_dry_run(images: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "--data", str(images), "--model", "iformer_tiny", "--teacher", teacher, "--size", "32"]
    options = ["--batch-size", "8", "--set", "workers=0", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*command, *options, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    student = iformer.create_model("iformer_tiny", num_classes=0)
    assert found["parameters"] == sum(parameter.numel() for parameter in student.parameters())
    assert found["gmacs"] > 0
    assert found["teacher_gmacs"] > 0
    assert not (tmp_path / "run").exists()


def test_mistakes_are_one_line(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="--teacher of iformer pretrain is missing; give a network of timm"):
        iformer.pretrain(images, out=out, **SMALL)
    with pytest.raises(UnknownNameError, match="unknown teacher 'resnet5000'"):
        iformer.pretrain(images, out=out, **SMALL, teacher="resnet5000")
    with pytest.raises(ConfigError, match="pretraining does not mix images"):
        iformer.pretrain(images, out=out, **SMALL, teacher="iformer_t", mixup_alpha=0.5)
    with pytest.raises(ConfigError, match="two images or more in each pass"):
        iformer.pretrain(images, out=out, **{**SMALL, "batch_size": 1}, teacher="iformer_t")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["pretrain", "--data", str(empty), "--teacher", "iformer_t", "--out", str(out)]) == 1
    assert capsys.readouterr().err == (
        f"error: {empty}: holds no image; expected image files such as .jpg or .png, at any depth\n"
    )
    assert main(["train", "--task", "pretrain", "--data", str(images), "--out", str(out)]) == 1
    assert "iformer pretrain" in capsys.readouterr().err
    assert not out.exists()


def test_images_at_any_depth_without_labels(tmp_path: Path) -> None:
    places = [tmp_path / "photos" / name for name in ("1.png", "a/2.png", "a/b/c/3.png", "b/4.png")]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), "red").save(place)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    data = load_unlabelled(tmp_path / "photos", val_split=0.25)
    assert (len(data.train), len(data.val)) == (3, 1)
    assert data.train.class_names == ()
    assert [line for line in data.warnings if "broken.jpg" in line] == list(data.warnings)
    again = load_unlabelled(tmp_path / "photos", val_split=0.25)
    assert again.val.fingerprint() == data.val.fingerprint()
    with pytest.raises(DataError, match=r"1 warning.*broken.jpg"):
        load_unlabelled(tmp_path / "photos", strict=True)
    with pytest.raises(ConfigError, match="val_split is 0"):
        load_unlabelled(tmp_path / "photos", val_split=0)
    for place in places[1:]:
        place.unlink()
    with pytest.raises(DataError, match="holds 1 image that can be read; expected two or more"):
        load_unlabelled(tmp_path / "photos")


def test_of_a_labelled_data_set_only_the_training_images_are_taken(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [
        f"{path},{path.parent.name},{split}"
        for split in ("train", "val")
        for path in (images / split).rglob("*.png")
    ]
    table.write_text("\n".join(["image,label,split", *rows]))
    data = load_unlabelled(table)
    names = {str(sample) for each in (data.train, data.val) for sample in each.samples}
    assert names == {str(path) for path in (images / "train").rglob("*.png")}


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize(
    "parallel", [pytest.param("ddp", marks=pytest.mark.sweep), pytest.param("fsdp", marks=pytest.mark.full)]
)
def test_two_processes(parallel: str, images: Path, teacher: str, tmp_path: Path) -> None:
    fields = {"parallel": parallel, "ema_decay": "null", "precision": "fp32", "workers": 0, "log_every": 1}
    options = [f"--set={name}={value}" for name, value in fields.items()]
    options += ["--data", str(images), "--teacher", teacher, "--model", teacher, "--out", str(tmp_path / "run")]
    options += ["--epochs", "1", "--batch-size", "18", "--size", "32", "--device", "cpu", "--no-tensorboard"]
    torchrun_on_two_processes("iformer", "pretrain", *options)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert metrics["images"] == 6
    assert iformer.load(tmp_path / "run").num_classes == 0
