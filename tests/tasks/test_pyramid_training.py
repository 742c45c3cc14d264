"""Training of detection and segmentation: it learns, resumes, and agrees over processes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from iformer.errors import DataError, MissingDependencyError, UserError, WeightsError
from iformer.models.factory import build
from iformer.models.light_detector import LightDetector
from iformer.models.segmenter import Segmenter
from iformer.models.weights.checkpoint import save
from iformer.models.weights.resolve import load
from iformer.tasks.detection.training import detection_job
from iformer.tasks.training_job import training_job
from iformer.training.loop import train
from iformer.training.records.history import read_history
from tiny.dense import light_detector, rcnn, semantic_fpn
from tiny.interruption import stopped_after
from tiny.networks import labelled_classifier
from tiny.programs import run_on_two_processes
from tiny.pyramid import JOBS, backbone_config, detection, run_settings, segmentation
from tiny.shapes import make_shapes

TASKS = tuple(JOBS)
RECIPES = {
    "detect": "detection", "light": "detection-light",
    "segment": "segmentation", "light-segment": "segmentation-light",
}  # fmt: skip


@pytest.mark.parametrize(("task", "augment"), [("light", {"mosaic": 0.5}), ("light-segment", {}), ("segment", {})])
def test_training_at_several_sizes(
    task: str, augment: dict[str, float], shapes_data: Path, tmp_path: Path
) -> None:
    fields = {"size_schedule": [[0, 64], [1, 96]], "epochs": 2, **augment}
    train(JOBS[task](shapes_data, tmp_path / "run", fields=fields))
    rows = [row for row in read_history(tmp_path / "run" / "log.jsonl") if "size" in row]
    assert {(row["epoch"], row["size"]) for row in rows} == {(1, 64), (2, 96)}


@pytest.mark.full
def test_a_detector_overfits_eight_images(shapes_data: Path, tmp_path: Path) -> None:
    fields = {"epochs": 50, "warmup_epochs": 2, "hflip": 0.0, "eval_every": 50, "ema_decay": 0.9}
    result = train(detection(shapes_data, tmp_path / "run", memorise=True, fields=fields, report=True))
    assert result.metrics["box_ap50"] > 90
    assert result.metrics["mask_ap50"] > 90
    assert result.metrics["images"] == 8
    report = (tmp_path / "run" / "report.md").read_text()
    for words in ("Box AP", "| disc |", "predictions.png", "curves.png", "box_head_channels"):
        assert words in report
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 10_000
    network = load(tmp_path / "run" / "last.safetensors")
    assert network.metadata.class_names == ("disc", "square")
    assert network.metadata.metrics["box_ap"] == result.metrics["box_ap"]
    assert set(network.metadata.provenance) >= {"command", "versions", "data", "recipe"}


@pytest.mark.full
def test_a_segmenter_overfits_eight_images(shapes_data: Path, tmp_path: Path) -> None:
    fields = {"epochs": 60, "warmup_epochs": 2, "hflip": 0.0, "eval_every": 60, "ema_decay": 0.9}
    result = train(segmentation(shapes_data, tmp_path / "run", memorise=True, fields=fields, report=True))
    assert result.metrics["miou"] > 95
    assert (tmp_path / "run" / "report.md").read_text().count("| background |") == 1
    network = load(tmp_path / "run" / "last.safetensors")
    assert network.metadata.class_names == ("background", "disc", "square")


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("task", TASKS)
def test_a_stopped_run_ends_with_the_same_weights(shapes_data: Path, tmp_path: Path, task: str) -> None:
    """Stopped in the middle of the last epoch, which `max_steps` cuts short."""
    fields: dict[str, Any] = {"epochs": 3, "batch_size": 2, "max_steps": 7, "checkpoint_steps": 1}
    make = JOBS[task]
    train(make(shapes_data, tmp_path / "whole", fields=fields))
    with stopped_after(6, StoppedError):
        train(make(shapes_data, tmp_path / "stopped", fields=fields))
    result = train(make(shapes_data, tmp_path / "stopped", fields=fields, resume=True))
    assert [record["step"] for record in result.history] == [4, 7]
    one, other = (load_file(tmp_path / name / "resume.safetensors") for name in ("whole", "stopped"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "stopped")]
    assert metrics[0]["metrics"] == metrics[1]["metrics"]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_measure_as_one(tmp_path: Path, task: str) -> None:
    """Three validation images, the last with no object: in a step of two the second process gets only that
    one, or none at all; and one of them may train on images with no object alone."""
    data = make_shapes(tmp_path / "data", train=4, val=3, empty=2)
    fields = {"epochs": 1, "batch_size": 2, "eval_batch_size": 2, "ema_decay": None}
    run_on_two_processes("tiny.pyramid", task, str(data), str(tmp_path / "two"), json.dumps(fields))
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())["metrics"]
    assert two["images"] == 3
    # the same weights, measured by one process
    network = load(tmp_path / "two" / "last.safetensors")
    if "segment" not in task:
        from iformer.data.sources.detection import load_detection
        from iformer.tasks.detection.evaluate import evaluate_set

        one = evaluate_set(network, load_detection(data, workers=1).val, workers=0).metrics  # type: ignore[arg-type]
    else:
        from iformer.data.sources.masks import load_semantic
        from iformer.tasks.segmentation.evaluate import evaluate_set

        one = evaluate_set(network, load_semantic(data, workers=1).val, workers=0).metrics  # type: ignore[arg-type]
    assert one == two


def test_backbone_starts_from_a_classifier(shapes_data: Path, tmp_path: Path) -> None:
    from iformer.config.preprocessing import Preprocessing
    from iformer.data.sources.detection import load_detection

    classifier = build(backbone_config().with_options(num_classes=4))
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), value_range=(0, 4095))
    save(classifier, tmp_path / "classifier.safetensors", preprocessing=preprocessing)
    fields = {"attention": "hybrid", "windows": "paper"}
    recipe = detection(shapes_data, tmp_path / "run", fields=fields).recipe
    settings = run_settings(recipe, tmp_path / "run")
    job = detection_job(
        load_detection(shapes_data, workers=1), settings, model=str(tmp_path / "classifier.safetensors")
    )
    pyramid = job.model.pyramid
    assert torch.equal(pyramid.body.stem.conv1.conv.weight, classifier.stem.conv1.conv.weight)  # type: ignore[union-attr]
    assert (job.preprocessing.mean, job.preprocessing.value_range) == ((0.5, 0.5, 0.5), (0, 4095))
    assert job.model.config.backbone.stages[2].windows is not None


def trained(task: str, data: Path, folder: Path, class_names: tuple[str, ...]) -> Any:
    """A checkpoint of a random network of other sizes than the default recipe's."""
    network = JOBS[task](data, folder / "run").model
    config = replace(network.config, num_classes=len(class_names))
    network = type(network)(replace(config, value_range=(0, 4095)))
    save(network, folder / "trained.safetensors", class_names=class_names)
    return network


@pytest.mark.parametrize("option", ["model", "weights"])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_trained_networks_are_fine_tuned(
    shapes_data: Path, tmp_path: Path, task: str, same: bool, option: str
) -> None:
    """All weights of the same classes; of others all but the layers whose shape depends on the classes."""
    names = ("background", "disc", "square") if "segment" in task else ("disc", "square")
    given = names if same else tuple(reversed(names))
    network = trained(task, shapes_data, tmp_path, given)
    path = str(tmp_path / "trained.safetensors")
    overrides = {"weights": path} if option == "weights" else {}
    said: list[str] = []
    job = training_job(
        tmp_path / "tuned",
        data=str(shapes_data),
        recipe=RECIPES[task],
        model=path if option == "model" else None,
        overrides={"size": 96, "max_size": 1000, "batch_size": 8, **overrides},
        device="cpu",
        warn=said.extend,
    )
    assert f"fine-tuning {path}: {'the same' if same else 'other'} classes" in said[-1]
    channels = [[stage.channels for stage in model.config.backbone.stages] for model in (job.model, network)]
    assert channels[0] == channels[1], "the recipe may only add windows to the attention"
    assert job.preprocessing.size[0] == 96
    assert job.preprocessing.value_range == (0, 4095)
    before, after = network.state_dict(), job.model.state_dict()
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    heads = {
        "detect": ("box_predictor.", "mask_fcn_logits"),
        "light": tuple(f"levels.{level}.classes.1." for level in range(3)),
        "segment": ("head.classify",),
        "light-segment": ("head.classify",),
    }[task]
    expected = set() if same else {key for key in before if any(head in key for head in heads)}
    # biases of new layers may start at the same values
    assert changed <= expected
    assert {key for key in expected if key.endswith("weight")} <= changed


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("task", ["segment", "light-segment"])
def test_segmenters_are_fine_tuned_on_masks_with_a_palette(
    shapes_data: Path, tmp_path: Path, task: str, same: bool
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes_data, data)
    colours = ((110, 110, 110), (240, 61, 61), (42, 77, 165))
    for path in (data / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            coloured = Image.fromarray(np.asarray(mask))
        coloured.putpalette([value for colour in colours for value in colour])
        coloured.save(path)
    names = ("background", "disc", "square") if same else ("background", "disc", "square", "star")
    trained(task, shapes_data, tmp_path, names)
    job = training_job(
        tmp_path / "tuned",
        data=str(data),
        recipe=RECIPES[task],
        overrides={"size": 96, "batch_size": 8, "weights": str(tmp_path / "trained.safetensors")},
        device="cpu",
    )
    assert job.model.config.palette == colours


def test_a_trained_network_of_another_size_or_kind_is_named(shapes_data: Path, tmp_path: Path) -> None:
    trained("detect", shapes_data, tmp_path, ("disc", "square"))
    path = str(tmp_path / "trained.safetensors")

    def tune(**options: Any) -> None:
        training_job(tmp_path / "tuned", data=str(shapes_data), device="cpu", **options)

    with pytest.raises(UserError, match="on tiny, --model is iformer_m"):
        tune(task="detect", model="iformer_m", overrides={"weights": path})
    with pytest.raises(UserError, match="expected one network to fine-tune"):
        tune(task="detect", model=path, overrides={"weights": path})
    with pytest.raises(UserError, match="another kind of detector; give --detector mask-rcnn"):
        tune(recipe="detection-light", model=path)
    save(rcnn(masks=False), tmp_path / "boxes.safetensors")
    with pytest.raises(UserError, match="another kind of detector; give --detector faster-rcnn"):
        tune(recipe="detection-light", model=str(tmp_path / "boxes.safetensors"))


@pytest.mark.parametrize("given", ["model", "weights"])
@pytest.mark.parametrize(
    ("make", "option"),
    [(light_detector, "--detector light"), (semantic_fpn, "--segmenter semantic-fpn")],
)
def test_a_dense_network_does_not_start_a_classifier(
    images: Path, tmp_path: Path, make: Callable[[], LightDetector | Segmenter], option: str, given: str
) -> None:
    path = str(tmp_path / "dense.safetensors")
    save(make(), path)
    start: dict[str, Any] = {"model": path} if given == "model" else {"overrides": {"weights": path}}
    with pytest.raises(
        WeightsError, match=f"the recipe finetune is for classifiers; 'iformer train {option}' .* for --model"
    ):
        training_job(tmp_path / "run", data=str(images), device="cpu", **start)


def test_the_backbone_of_a_dense_network_starts_a_classifier(images: Path, tmp_path: Path) -> None:
    save(light_detector(), tmp_path / "dense.safetensors")
    save(load(tmp_path / "dense.safetensors", features_only=True), tmp_path / "backbone.safetensors")
    model = str(tmp_path / "backbone.safetensors")
    job = training_job(tmp_path / "run", data=str(images), model=model, device="cpu")
    assert job.model.num_classes == 3


def test_weights_of_another_size_can_be_the_model(images: Path, tmp_path: Path) -> None:
    save(labelled_classifier(), tmp_path / "tiny.safetensors")
    path = str(tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match=r"to use their network, give the weights as the model \(--model\)$"):
        training_job(tmp_path / "run", data=str(images), overrides={"weights": path}, device="cpu")
    assert training_job(tmp_path / "run", data=str(images), model=path, device="cpu").model_name == path


def test_masks_that_are_not_there(tmp_path: Path) -> None:
    data = make_shapes(tmp_path / "data")
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="--detector faster-rcnn trains on boxes alone"):
        detection(data, tmp_path / "run")
    result = train(detection(data, tmp_path / "run", fields={"masks": False, "epochs": 1}))
    assert "mask_ap" not in result.metrics


def test_missing_package_is_told_before_training(
    shapes_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'iformer\[detect\]'"):
        detection(shapes_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_data_set_is_not_resumed(tmp_path: Path) -> None:
    data = make_shapes(tmp_path / "data", train=4, val=2)
    fields = {"epochs": 1, "batch_size": 2}
    train(segmentation(data, tmp_path / "run", fields=fields))
    (data / "images" / "train" / "0.png").unlink()
    with pytest.raises(UserError, match="the training images or their labels changed"):
        train(segmentation(data, tmp_path / "run", fields=fields, resume=True))
