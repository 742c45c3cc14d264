"""Prediction, attention maps and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.data.images import read_image
from iformer.data.transforms import Normalize, eval_transform
from iformer.errors import OutputError, UserError
from iformer.models.classifier import Classifier
from iformer.models.finite import NOT_FINITE
from iformer.models.folding import fold
from iformer.tasks import pictures
from iformer.tasks.classification import predict as prediction
from iformer.tasks.classification.explain import AttentionRecorder, overlay
from iformer.tasks.classification.predict import Answer, Failure, Predictor, draw_explanations, draw_predictions
from tiny.networks import randomize, tiny_config


def expected(model: Classifier, path: Path) -> torch.Tensor:
    pixels = eval_transform(model.metadata.preprocessing)(read_image(path))[None]
    with torch.inference_mode():
        probabilities: torch.Tensor = model(Normalize(model.metadata.preprocessing)(pixels)).softmax(1)[0]
    return probabilities


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
def test_answers_are_the_networks_in_order(
    model: Classifier, photographs: list[Path], batch_size: int, attention: bool
) -> None:
    predictor = Predictor(model, top_k=5, batch_size=batch_size, workers=2, attention=attention)
    answers = list(predictor.predict(photographs))
    assert [answer.path for answer in answers] == photographs
    for answer in answers:
        assert isinstance(answer, Answer)
        probabilities = dict(answer.classes)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        for name, probability in zip(
            model.metadata.class_names, expected(model, answer.path).tolist(), strict=True
        ):
            assert probabilities[name] == pytest.approx(probability, abs=1e-5)


def test_broken_files_fail_alone_and_in_their_place(
    model: Classifier, photographs: list[Path], tmp_path: Path
) -> None:
    empty, text, cut = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "cut.jpg"
    empty.touch()
    text.write_text("not an image")
    cut.write_bytes(photographs[0].read_bytes()[:300])
    paths = [empty, photographs[1], text, *photographs[2:5], cut]
    outcomes = list(Predictor(model, batch_size=2).predict(paths))
    assert [outcome.path for outcome in outcomes] == paths
    failed = {outcome.path: outcome.reason for outcome in outcomes if isinstance(outcome, Failure)}
    assert set(failed) == {empty, text, cut}
    assert "empty" in failed[empty]
    assert not failed[empty].startswith(str(empty)), "the path would be printed twice"


def test_only_broken_files(model: Classifier, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (outcome,) = Predictor(model).predict([tmp_path / "a.png"])
    assert isinstance(outcome, Failure)


def test_images_on_which_the_outputs_overflow_fail_alone(
    model: Classifier, photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, paths = Predictor(model, batch_size=2), photographs[:3]
    logits = predictor._logits

    def overflows(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        found_BK = logits(pixels_BCHW).clone()
        found_BK[1:, 0] = torch.inf  # the second image of a batch
        return found_BK

    monkeypatch.setattr(predictor, "_logits", overflows)
    first, second, third = predictor.predict(paths)
    assert isinstance(first, Answer)
    assert isinstance(third, Answer)
    assert second == Failure(path=paths[1], reason=NOT_FINITE)


def test_top_k_is_at_most_the_number_of_classes_and_names_may_be_unknown(
    model: Classifier, photographs: list[Path]
) -> None:
    from dataclasses import replace

    model.metadata = replace(model.metadata, class_names=())
    (answer,) = Predictor(model, top_k=50).predict(photographs[:1])
    assert isinstance(answer, Answer)
    assert {name for name, _ in answer.classes} == {f"class {k}" for k in range(5)}


@pytest.mark.parametrize("options", [{"top_k": 0}, {"batch_size": 0}, {"workers": 0}])
def test_numbers_below_one_are_named(model: Classifier, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} is 0"):
        Predictor(model, **options)  # type: ignore[arg-type]


def test_flipped_predictions_are_the_mean_of_the_logits(model: Classifier, images: Path) -> None:
    path = next(images.rglob("*.png"))
    (plain,) = Predictor(model, top_k=9).predict([path])
    (flipped,) = Predictor(model, top_k=9, flip=True).predict([path])
    assert isinstance(plain, Answer)
    assert isinstance(flipped, Answer)
    normalize = Normalize(model.metadata.preprocessing)
    with torch.inference_mode():
        both = [model(normalize(pixels[None])) for pixels in (plain.pixels, plain.pixels.flip(2))]
    expected = dict(zip(model.metadata.class_names, sum(both).div(2).softmax(1)[0].tolist(), strict=True))
    assert dict(flipped.classes) == pytest.approx(expected, abs=1e-5)
    assert dict(plain.classes) != pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="leave out explain or flip"):
        Predictor(model, flip=True, attention=True)


def test_the_attention_map_is_the_mean_over_queries() -> None:
    """Against the definition, computed another way: from the attention block's own input."""
    model = Classifier(tiny_config()).eval()
    randomize(model)
    images = torch.randn(2, 3, 96, 64)
    seen: list[torch.Tensor] = []
    block = model.stages[3].blocks[0]  # type: ignore[index, union-attr]
    handle = block.attention.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode(), AttentionRecorder(model) as recorder:
        logits = model(images)
        maps = recorder.take_maps()
    handle.remove()
    assert maps.shape == (2, 3, 2)
    with torch.inference_mode():
        q, k = (getattr(block.attention, name)(seen[0]).flatten(2).double() for name in ("q", "k"))
    scores = torch.einsum("bdi,bdj->bij", q, k) / q.shape[1] ** 0.5
    received = scores.softmax(-1).mean(1) * scores.shape[-1]
    torch.testing.assert_close(maps.flatten(1).double(), received, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps.mean((1, 2)), torch.ones(2))
    assert maps.std() > 1e-4, "an even map would pass any comparison"
    with torch.inference_mode():
        torch.testing.assert_close(model(images), logits)
    with pytest.raises(UserError, match="no forward pass"):
        recorder.take_maps()


def test_networks_without_attention_and_folded_networks_have_no_attention_maps(model: Classifier) -> None:
    with pytest.raises(UserError, match="no attention to show: the network is folded or has no single-head"):
        AttentionRecorder(fold(model))
    from dataclasses import replace

    config = tiny_config()
    plain = tuple(replace(stage, pattern=(("conv", 1),)) for stage in config.stages)
    with pytest.raises(UserError, match="no attention to show: the network is folded or has no single-head"):
        Predictor(Classifier(config.with_options(stages=plain)), attention=True)


def test_overlay_is_bright_where_attention_is_and_dark_where_it_is_even() -> None:
    photograph = Image.new("RGB", (64, 64), (128, 128, 128))
    attention = torch.full((4, 4), 0.5)
    attention[0, 0] = 8.5
    drawn = np.asarray(overlay(photograph, attention)).astype(int).sum(-1)
    assert drawn[4, 4] > 1.5 * drawn[60, 60]
    even = np.asarray(overlay(photograph, torch.ones(4, 4)))
    assert (even == even[0, 0]).all()


def test_pages_are_limited_and_small_ones_are_small(
    model: Classifier, photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [a for a in Predictor(model, attention=True).predict(photographs) if isinstance(a, Answer)]
    (one,) = draw_predictions(answers[:1], tmp_path, title="One", subtitle="image")
    with Image.open(one) as picture:
        assert picture.width < 500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    monkeypatch.setattr(prediction, "MAX_PAGES", 2)
    monkeypatch.setattr(prediction, "_ROWS", 1)
    monkeypatch.setattr(prediction, "_COLUMNS", 2)
    pages = draw_predictions(answers, tmp_path, title="Seven", subtitle="images")
    assert [page.name for page in pages] == ["predict.png", "predict-2.png"]
    assert prediction.max_drawn() == 4
    pages = draw_explanations(answers, tmp_path, title="Where it looks")
    assert [page.name for page in pages] == ["explain.png", "explain-2.png"]
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "predict.png").write_bytes(b"old")

    def full(self: Image.Image, file: BinaryIO, **_: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        pictures.save_png(Image.new("RGB", (4, 4)), tmp_path / "predict.png")
    assert (tmp_path / "predict.png").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))
