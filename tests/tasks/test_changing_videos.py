"""Videos whose size, shape of pixels or pixel format changes: each frame is answered as it is shown."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import iformer
from iformer.data.video.reader import VideoReader
from iformer.tasks.detection.predict import DetectionPredictor
from tiny.dense import light_detector, light_segmenter
from tiny.videos import RED, ColourDetector, Part, recorded

pytest.importorskip("av")

SMALL, LARGE, TALL = Part(size=(128, 96)), Part(size=(256, 192)), Part(size=(96, 128))


def answered(
    video: Path, out: Path | None = None, **options: Any
) -> tuple[list[dict[str, Any]], list[str], DetectionPredictor]:
    """The records, the notes, and the predictor."""
    predictor, notes = DetectionPredictor(ColourDetector(), **options), list[str]()
    predictor.warn = notes.extend
    if out is not None:
        out.mkdir()
    return list(predictor.predict([video], out)), notes, predictor


def boxes(records: Sequence[dict[str, Any]]) -> list[list[float]]:
    return [one["box"] for record in records for one in record["detections"]]


def red_share(image: Image.Image, box: tuple[int, int, int, int]) -> float:
    """Share of the pixels in a box that are red."""
    pixels = np.asarray(image.crop(box), int)
    return float((np.abs(pixels - RED).max(2) < 60).mean())


@pytest.mark.parametrize("second", [LARGE, TALL], ids=["larger", "upright"])
def test_each_frame_is_answered_at_its_own_size(tmp_path: Path, second: Part) -> None:
    video = recorded(tmp_path / "clip.mpg", SMALL, second, SMALL)
    records, notes, _ = answered(video, tmp_path / "out")
    parts = [part for part in (SMALL, second, SMALL) for _ in range(part.frames)]
    assert [record["size"] for record in records] == [list(part.size) for part in parts]
    for box, part in zip(boxes(records), parts, strict=True):
        width, height = part.size
        assert box == pytest.approx([width / 4, height / 4, width / 2, height / 2], abs=2)
    assert notes == [
        f"{video}: frames have 128 x 96 pixels, from frame 3 on {second.size[0]} x {second.size[1]}; "
        "each is answered at its own size; the drawn video keeps 128 x 96"
    ]
    with VideoReader(tmp_path / "out" / "clip.mp4") as reader:
        drawn = [frame.image for frame in reader]
    assert [image.size for image in drawn] == [(128, 96)] * 9
    if second is LARGE:
        assert red_share(drawn[4], (40, 32, 88, 64)) > 0.7, "scaled as a whole"
    else:
        assert np.asarray(drawn[4])[:, :24].max() < 40, "black bars"
        assert np.asarray(drawn[4])[:, 104:].max() < 40
        assert red_share(drawn[4], (50, 32, 78, 64)) > 0.7
    assert answered(video)[1] == [notes[0].removesuffix("; the drawn video keeps 128 x 96")]


def test_tracks_hold_where_the_resolution_changes(tmp_path: Path) -> None:
    pytest.importorskip("trackers")
    records, _, _ = answered(recorded(tmp_path / "clip.mpg", SMALL, LARGE, SMALL), track=True)
    tracks = [one["track"] for record in records for one in record["detections"]]
    assert tracks == [None, *[1] * 8]
    assert boxes(records)[4] == pytest.approx([64, 48, 128, 96], abs=2), "in the pixels of its frame"


@pytest.mark.parametrize(
    ("aspect", "width"),
    [(Fraction(4, 3), 171), (Fraction(1, 2), 64), (Fraction(1281, 1280), 128), (Fraction(200, 1), 128)],
    ids=["wide", "narrow", "nearly square", "damaged"],
)
def test_answers_are_in_square_pixels(tmp_path: Path, aspect: Fraction, width: int) -> None:
    video = recorded(tmp_path / "clip.mpg", Part(size=(128, 96), aspect=aspect))
    records, notes, _ = answered(video, tmp_path / "out")
    assert notes == []
    assert [record["size"] for record in records] == [[width, 96]] * 3
    assert boxes(records)[0] == pytest.approx([width / 4, 24, width / 2, 48], abs=2)
    with VideoReader(tmp_path / "out" / "clip.mp4") as reader:
        assert reader.width == width - width % 2
        assert red_share(next(iter(reader)).image, (width // 4 + 6, 40, 3 * width // 4 - 6, 66)) > 0.9


def test_the_shape_of_pixels_may_change(tmp_path: Path) -> None:
    wide = Part(size=(128, 96), aspect=Fraction(4, 3), frames=12)
    square = Part(size=(128, 96), aspect=Fraction(1), frames=12)
    records, notes, _ = answered(recorded(tmp_path / "clip.mpg", wide, square, wide))
    assert [record["size"][0] for record in records] == [171] * 12 + [128] * 12 + [171] * 12
    assert [note.partition(": ")[2] for note in notes] == [
        "frames have 171 x 96 pixels, from frame 12 on 128 x 96; each is answered at its own size"
    ]


def test_what_the_container_says_comes_before_the_codec(tmp_path: Path) -> None:
    part = Part(size=(128, 96), aspect=Fraction(4, 3))
    for container in ("matroska", "mp4"):
        path = recorded(tmp_path / "clip.mov", part, container=container)
        with VideoReader(path) as reader:
            assert (reader.width, reader.height) == (171, 96)
    content = bytearray(path.read_bytes())
    at = content.find(b"pasp")
    content[at + 4 : at + 12] = (2).to_bytes(4, "big") + (1).to_bytes(4, "big")
    path.write_bytes(bytes(content))
    with VideoReader(path) as reader:
        assert [frame.image.size for frame in reader] == [(256, 96)] * 3


@pytest.mark.parametrize("pixels", ["yuv444p", "gray", "yuv420p10le", "yuvj420p"])
def test_the_pixel_format_may_change(tmp_path: Path, pixels: str) -> None:
    part = Part(size=(128, 96), pixels=pixels)
    with VideoReader(recorded(tmp_path / "clip.mpg", SMALL, part, SMALL)) as reader:
        colours = [np.asarray(frame.image)[48, 64].astype(int) for frame in reader]
    assert len(colours) == 9
    expected = [79] * 3 if pixels == "gray" else list(RED)
    for number, colour in enumerate(colours):
        assert np.abs(colour - (expected if 3 <= number < 6 else RED)).max() < 16, number


@pytest.mark.parametrize("make", [light_detector, light_segmenter])
def test_the_verb_on_a_changing_video(tmp_path: Path, make: Any) -> None:
    video, out, notes = recorded(tmp_path / "clip.MPG", SMALL, TALL), tmp_path / "out", list[str]()
    found = list(iformer.predict(make(), video, out=out, format="csv", warn=notes.extend))
    assert [one.record["size"] for one in found] == [[128, 96]] * 3 + [[96, 128]] * 3
    if found[0].masks is not None:
        assert [one.masks.shape[-2:] for one in found if one.masks is not None] == [(96, 128)] * 3 + [
            (128, 96)
        ] * 3
    assert sum("each is answered at its own size" in note for note in notes) == 1
    assert {row["frame"] for row in csv.DictReader((out / "predictions.csv").open())} == set("012345")
    assert json.dumps([one.record for one in found])
