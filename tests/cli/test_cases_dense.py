"""Data for detection and segmentation as people have it, through the real verbs."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.cli.main import main
from iformer.config.detector import DetectorConfig
from iformer.config.segmenter import SegmenterConfig
from iformer.data.video.reader import VideoReader
from iformer.data.video.writer import VideoWriter
from iformer.models.detector import Detector
from iformer.models.factory import build
from iformer.models.segmenter import Segmenter
from iformer.models.weights.checkpoint import save
from tiny.cases import coco, masks, write_coco
from tiny.networks import tiny_config
from tiny.packages import need_packages

need_packages("faster_coco_eval")

FIELDS = {"max_size": 96, "fpn_channels": 8, "freeze": "none", "workers": 0}
DETECT = {**FIELDS, "box_head_channels": 8, "rois": 16, "proposals": 32}
SEGMENT = {**FIELDS, "head_channels": 32}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, a detector of the class red, and a segmenter of background and object."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks")
    save(build(tiny_config(num_classes=2)), folder / "classifier.safetensors")
    backbone = tiny_config(num_classes=0)
    detector = DetectorConfig(
        backbone=backbone, num_classes=1, size=64, max_size=96, fpn_channels=8, box_head_channels=8, masks=False,
        proposals=16, score_threshold=0.0, detections=5,
    )  # fmt: skip
    save(Detector(detector), folder / "detector.safetensors", class_names=("red",))
    segmenter = SegmenterConfig(
        backbone=backbone, num_classes=2, size=64, max_size=96, fpn_channels=8, head_channels=32
    )
    save(Segmenter(segmenter), folder / "segmenter.safetensors", class_names=("background", "object"))
    return folder


@pytest.fixture
def train(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run one epoch of `train` into `tmp_path / "run"`; returns the exit code and what was said on stderr."""

    def run(task: str, data: Path, *options: str) -> tuple[int, str]:
        fields = {"detect": DETECT, "segment": SEGMENT}[task]
        kinds = {"detect": ["--detector", "faster-rcnn"], "segment": ["--segmenter", "semantic-fpn"]}
        settings = [] if {"--detector", "--segmenter"} & {*options} else kinds[task]
        settings = settings + [
            argument for name, value in fields.items() for argument in ("--set", f"{name}={value}")
        ]
        settings += [
            "--size",
            "64",
            "--batch-size",
            "2",
            "--epochs",
            "1",
            "--precision",
            "fp32",
            "--weights",
            "none",
        ]
        arguments = ["train", "--task", task, "--data", str(data), "--out", str(tmp_path / "run"), *settings]
        arguments += ["--model", str(networks / "classifier.safetensors"), "--no-tensorboard", "--device", "cpu"]
        capsys.readouterr()
        return main([*arguments, *options]), capsys.readouterr().err

    return run


def evaluated(capsys: pytest.CaptureFixture[str], weights: Path, data: Path) -> tuple[int, str]:
    """The number of images that `eval` used, and its notes."""
    capsys.readouterr()
    code = main(["eval", str(weights), "--data", str(data), "--workers", "0", "--device", "cpu", "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)["metrics"]["images"], said.err


def predicted(capsys: pytest.CaptureFixture[str], weights: Path, out: Path, *sources: Path | str) -> list[Any]:
    """The records of `predict`, which succeeds."""
    capsys.readouterr()
    arguments = ["predict", *map(str, sources), "--weights", str(weights), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# -------------------------------------------------------------------------------------- refused by name


def test_binary_masks_of_0_and_255_are_refused_before_training(
    tmp_path: Path, train: Callable[..., tuple[int, str]]
) -> None:
    code, said = train("segment", masks(tmp_path / "data", {"train": 2, "val": 1}, value=255))
    assert code == 1
    assert f"{tmp_path / 'data' / 'masks' / 'train'}: the masks only have the values 0, 255" in said
    assert "write its class instead: pixels of value 255 to 1" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("box", [[119.9999999, 40.0, 25.0, 20.0], [61.3, 40.0, 1e-6, 20.0]])
def test_a_box_without_area_is_named(
    box: list[float], tmp_path: Path, train: Callable[..., tuple[int, str]]
) -> None:
    documents = coco(tmp_path / "data", {"train": 2, "val": 1})
    documents["train"]["annotations"].append({"id": 99, "image_id": 1, "category_id": 1, "bbox": box, "area": 1})
    write_coco(tmp_path / "data", documents)
    code, said = train("detect", tmp_path / "data", "--strict-data")
    assert code == 1
    assert f"{tmp_path / 'data' / 'train.json'}: annotation 99: its box" in said
    assert "has no area inside its image, 120 x 96; left out" in said


def test_a_test_set_is_no_training_set(tmp_path: Path, train: Callable[..., tuple[int, str]]) -> None:
    coco(tmp_path / "boxes", {"val": 1})
    masks(tmp_path / "masks", {"val": 1})
    for task, data, what in (
        ("detect", "boxes", "no annotation file for train"),
        ("segment", "masks", "for train"),
    ):
        code, said = train(task, tmp_path / data)
        assert code == 1
        assert what in said
        assert str(tmp_path / data) in said


def test_a_video_is_refused_by_a_classifier(
    tmp_path: Path, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 64)
    weights = networks / "classifier.safetensors"
    assert (
        main(["predict", str(tmp_path / "clip.mp4"), "--weights", str(weights), "--device", "cpu", "--json"]) == 1
    )
    error = capsys.readouterr().err
    assert f"{tmp_path / 'clip.mp4'}: a video, not an image; detectors and segmenters take videos" in error


# ------------------------------------------------------------------------------------- evaluated, answered


def test_a_test_set_alone_is_evaluated(tmp_path: Path, networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path / "boxes", {"val": 3})
    assert evaluated(capsys, networks / "detector.safetensors", tmp_path / "boxes") == (3, "")
    masks(tmp_path / "masks", {"val": 2})
    assert evaluated(capsys, networks / "segmenter.safetensors", tmp_path / "masks") == (2, "")


def test_a_group_category_without_objects_is_dropped(
    tmp_path: Path, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = coco(tmp_path, {"val": 2})
    group = {"id": 0, "name": "red", "supercategory": "none"}
    documents["val"]["categories"] = [group, {"id": 1, "name": "red", "supercategory": "red"}]
    write_coco(tmp_path, documents)
    found = evaluated(capsys, networks / "detector.safetensors", tmp_path)
    assert found == (2, "note: category 0 (red) is a group without objects; left out\n")


def test_more_objects_than_detections_are_noted(
    tmp_path: Path, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = coco(tmp_path / "many", {"val": 1})
    (one,) = documents["val"]["annotations"]
    boxes = [{"id": number + 1, "bbox": [4 + 2 * number, 4, 10, 10]} for number in range(8)]
    documents["val"]["annotations"] = [one | box for box in boxes]
    write_coco(tmp_path / "many", documents)
    images, notes = evaluated(capsys, networks / "detector.safetensors", tmp_path / "many")
    assert images == 1
    assert "an image has 8 objects, the network reports up to 5, which limits its AP" in notes
    assert "train with --set detections=8" in notes


@pytest.mark.parametrize("size", [(2100, 30), (1, 3000)])
def test_a_thin_image_stops_nobody(
    size: tuple[int, int], tmp_path: Path, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, sides in (("a", (120, 96)), ("b_strip", size), ("c", (120, 96))):
        Image.new("RGB", sides, (90, 120, 40)).save(tmp_path / f"{name}.png")
    for kind in ("detector", "segmenter"):
        records = predicted(capsys, networks / f"{kind}.safetensors", tmp_path / kind, tmp_path)
        assert [Path(record["file"]).name for record in records] == ["a.png", "b_strip.png", "c.png"]
        assert not any("error" in record for record in records)


def test_videos_are_found_in_folders_and_keep_their_times_and_names(
    tmp_path: Path, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    times = {"one": [0.0, 0.1, 1.1], "two": [0.0, 0.5]}
    for folder, frames in times.items():
        (tmp_path / "videos" / folder).mkdir(parents=True)
        with VideoWriter(
            tmp_path / "videos" / folder / "clip.mp4", rate=Fraction(10), width=64, height=48
        ) as writer:
            for seconds in frames:
                writer.write(Image.new("RGB", (64, 48), (90, 90, 90)), seconds)
    Image.new("RGB", (64, 48)).save(tmp_path / "videos" / "one" / "still.png")
    weights, out = networks / "detector.safetensors", tmp_path / "out"
    records = predicted(capsys, weights, out, tmp_path / "videos")
    found: dict[str, list[float]] = {}
    for record in records:
        if "seconds" in record:
            found.setdefault(Path(record["file"]).parent.name, []).append(record["seconds"])
    assert found == {name: pytest.approx(seconds, abs=0.02) for name, seconds in times.items()}
    assert {path.name for path in out.glob("*.mp4")} == {"clip.mp4", "clip-2.mp4"}
    with VideoReader(out / "clip.mp4") as reader:
        assert [seconds for _, seconds in reader] == pytest.approx(times["one"], abs=0.02)
    assert len(predicted(capsys, weights, tmp_path / "again", str(tmp_path / "videos" / "*" / "*.mp4"))) == 5


# ----------------------------------------------------------------------------------------------- trained


@pytest.mark.sweep
def test_a_stray_polygon_costs_no_image(tmp_path: Path, train: Callable[..., tuple[int, str]]) -> None:
    documents = coco(tmp_path / "data", {"train": 4, "val": 1})
    documents["train"]["annotations"][0]["segmentation"].append([60.0, 48.0])
    documents["train"]["annotations"][1]["segmentation"] = [[]]
    documents["train"]["annotations"][2]["segmentation"] = [[]]
    write_coco(tmp_path / "data", documents)
    options = ("--detector", "mask-rcnn", "--set", "mask_head_channels=4", "--set", "mask_head_depth=1")
    code, said = train("detect", tmp_path / "data", *options)
    assert "annotation 1: 1 of its 2 polygons not used" in said
    assert "annotation 2" in said
    assert "annotation 3" in said
    assert code == 0
    assert "4 images of 1 class," in said


@pytest.mark.sweep
def test_three_hundred_objects_are_found_if_asked_for(
    tmp_path: Path, train: Callable[..., tuple[int, str]]
) -> None:
    data = tmp_path / "data"
    documents = coco(data, {"train": 1, "val": 1})
    for document in documents.values():
        (one,) = document["annotations"]
        places = [(4 + 5 * (k % 20), 4 + 5 * (k // 20)) for k in range(300)]
        boxes = [{"id": k + 1, "bbox": [x, y, 4, 4], "area": 16} for k, (x, y) in enumerate(places)]
        document["annotations"] = [one | box | {"segmentation": []} for box in boxes]
    write_coco(data, documents)
    code, said = train("detect", data, "--set", "batch_size=1")
    assert code == 0
    assert "an image has 300 objects, the network reports up to 100" in said
    code, said = train("detect", data, "--set", "batch_size=1", "--set", "detections=300", "--overwrite")
    assert code == 0
    assert "an image has" not in said


@pytest.mark.sweep
def test_the_rotation_of_a_phone_is_applied(
    tmp_path: Path, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    with VideoWriter(tmp_path / "phone.mp4", rate=Fraction(10), width=64, height=48) as writer:
        writer.write(Image.new("RGB", (64, 48), (90, 90, 90)), 0.0)
    content = bytearray((tmp_path / "phone.mp4").read_bytes())
    at = content.find(b"tkhd") + 8 + 20 + 16
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4")
    content[at : at + 36] = matrix.tobytes()
    (tmp_path / "phone.mp4").write_bytes(bytes(content))
    predicted(capsys, networks / "detector.safetensors", tmp_path / "out", tmp_path / "phone.mp4")
    with VideoReader(tmp_path / "out" / "phone.mp4") as reader:
        assert (reader.width, reader.height) == (48, 64)
