"""Every reader of what comes from outside, with a sound file that it reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import iformer
from fuzz.mutations import (
    BYTES,
    Mutation,
    flip_bits,
    header_values,
    json_lines,
    json_values,
    truncate,
    yaml_values,
)
from iformer.data.images import check_image, read_image
from iformer.data.segmentation import read_mask
from iformer.data.sources import load_data
from iformer.data.sources.coco import load_detection
from iformer.data.sources.masks import load_semantic
from iformer.data.sources.shards.packing import verify
from iformer.data.video import VideoReader, VideoWriter
from iformer.deploy.artifact import read_record
from iformer.deploy.runner import open_artifact
from iformer.models.weights.pickles import read_pickle
from iformer.tasks.registry import load_recipe
from iformer.training.records.logs import read_history
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import read_state

OLD_FILES = Path(__file__).parents[1] / "compatibility" / "data"
IMAGES = ("png", "jpg", "webp", "tiff", "bmp", "gif", "ppm")


@dataclass(frozen=True)
class Reader:
    """A file below the folder of `make_files`, how it is changed, and what reads it."""

    file: str
    mutations: tuple[Mutation, ...]
    read: Callable[[Path], object]
    checked: bool = False
    """A checksum covers the whole file, so that no changed one may be accepted."""


def make_files(folder: Path) -> Path:
    """Write one sound file for each reader."""
    shutil.copytree(OLD_FILES, folder)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for ending in IMAGES:
        Image.fromarray(pixels).save(folder / f"image.{ending}")
    network = iformer.load(folder / "networks" / "classify.safetensors")
    torch.save({"state_dict": network.state_dict()}, folder / "network.pth")
    with VideoWriter(folder / "video.mp4", rate=Fraction(10), width=32, height=32) as video:
        for number, image in enumerate((pixels, pixels[::-1])):
            video.write(Image.fromarray(np.ascontiguousarray(image[:32, :32])), number / 10)
    foreign = folder / "foreign"
    foreign.mkdir()
    for shard in sorted((folder / "shards").glob("*.tar")):
        shutil.copy(shard, foreign)
    return folder


def read_video(path: Path) -> int:
    """Decode every frame."""
    with VideoReader(path) as video:
        return sum(1 for _ in video)


def read_any_image(path: Path) -> None:
    """Check and decode an image."""
    check_image(path)
    read_image(path)


def read_images_of(data: Any) -> None:
    """Decode the images of a data set."""
    for split in (data.train, data.val):
        for sample in split.samples:
            read_image(sample)


CLASSIFIER = "networks/classify.safetensors"
STATE = "stopped/classify/resume.safetensors"
DETECTOR, SEGMENTER = ("stopped/detect/last.safetensors", "stopped/segment/last.safetensors")
COCO = "shapes/annotations/instances_train.json"
ONNX = "artifacts/classify.onnx"

READERS: dict[str, Reader] = {
    "recipe": Reader("recipes/classification.yaml", (yaml_values, *BYTES), lambda f: load_recipe(f, {})),
    "recipe of a detector": Reader("recipes/detection.yaml", (yaml_values,), lambda f: load_recipe(f, {})),
    "config.yaml of a run": Reader(
        "stopped/classify/config.yaml", (yaml_values, *BYTES), lambda f: RunFolder(f.parent).read_config()
    ),
    "log.jsonl": Reader("stopped/classify/log.jsonl", (json_lines, *BYTES), read_history),
    "state of a run": Reader(STATE, (header_values, *BYTES), read_state),
    "classifier's header": Reader(CLASSIFIER, (header_values,), iformer.load),
    "classifier": Reader(CLASSIFIER, BYTES, iformer.load),
    "detector's header": Reader(DETECTOR, (header_values,), iformer.load),
    "segmenter's header": Reader(SEGMENTER, (header_values,), iformer.load),
    "pickle": Reader("network.pth", BYTES, read_pickle),
    "index of shards": Reader("shards/index.safetensors", (header_values, *BYTES), lambda f: load_data(f.parent)),
    "shard": Reader("shards/train-00000.tar", BYTES, lambda f: verify(f.parent)),
    "foreign shard": Reader("foreign/train-00000.tar", BYTES, lambda f: read_images_of(load_data(f.parent))),
    "COCO annotations": Reader(COCO, (json_values, *BYTES), lambda f: load_detection(f.parents[1], workers=1)),
    "mask": Reader("shapes/masks/train/0.png", BYTES, read_mask),
    "classes.txt": Reader("shapes/classes.txt", BYTES, lambda f: load_semantic(f.parent, workers=1)),
    "record of an artifact": Reader(
        f"{ONNX}.json", (json_values, *BYTES), lambda f: read_record(f.with_suffix(""))
    ),
    "ONNX artifact": Reader(ONNX, (flip_bits, truncate), open_artifact, checked=True),
    "video": Reader("video.mp4", BYTES, read_video),
    **{f"{ending} image": Reader(f"image.{ending}", BYTES, read_any_image) for ending in IMAGES},
}
