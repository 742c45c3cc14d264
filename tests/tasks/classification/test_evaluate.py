"""Evaluation: each image once, in the network's order of classes, for networks and artifacts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.samples import Sample
from iformer.data.sources import load_data
from iformer.data.transforms import Normalize, eval_transform
from iformer.errors import DataError
from iformer.models.factory import build
from iformer.models.folding import fold
from iformer.tasks.classification.dataset import with_class_order
from iformer.tasks.classification.evaluate import (
    NetworkPredictor,
    evaluate,
    evaluate_data,
    evaluate_on_data,
    evaluation_loader,
)
from iformer.tasks.interface import EvaluateOptions
from iformer.training.network.precision import Precision
from tiny.classification import tiny_config
from tiny.networks import randomize

PREPROCESSING = Preprocessing(size=(32, 32), crop_pct=1.0)


def darkest_channel(images: Tensor) -> Tensor:
    """Logits that are right on the tiny images, where class k has a dark channel k."""
    return -images.float().mean((2, 3)) / 10


def right_about_one_class(images: Tensor) -> Tensor:
    """Logits that take the first class for the last and the other way round."""
    return darkest_channel(images).flip(1)


def test_every_image_comes_once_and_in_order(images: Path) -> None:
    image_set = load_data(str(images), workers=1).val
    seen: list[int] = []

    def predictor(batch: Tensor) -> Tensor:
        assert batch.dtype == torch.uint8
        assert batch.shape[1:] == (3, 32, 32)
        seen.append(len(batch))
        return darkest_channel(batch)

    with evaluation_loader(image_set, PREPROCESSING, batch_size=5, workers=0) as loader:
        evaluation = evaluate(predictor, loader)
    assert seen == [5, 5, 2]
    assert evaluation.indices.tolist() == list(range(12))
    assert evaluation.labels.tolist() == image_set.labels.tolist()
    np.testing.assert_allclose(evaluation.probabilities.sum(1), 1, rtol=1e-5)
    assert evaluation.metrics["top1"] == 100.0
    assert evaluation.metrics["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert set(evaluation.summary) == {"top1", "loss", "images", "ece"}


def test_metrics_are_of_the_predictions(images: Path) -> None:
    image_set = load_data(str(images), workers=1).val
    with evaluation_loader(image_set, PREPROCESSING, batch_size=64, workers=0) as loader:
        evaluation = evaluate(right_about_one_class, loader)
    answers = evaluation.probabilities.argmax(1)
    right = 100 * (answers == evaluation.labels).mean()
    assert right < 100
    assert evaluation.metrics["top1"] == pytest.approx(right, abs=1e-3)
    true = evaluation.probabilities[np.arange(12), evaluation.labels]
    assert evaluation.metrics["loss"] == pytest.approx(-np.log(true).mean(), rel=1e-4)


@pytest.mark.parametrize("channels_last", [True, False])
def test_network_predictor_is_network_after_normalisation(images: Path, channels_last: bool) -> None:
    network = build(tiny_config()).eval()
    path = load_data(str(images), workers=1).val.files[0]
    pixels = eval_transform(PREPROCESSING)(read_image(path))[None]
    predictor = NetworkPredictor(network, PREPROCESSING, channels_last=channels_last)
    expected = network(Normalize(PREPROCESSING)(pixels))
    torch.testing.assert_close(predictor(pixels), expected.detach())


def test_bf16_predictor_answers_in_fp32() -> None:
    network = build(tiny_config()).eval()
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    exact = NetworkPredictor(network, PREPROCESSING)(pixels)
    rounded = NetworkPredictor(network, PREPROCESSING, precision="bf16")(pixels)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.05, rtol=0.05)


def test_labels_are_mapped_to_the_network_s_order(images: Path) -> None:
    image_set = load_data(str(images), workers=1).val
    mapped = with_class_order(image_set, ("red", "blue", "green"))
    assert mapped.class_names == ("red", "blue", "green")
    for before, after in zip(image_set.samples, mapped.samples, strict=True):
        assert isinstance(after, Sample)
        assert str(before) == str(after)
        assert image_set.class_names[before.label] == mapped.class_names[after.label]


def test_names_that_are_not_utf_8_are_those_of_early_checkpoints(images: Path) -> None:
    image_set = replace(load_data(str(images), workers=1).val, class_names=("blue", r"vert_\xe9", "red"))
    mapped = with_class_order(image_set, ("red", "blue", "vert_\udce9"))
    assert mapped.labels.tolist() == [(1, 2, 0)[label] for label in image_set.labels]


def test_other_classes_are_an_error_that_names_them(images: Path) -> None:
    image_set = load_data(str(images), workers=1).val
    with pytest.raises(DataError, match=r"only the network knows: cyan; only the data has: green"):
        with_class_order(image_set, ("red", "blue", "cyan"))


def test_evaluation_by_name_uses_the_network_s_classes(images: Path) -> None:
    metadata = Metadata(class_names=("red", "green", "blue"), preprocessing=PREPROCESSING)
    evaluation, notes = evaluate_on_data(right_about_one_class, metadata, 3, str(images), workers=0)
    assert evaluation.metrics["top1"] == 100.0
    assert evaluation.image_set.class_names == ("red", "green", "blue")
    assert notes == []


def test_outputs_that_are_not_finite_are_an_error_that_names_the_image(images: Path) -> None:
    metadata = Metadata(class_names=("red", "green", "blue"), preprocessing=PREPROCESSING)

    def overflows(batch: Tensor) -> Tensor:
        logits = right_about_one_class(batch)
        logits[1] = torch.nan
        return logits

    second = load_data(str(images), workers=1).val.samples[1]
    with pytest.raises(DataError, match=f"{second}: the network's outputs overflow on this image"):
        evaluate_on_data(overflows, metadata, 3, str(images), workers=0)


def test_parts_of_the_data(images: Path) -> None:
    metadata = Metadata(preprocessing=PREPROCESSING)
    for split, count in (("train", 48), ("val", 12), ("all", 60)):
        evaluation, _ = evaluate_on_data(darkest_channel, metadata, 3, str(images), split=split, workers=0)  # type: ignore[arg-type]
        assert evaluation.metrics["images"] == count


def test_images_that_were_trained_on_are_pointed_out(images: Path) -> None:
    split = load_data(str(images), workers=1)
    trained_on = {"name": str(images), "train_fingerprint": split.train.fingerprint()}
    metadata = Metadata(preprocessing=PREPROCESSING, provenance={"data": trained_on})

    def notes(split: str, **changes: str) -> list[str]:
        known = replace(metadata, provenance={"data": {**trained_on, **changes}})
        _, lines = evaluate_on_data(darkest_channel, known, 3, str(images), split=split, workers=0)  # type: ignore[arg-type]
        return lines

    assert notes("val") == []
    assert "trained on some of these images" in notes("all")[0]
    assert "may have been trained" in notes("val", train_fingerprint="other")[0]
    assert notes("val", train_fingerprint="other", name="elsewhere") == []


def test_number_of_classes_has_to_be_the_network_s(images: Path) -> None:
    with pytest.raises(DataError, match="has 3 classes, the network has 5 outputs"):
        evaluate_on_data(darkest_channel, Metadata(preprocessing=PREPROCESSING), 5, str(images), workers=0)


def test_evaluation_leaves_the_network_alone(images: Path) -> None:
    network = build(tiny_config()).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    image_set = load_data(str(images), workers=1).val
    with evaluation_loader(image_set, PREPROCESSING, batch_size=4, workers=0) as loader:
        evaluate(NetworkPredictor(network, PREPROCESSING), loader)
    assert isinstance(network, nn.Module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_by_name_gives_what_the_network_itself_gives(images: Path, precision: Precision) -> None:
    network = build(tiny_config()).eval()
    randomize(network)
    network.head.classifier.linear.weight.data *= 30  # probabilities that differ from image to image
    network.metadata = Metadata(class_names=("blue", "green", "red"), preprocessing=PREPROCESSING)
    options = EvaluateOptions(device=torch.device("cpu"), precision=precision, workers=0)
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    found, _ = evaluate_data(network, str(images), options)
    assert len(calls) == (0 if precision == "fp32" else 1), "only fp32 is exact enough to be computed folded"
    expected, _ = evaluate_on_data(
        NetworkPredictor(network, PREPROCESSING, precision=precision), network.metadata, 3, str(images), workers=0
    )
    assert expected.probabilities.std(0).max() > 1e-3
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    assert found.metrics["top1"] == expected.metrics["top1"]
    assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], abs=1e-5)
    again, _ = evaluate_data(fold(network), str(images), options)
    assert again.metrics["top1"] == found.metrics["top1"]


@pytest.fixture
def holdout(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with a number of images in each class folder."""

    def make(**counts: int) -> Path:
        generator = np.random.default_rng(0)
        for name, count in counts.items():
            folder = tmp_path / "holdout" / name.replace("__", "/")
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        return tmp_path / "holdout"

    return make


@pytest.mark.parametrize(
    ("counts", "options", "images", "note"),
    [
        ({"red": 5}, {}, 5, "no image of 2 of the network's 3 classes: green, blue"),
        ({"red": 5, "blue": 1}, {}, 6, "no image of 1 of the network's 3 classes: green"),
        ({"red": 6, "green": 6, "blue": 6}, {}, 18, ""),
        (
            {"red": 6, "green": 6, "blue": 6},
            {"split": "val"},
            4,
            "evaluated 4 of 18 images: the data is not split, and val is 20 % of each class; --split all",
        ),
        ({"test__red": 4, "test__blue": 4}, {}, 8, "no image of 1 of the network's 3 classes: green"),
    ],
)
def test_any_images_of_the_network_s_classes_are_evaluated(
    holdout: Callable[..., Path], counts: dict[str, int], options: dict[str, Any], images: int, note: str
) -> None:
    metadata = Metadata(class_names=("red", "green", "blue"), preprocessing=PREPROCESSING)
    evaluation, notes = evaluate_on_data(
        darkest_channel, metadata, 3, str(holdout(**counts)), workers=0, **options
    )
    assert evaluation.metrics["images"] == images
    assert sum(line.startswith(note) for line in notes) == (1 if note else len(notes))
    names = {name.rpartition("__")[2] for name in counts}
    for name, scores in evaluation.metrics["per_class"].items():
        assert (scores["recall"] is None) == (name not in names)
    recalls = [scores["recall"] for scores in evaluation.metrics["per_class"].values() if scores["support"]]
    assert evaluation.metrics["macro"]["recall"] == pytest.approx(np.mean(recalls), abs=1e-3)
    assert evaluation.split == ("val" if options or any("__" in name for name in counts) else "all")


def test_data_of_the_training_stays_split(holdout: Callable[..., Path]) -> None:
    data = holdout(red=6, green=6, blue=6)
    provenance = {"data": {"name": str(data), "val_split": 0.5}}
    metadata = Metadata(preprocessing=PREPROCESSING, provenance=provenance)
    evaluation, notes = evaluate_on_data(darkest_channel, metadata, 3, str(data), workers=0)
    assert evaluation.metrics["images"] == 9
    assert notes[0].startswith("evaluated 9 of 18 images: the data is not split, and val is 50 % of each class")


def test_the_validation_images_of_the_training_are_named(holdout: Callable[..., Path]) -> None:
    data = str(holdout(red=6, green=6, blue=6))
    known = load_data(data, val_split=0.5).val.fingerprint()
    provenance = {"data": {"name": data, "val_split": 0.5, "val_fingerprint": known}}
    metadata = Metadata(preprocessing=PREPROCESSING, provenance=provenance)
    _, notes = evaluate_on_data(darkest_channel, metadata, 3, data, workers=0)
    assert "val is 50 % of each class, the validation images of the network's training; --split all" in notes[0]
    _, notes = evaluate_on_data(darkest_channel, metadata, 3, data, workers=0, split="val")
    assert not any("the data is not split" in line for line in notes)


def test_an_empty_split_is_an_error_that_names_the_other(holdout: Callable[..., Path]) -> None:
    metadata = Metadata(class_names=("red", "green", "blue"), preprocessing=PREPROCESSING)
    with pytest.raises(DataError, match=r"no image in the train split; --split all takes the images of both"):
        evaluate_on_data(darkest_channel, metadata, 3, str(holdout(test__red=2)), split="train", workers=0)
