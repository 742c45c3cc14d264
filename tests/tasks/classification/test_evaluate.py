"""Evaluation: every image once, in the network's order of classes, for anything that gives logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.samples import Sample
from iformer.data.sources import load_data
from iformer.data.transforms import Normalize, eval_transform
from iformer.errors import DataError
from iformer.models.factory import build
from iformer.tasks.classification.dataset import with_class_order
from iformer.tasks.classification.evaluate import (
    NetworkPredictor,
    evaluate,
    evaluate_on_data,
    evaluation_loader,
)
from tiny.classification import tiny_config

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
    assert set(evaluation.summary) == {"top1", "loss", "images"}


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


def test_parts_of_the_data(images: Path) -> None:
    metadata = Metadata(preprocessing=PREPROCESSING)
    for part, count in (("train", 48), ("val", 12), ("all", 60)):
        evaluation, _ = evaluate_on_data(darkest_channel, metadata, 3, str(images), split=part, workers=0)  # type: ignore[arg-type]
        assert evaluation.metrics["images"] == count


def test_images_that_were_trained_on_are_pointed_out(images: Path) -> None:
    split = load_data(str(images), workers=1)
    trained_on = {"name": str(images), "train_fingerprint": split.train.fingerprint()}
    metadata = Metadata(preprocessing=PREPROCESSING, provenance={"data": trained_on})

    def notes(part: str, **changes: str) -> list[str]:
        known = replace(metadata, provenance={"data": {**trained_on, **changes}})
        _, lines = evaluate_on_data(darkest_channel, known, 3, str(images), split=part, workers=0)  # type: ignore[arg-type]
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
