"""The report of a run, from synthetic results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.config.metadata import Metadata
from iformer.data.samples import FileSample, ImageSet
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.classification.evaluate import ClassificationEvaluation
from iformer.tasks.classification.figures import draw_confusion, worst_mistakes
from iformer.tasks.classification.metric import MATRIX_CLASSES, ClassificationMetric, confusion_entries
from iformer.tasks.classification.report import wilson_interval, write_report
from iformer.tasks.confusion import MOST_CONFUSED
from iformer.training.records.results import TrainResult


def make_result(folder: Path, *, classes: int, images: int, wrong: float = 0.2) -> TrainResult:
    """A run whose network answers at random but for its bias towards the truth."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, images)
    names = tuple(f"class {k:03d}" if k % 7 else f"a long name | of the class number {k}" for k in range(classes))
    logits = generator.normal(size=(images, classes)).astype(np.float32)
    right = generator.random(images) > wrong
    logits[np.arange(images)[right], labels[right]] += 6
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    samples = []
    for index, label in enumerate(labels):
        path = folder / f"image{index % 30}.png"
        if not path.exists():
            Image.fromarray(generator.integers(0, 255, (40 + index % 30, 50, 3), dtype=np.uint8)).save(path)
        samples.append(FileSample(path, label=int(label)))
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    per_class = {
        name: {
            "precision": 100 * confusion[k, k] / max(1, confusion[:, k].sum()),
            "recall": 100 * confusion[k, k] / max(1, confusion[k].sum()),
            "f1": 50.0,
            "support": int(confusion[k].sum()),
        }
        for k, name in enumerate(names)
    }
    top1 = 100 * float((predicted == labels).mean())
    metrics: dict[str, Any] = {
        "top1": top1,
        "loss": 0.5,
        "images": images,
        "macro": {"precision": 80.0, "recall": 79.0, "f1": 79.5},
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }
    image_set = ImageSet(name="synthetic val", class_names=names, samples=tuple(samples), root=folder)
    history = [
        {
            "epoch": epoch,
            "step": epoch * 10,
            "seconds": 5.0 * epoch,
            "lr": 1e-3 * (1 - epoch / 31),
            "size": 128 if epoch <= 20 else 160,
            "train_loss": 2 / epoch + 0.3,
            "train_accuracy": 90 - 60 / epoch,
            "images_per_second": 100.0,
            "data_wait": 0.02,
        }
        | ({"val_loss": 2 / epoch + 0.4, "val_top1": 85 - 50 / epoch} if epoch % 2 == 0 else {})
        for epoch in range(1, 31)
    ]
    return TrainResult(
        folder=folder,
        model_name="iformer_t",
        data_name="elpv",
        recipe=ClassificationRecipe(epochs=30, lr=1e-3, ema_decay=0.999),
        recipe_name="elpv",
        parameters=2_890_000,
        train_images=4 * images,
        evaluation=ClassificationEvaluation(
            image_set=image_set,
            indices=np.arange(images),
            labels=labels,
            probabilities=probabilities,
            metrics=metrics,
        ),
        best={"epoch": 28, "step": 280, "top1": 83.2},
        history=history,
        seconds=3725.0,
        precision="bf16",
        device="CPU (some CPU, 2 threads)",
        processes=1,
        metadata=Metadata(class_names=names, provenance={"command": "iformer train --data elpv", "commit": "abc"}),
        warnings=["train/x.png: the file is empty (0 bytes)"],
    )


@pytest.mark.parametrize("classes", [2, 60])
def test_report_shows_every_picture_and_number(tmp_path: Path, classes: int) -> None:
    result = make_result(tmp_path, classes=classes, images=300)
    text = write_report(result).read_text()
    for picture in ("curves.png", "confusion.png", "reliability.png", "mistakes.png"):
        assert f"]({picture})" in text
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 300
            assert len(np.unique(np.asarray(image.convert("L")))) > 20, "the picture is empty"
    assert f"Top-1 {result.metrics['top1']:.2f} %" in text
    assert "83.20 %" in text
    assert "optimistic" in text
    assert "1 h 02 min" in text
    assert "iformer train --data elpv" in text
    assert "the file is empty" in text
    assert text.count(r"a long name \| of the class") >= 1, "a | in a class name would break the table"


def test_no_mistakes_leaves_no_gallery_of_an_older_run(tmp_path: Path) -> None:
    (tmp_path / "mistakes.png").write_bytes(b"older")
    result = make_result(tmp_path, classes=2, images=40, wrong=-1)
    assert result.metrics["top1"] == 100
    assert "mistakes.png" not in write_report(result).read_text()
    assert not (tmp_path / "mistakes.png").exists()


def test_images_that_are_gone_do_not_stop_the_report(tmp_path: Path) -> None:
    result = make_result(tmp_path, classes=3, images=60)
    for image in tmp_path.glob("image*.png"):
        image.unlink()
    assert "can no longer be read" in write_report(result).read_text()


def test_worst_mistakes_come_first_and_are_mistakes(tmp_path: Path) -> None:
    result = make_result(tmp_path, classes=4, images=200)
    mistakes = worst_mistakes(result.evaluation, limit=10)
    gaps = [mistake.wrong[0][1] - mistake.true[0][1] for mistake in mistakes]
    assert gaps == sorted(gaps, reverse=True)
    assert all(mistake.true[0][0] != mistake.wrong[0][0] for mistake in mistakes)
    assert len(mistakes) == 10


def test_many_classes_show_the_most_confused(tmp_path: Path) -> None:
    confusion = np.diag(np.full(100, 50))
    confusion[97, 3] = 40
    from iformer.tasks.confusion import classes_to_show

    shown = classes_to_show(confusion_entries(confusion), 100)
    assert {3, 97} <= set(shown.tolist())
    assert len(shown) <= MOST_CONFUSED
    draw_confusion(confusion.tolist(), [f"c{k}" for k in range(100)], tmp_path / "c.png")
    assert (tmp_path / "c.png").exists()


def test_wilson_interval_holds_the_share() -> None:
    low, high = wilson_interval(0.86, 656)
    assert low == pytest.approx(0.8313, abs=2e-3)
    assert high == pytest.approx(0.8846, abs=2e-3)
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_confusion_of_very_many_classes_has_only_its_entries(tmp_path: Path) -> None:
    classes = MATRIX_CLASSES + 1
    names = tuple(f"c{k}" for k in range(classes))
    labels, predicted = torch.tensor([0, 0, 0, 7, classes - 1]), torch.tensor([0, 5, 5, 7, 2])
    metric = ClassificationMetric(names)
    metric.update(torch.nn.functional.one_hot(predicted, classes).float(), {"labels": labels})
    metrics = metric.compute()
    assert metrics["confusion"] == {
        "true": [0, 0, 7, classes - 1],
        "predicted": [0, 5, 7, 2],
        "images": [1, 2, 1, 1],
    }
    assert metrics["per_class"]["c0"]["support"] == 3
    assert metrics["images"] == 5
    dense = np.zeros((classes, classes), dtype=int)
    np.add.at(dense, (labels.numpy(), predicted.numpy()), 1)
    assert np.array_equal(confusion_entries(dense.tolist()), confusion_entries(metrics["confusion"]))
    draw_confusion(metrics["confusion"], names, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000
