"""What `predict` writes replaces only what an earlier `predict` wrote, and what is named is answered."""

from __future__ import annotations

import importlib
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import iformer
from iformer.api import inputs
from iformer.cli.main import main
from iformer.data.video.writer import VideoWriter
from iformer.errors import DataError, UserError
from iformer.models.classifier import Classifier
from iformer.models.light_detector import LightDetector
from iformer.tasks.pyramid import MAX_STEM_BYTES, output_names
from tiny.dense import light_detector, light_segmenter
from tiny.networks import labelled_classifier

predictions_module = importlib.import_module("iformer.api.predictions")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return labelled_classifier()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (40, 32), (90 * number, 120, 60)).save(folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_photographs_are_not_replaced(detector: LightDetector, photos: Path) -> None:
    before = contents(photos)
    for images in (photos, photos / "a.png", [photos / "b.png"]):
        with pytest.raises(UserError, match=r"[ab]\.png is one of the images to be read"):
            iformer.predict(detector, images, out=photos)
    with pytest.raises(UserError, match=r"a\.png is one of the images to be read"):
        iformer.predict(light_segmenter(), photos, out=photos)
    link = photos.parent / "link"
    link.symlink_to(photos)
    with pytest.raises(UserError, match="is one of the images to be read"):
        iformer.predict(detector, link, out=photos, overwrite=True)
    assert contents(photos) == before


@pytest.mark.parametrize("name", ["a.png", "coco.json"])
def test_other_files_are_not_replaced_by_a_detector(
    detector: LightDetector, photos: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{name} exists, and no earlier predict wrote it; give another --out"):
            iformer.predict(detector, photos, out=out, overwrite=overwrite)
    assert contents(out) == {name: b"mine"}


def test_other_files_are_not_replaced_by_a_classifier(
    classifier: Classifier, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = photos / "predict.png"
    (photos / "a.png").rename(picture)
    with pytest.raises(UserError, match=r"predict\.png is one of the images to be read"):
        iformer.predict(classifier, picture, out=photos)
    with pytest.raises(UserError, match=r"predict\.png exists, and no earlier predict wrote it"):
        iformer.predict(classifier, photos / "b.png", out=photos)
    iformer.save(classifier, tmp_path / "net.safetensors")
    capsys.readouterr()
    assert (
        main(["predict", str(picture), "--weights", str(tmp_path / "net.safetensors"), "--out", str(photos)]) == 1
    )
    assert capsys.readouterr().err.count("\n") == 1


def test_answers_of_an_earlier_call_are_replaced(detector: LightDetector, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(iformer.predict(detector, photos, out=out, min_score=0.0))
    before = contents(out)
    list(iformer.predict(detector, photos, out=out, min_score=1.0, overwrite=True))
    after = contents(out)
    assert after.keys() == before.keys() == {"a.png", "b.png", "coco.json", "predictions.jsonl"}
    assert after["a.png"] != before["a.png"]
    with pytest.raises(UserError, match=r"a\.png is one of the images to be read"):
        iformer.predict(detector, out / "a.png", out=out, overwrite=True)


def test_an_interrupted_call_keeps_its_answers(detector: LightDetector, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped = iformer.predict(detector, photos, out=out)
    next(stopped)
    stopped.close()
    assert contents(out).keys() == {"a.png", "predictions.jsonl"}
    (line,) = (out / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == str(photos / "a.png")
    with pytest.raises(UserError, match="holds answers already"):
        iformer.predict(detector, photos, out=out)
    list(iformer.predict(detector, photos, out=out, overwrite=True))
    assert contents(out).keys() == {"a.png", "b.png", "coco.json", "predictions.jsonl"}


def test_a_call_after_a_killed_one_is_not_refused(
    detector: LightDetector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(predictions_module, "write_what_fits", lambda *arguments: (1, None))
        stopped = iformer.predict(detector, photos, out=out)
        next(stopped)
        stopped.close()
    assert (out / "a.png").is_file()
    list(iformer.predict(detector, photos, out=out))
    assert contents(out).keys() == {"a.png", "b.png", "coco.json", "predictions.jsonl"}


@pytest.mark.parametrize("make", [light_detector, light_segmenter])
def test_a_network_in_training_mode_is_not_changed(make: Any, photos: Path) -> None:
    network = make().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    running = iformer.predict(network, photos)
    first = next(running)
    network.train()
    second = next(running)
    expected = list(iformer.predict(network.eval(), photos))
    assert [first.record, second.record] == [one.record for one in expected]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_too_many_tiles_are_the_error_of_one_image(detector: LightDetector, photos: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("RGB", (1200, 1200)).save(large)
    found = list(iformer.predict(detector, [photos / "a.png", large], tile=32, overlap=0.9))
    assert found[0].error is None
    assert found[1].error is not None
    assert "has 152,881 tiles of 32" in found[1].error


def test_images_that_are_named_are_answered(classifier: Classifier, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (32, 32)).save(other)
    named = photos / "a.png"
    assert [one.path for one in iformer.predict(classifier, [named, other], out=photos)] == [named, other]
    # found by listing a folder: the answers of an earlier call are left out, unless they are named
    again = iformer.predict(classifier, [photos, named, other], out=photos, overwrite=True)
    assert [one.path for one in again] == [named, other]


def test_images_in_memory_do_not_replace_files(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "image-1.png").write_text("mine")
    pixels = np.zeros((32, 32, 3), np.uint8)
    (one,) = iformer.predict(classifier, pixels, out=tmp_path)
    assert one.path == tmp_path / "inputs" / "image-1-2.png"
    assert (tmp_path / "inputs" / "image-1.png").read_text() == "mine"


def test_names_of_outputs() -> None:
    long = "ä" * 130
    paths = [Path(name) for name in ("x/a.jpg", "y/a.png", "a.mp4", "a.mov", f"{long}.png", f"{long}.jpg")]
    names = output_names(paths)
    assert names[:4] == ["a", "a-2", "a", "a-2"]
    assert names[5] == f"{names[4]}-2"
    assert len(names[4].encode()) <= MAX_STEM_BYTES


def test_an_empty_name_is_not_the_working_folder(detector: LightDetector) -> None:
    with pytest.raises(UserError, match="the name of an image is empty"):
        iformer.predict(detector, "")


def test_a_video_that_cannot_be_read_or_drawn_is_one_error(
    detector: LightDetector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    for name in ("12:30.mp4", "refused.mp4"):
        with VideoWriter(photos / name, rate=Fraction(10), width=32, height=32) as writer:
            writer.write(Image.new("RGB", (32, 32)), 0.0)
    encode = VideoWriter.write

    def refuse(writer: VideoWriter, image: Image.Image, seconds: float) -> None:
        if writer._path.stem == "refused":
            raise DataError("cannot be encoded as refused.mp4")
        encode(writer, image, seconds)

    monkeypatch.setattr(VideoWriter, "write", refuse)
    (photos / "list.mp4").write_text("ffconcat version 1.0\nfile 12:30.mp4\n")
    out = tmp_path / "out"
    answers = list(iformer.predict(detector, photos, out=out))
    errors = {one.path.name: one.error for one in answers if one.path is not None and one.error}
    assert errors.keys() == {"list.mp4", "refused.mp4"}
    assert errors["refused.mp4"] == "cannot be encoded as refused.mp4"
    assert {path.name for path in out.iterdir()} == {
        "12:30.mp4", "a.png", "b.png", "coco.json", "predictions.jsonl"
    }  # fmt: skip


def test_long_urls_and_a_closed_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_download", lambda url: b"contents")
    (found,) = inputs.collect_inputs(f"https://example.org/{'写' * 150}.png", lambda: tmp_path)
    assert found.path is not None
    assert found.path.suffix == ".png"
    assert found.path.read_bytes() == b"contents"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match=r"-: cannot be fetched \(standard input is closed\)"):
        inputs.collect_inputs("-", lambda: tmp_path)


@pytest.mark.parametrize("before", [False, True], ids=["new folder", "folder of the user"])
def test_a_call_that_fails_leaves_no_folder(
    classifier: Classifier, photos: Path, tmp_path: Path, before: bool
) -> None:
    out = tmp_path / "new" / "out"
    if before:
        out.mkdir(parents=True)
    with pytest.raises(UserError):
        iformer.predict(str(tmp_path / "none.safetensors"), photos, out=out)
    with pytest.raises(UserError):
        iformer.predict(classifier, tmp_path / "none.png", out=out)
    assert out.exists() == out.parent.exists() == before
    list(iformer.predict(classifier, photos, out=out))
    assert (out / "predictions.jsonl").is_file()


def test_links_that_point_to_themselves_are_an_error_of_their_own(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    (photos / "c.png").symlink_to("c.png")
    found = list(iformer.predict(classifier, photos, out=tmp_path / "out"))
    assert [answer.error is None for answer in found] == [True, True, False]
