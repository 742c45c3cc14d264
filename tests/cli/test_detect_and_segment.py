"""`train`, `eval` and `predict` for detection and segmentation."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from iformer.cli.main import main
from iformer.config.detector import DetectorConfig
from iformer.config.network import NetworkConfig
from iformer.config.segmenter import SegmenterConfig
from iformer.data.video.reader import VideoReader
from iformer.data.video.writer import VideoWriter
from iformer.models.detector import Detector
from iformer.models.segmenter import Segmenter
from iformer.models.weights.checkpoint import save
from tiny.shapes import make_shapes


@pytest.fixture
def detector(tiny_backbone_config: NetworkConfig, tmp_path: Path) -> Path:
    """A checkpoint of a random detector that reports whatever it thinks."""
    torch.manual_seed(0)
    config = DetectorConfig(
        backbone=tiny_backbone_config, num_classes=2, size=64, max_size=96, fpn_channels=16, box_head_channels=16,
        mask_head_channels=8, mask_head_depth=1, proposals=16, score_threshold=0.0, detections=5,
    )  # fmt: skip
    network = Detector(config)
    metadata = replace(network.metadata, class_names=("disc", "square"))
    network.metadata = metadata
    save(network, tmp_path / "detector.safetensors")
    return tmp_path / "detector.safetensors"


@pytest.fixture
def segmenter(tiny_backbone_config: NetworkConfig, tmp_path: Path) -> Path:
    """A checkpoint of a random segmenter."""
    torch.manual_seed(0)
    palette = ((0, 0, 0), (200, 10, 10), (10, 10, 200))
    config = SegmenterConfig(
        backbone=tiny_backbone_config, num_classes=3, size=64, max_size=96, fpn_channels=16, head_channels=32,
        palette=palette,
    )  # fmt: skip
    network = Segmenter(config)
    names = ("background", "disc", "square")
    save(network, tmp_path / "segmenter.safetensors", class_names=names)
    return tmp_path / "segmenter.safetensors"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "clip.mp4", rate=Fraction(10), width=64, height=48) as writer:
        for number in range(3):
            writer.write(Image.new("RGB", (64, 48), (80 * number, 90, 90)), number / 10)
    return tmp_path / "clip.mp4"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_detections_are_drawn_and_written_as_coco(
    capsys: pytest.CaptureFixture[str], detector: Path, shapes_data: Path, video: Path, tmp_path: Path
) -> None:
    out, images = tmp_path / "out", shapes_data / "images" / "val"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    command = ["predict", str(images), str(broken), str(video), "--weights", str(detector)]
    assert main([*command, "--min-score", "0", "--out", str(out), "--json"]) == 1
    captured = capsys.readouterr()
    records = lines(captured.out)
    assert [Path(record["file"]).name for record in records] == [
        "0.png", "1.png", "2.png", "3.png", "broken.png", "clip.mp4", "clip.mp4", "clip.mp4",
    ]  # fmt: skip
    assert records[4]["error"].startswith(
        "neither an image nor a video, or of a format that is not supported; expected"
    )
    assert records[4]["error"].endswith("images such as .jpg or .png, or videos such as .mp4 or .mov")
    assert "1 without an answer" in captured.err
    assert [record["frame"] for record in records[5:]] == [0, 1, 2]
    assert records[6]["seconds"] == 0.1
    found = records[0]["detections"]
    assert {item["name"] for item in found} <= {"disc", "square"}
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [record["file"] for record in records[:4]]
    assert [category["name"] for category in coco["categories"]] == ["disc", "square"]
    own = [annotation for annotation in coco["annotations"] if annotation["image_id"] == 1]
    assert [annotation["score"] for annotation in own] == [item["score"] for item in found]
    assert own[0]["segmentation"]["size"] == [96, 96]
    assert Image.open(out / "0.png").size == (96, 96)
    with VideoReader(out / "clip.mp4") as reader:
        assert len(list(reader)) == 3
    assert lines((out / "predictions.jsonl").read_text()) == records


def test_classes_are_drawn_and_written_as_masks(
    capsys: pytest.CaptureFixture[str], segmenter: Path, shapes_data: Path, tmp_path: Path
) -> None:
    out, image = tmp_path / "out", shapes_data / "images" / "val" / "0.png"
    for options in ([], ["--sliding", "--overwrite"]):
        assert (
            main(["predict", str(image), "--weights", str(segmenter), "--out", str(out), "--json", *options]) == 0
        )
        record = lines(capsys.readouterr().out)[0]
        mask = Image.open(record["mask"])
        assert mask.mode == "P"
        assert mask.getpalette()[3:6] == [200, 10, 10]
        indices = np.asarray(mask)
        assert indices.shape == (96, 96)
        shares = {item["name"]: item["share"] for item in record["classes"]}
        names = ("background", "disc", "square")
        counted = {name: round(float((indices == k).mean()), 4) for k, name in enumerate(names)}
        assert shares == {name: share for name, share in counted.items() if share}
    assert (out / "0.png").is_file()


def test_without_out_and_json_pictures_go_to_the_default_folder(
    monkeypatch: pytest.MonkeyPatch, segmenter: Path, shapes_data: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(shapes_data / "images" / "val"), "--weights", str(segmenter)]) == 0
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 4


def test_a_video_that_is_none_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], detector: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    command = ["predict", str(tmp_path / "bad.mp4"), "--weights", str(detector), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert "bad.mp4: not a video" in error
    assert not list((tmp_path / "out").glob("*.mp4*"))


@pytest.mark.parametrize("size", [(2100, 30), (3000, 1), (1, 3000)])
@pytest.mark.parametrize(("task", "options"), [("detector", []), ("segmenter", []), ("segmenter", ["--sliding"])])
def test_a_thin_image_is_answered_as_the_others(
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    task: str,
    options: list[str],
    size: tuple[int, int],
) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for name, sides in (("a", (90, 70)), ("b", size), ("c", (90, 70))):
        Image.new("RGB", sides, (90, 120, 150)).save(folder / f"{name}.png")
    weights = request.getfixturevalue(task)
    command = ["predict", str(folder), "--weights", str(weights), *options, "--out", str(out), "--json"]
    assert main(command) == 0
    records = lines(capsys.readouterr().out)
    assert [Path(record["file"]).stem for record in records] == ["a", "b", "c"]
    assert all("error" not in record for record in records)
    assert Image.open(out / "b.png").size == size


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_eval(
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    shapes_data: Path,
    tmp_path: Path,
    task: str,
) -> None:
    checkpoint = request.getfixturevalue({"detect": "detector", "segment": "segmenter"}[task])
    assert main(["info", str(checkpoint)]) == 0
    assert "with pyramid and heads" in capsys.readouterr().out
    assert main(["info", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"]["task"] == task
    command = ["eval", str(checkpoint), "--data", str(shapes_data), "--workers", "0"]
    assert main([*command, "--json", "--out", str(tmp_path / "out")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["metrics"]["images"] == 4
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == record
    assert main([*command, "--split", "train"]) == 0
    text = capsys.readouterr().out
    assert "on 8 images" in text
    assert "square" in text


def test_eval_of_other_classes_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], segmenter: Path, tmp_path: Path
) -> None:
    data = make_shapes(tmp_path / "data", train=2, val=2)
    (data / "classes.txt").write_text("ground\nsphere\ncube\n")
    assert main(["eval", str(segmenter), "--data", str(data)]) == 1
    assert (
        "the classes of the data are not those of the network (only the network knows: background, disc, square; "
        "only the data has: cube, ground, sphere)"
    ) in capsys.readouterr().err


def test_eval_of_some_classes_in_another_order(
    capsys: pytest.CaptureFixture[str], segmenter: Path, tmp_path: Path
) -> None:
    data = make_shapes(tmp_path / "data", train=2, val=2)
    command = ["eval", str(segmenter), "--data", str(data), "--workers", "0", "--json"]
    assert main(command) == 0
    expected = json.loads(capsys.readouterr().out)["metrics"]
    for path in (data / "masks").rglob("*.png"):  # disc and square change places
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.choose(mask, (0, 2, 1)).astype(np.uint8)).save(path)
    (data / "classes.txt").write_text("background\nsquare\ndisc\n")
    assert main(command) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["metrics"] == expected
    assert captured.err == ""
    (data / "classes.txt").write_text("background\ncube\ndisc\n")
    assert main(command) == 0
    note = capsys.readouterr().err
    assert "labelled pixels (" in note
    assert "the network does not know cube" in note
    assert main([*command, "--strict-data"]) == 1
    assert "only the data has: cube" in capsys.readouterr().err


BACKBONE = ["--model", "iformer_t", "--weights", "none", "--set", "workers=0", "--size", "64", "--epochs", "1"]


def test_train_by_the_task_s_default_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = make_shapes(tmp_path / "data", train=2, val=1, empty=0)
    fields = ["max_size=96", "fpn_channels=32", "head_channels=32", "freeze=none", "precision=fp32"]
    options = [part for field in fields for part in ("--set", field)]
    command = ["train", "--task", "segment", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*command, *BACKBONE, "--batch-size", "2", *options]) == 0
    assert "mIoU" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["task"] == "segment"
    assert config["recipe_name"] == "segmentation-light"
    assert config["recipe"]["network"] == "light"
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), "--json"]) == 0
    assert "miou" in json.loads(capsys.readouterr().out)["metrics"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "paint"], "unknown task 'paint'"),
        (["--task", "detect", "--recipe", "ade20k-40k"], "--task is detect, the recipe ade20k-40k is for segment"),
        (["--task", "detect", "--set", "mixup_alpha=0.2"], "a recipe for detect has no field 'mixup_alpha'"),
        (["--task", "detect", "--set", "masc=true"], "did you mean masks"),
        (["--task", "segment", "--val-split", "0.1"], "val_split is 0.1, and "),
        (["--detector", "lite"], "unknown detector 'lite'; did you mean light"),
        (["--task", "segment", "--detector", "light"], "--detector is for --task detect; leave it out"),
        (["--segmenter", "light", "--recipe", "coco-1x"], "--task is segment, the recipe coco-1x is for detect"),
    ],
)
def test_bad_options_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], shapes_data: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    out = tmp_path / "run"
    assert main(["train", "--data", str(shapes_data), "--out", str(out), *options]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_bad_data_stops_before_a_run_begins(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = make_shapes(tmp_path / "data", train=2, val=2)
    Image.new("L", (96, 96), 9).save(data / "masks" / "train" / "0.png")
    (data / "annotations" / "instances_val.json").write_text('{"images": []}')
    for task, words in (("detect", "not a COCO annotation file"), ("segment", "has the index 9")):
        out = tmp_path / task
        assert main(["train", "--task", task, "--data", str(data), "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize(
    ("network", "verb", "options", "words"),
    [
        ("detector", "predict", ["--explain"], "--explain is not for detectors"),
        ("detector", "predict", ["--top-k", "3"], "--top-k is not for detectors"),
        ("detector", "predict", ["--sliding"], "--sliding is not for detectors"),
        ("segmenter", "predict", ["--max-detections", "3"], "--max-detections is not for segmenters"),
        ("segmenter", "eval", ["--iou", "0.5"], "--iou is not for segmenters"),
        ("segmenter", "predict", ["--min-score", "0.2"], "--min-score is not for segmenters"),
        ("detector", "eval", ["--split", "all"], "--split all is for classification"),
        ("detector", "eval", ["--val-split", "0.5"], "has validation images; leave it out"),
        ("segmenter", "eval", ["--batch-size", "2"], "--batch-size is not for segmenters"),
    ],
)
def test_options_of_other_tasks_are_one_clear_line(
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    shapes_data: Path,
    tmp_path: Path,
    network: str,
    verb: str,
    options: list[str],
    words: str,
) -> None:
    checkpoint = str(request.getfixturevalue(network))
    given = {
        "predict": [str(shapes_data), "--weights", checkpoint, "--out", str(tmp_path / "out")],
        "eval": [checkpoint, "--data", str(shapes_data)],
    }[verb]
    assert main([verb, *given, *options]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("network", ["detector", "segmenter"])
def test_hostile_names_are_shown_as_text_and_kept_in_json(
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, tmp_path: Path, network: str
) -> None:
    names = ["a\x1b[31m.png", "two\nlines.png", "<img onerror=x>|b.png", os.fsdecode(b"caf\xe9.png")]
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for name in names:
        Image.new("RGB", (64, 48)).save(folder / name)
    weights = request.getfixturevalue(network)
    assert main(["predict", str(folder), "--weights", str(weights), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == len(names)
    for shown in ("a\\x1b[31m.png", "two\\nlines.png", "<img onerror=x>|b.png", "caf\\udce9.png"):
        assert shown in printed
    records = lines((out / "predictions.jsonl").read_text())
    assert sorted(Path(record["file"]).name for record in records) == sorted(names)
