"""Every reader of what comes from outside, with a sound file that it reads."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from PIL import Image
from typer.main import get_command

import iformer
from fuzz.label_readers import LABEL_READERS, make_label_files
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
from fuzz.page import MESSAGES, REQUEST, read_messages, send_request
from iformer.cli.main import build_app, main
from iformer.config.metadata import Metadata
from iformer.config.recipe_files import merge_overrides
from iformer.data.images import check_image, read_image
from iformer.data.segmentation import read_mask
from iformer.data.sources import load_data
from iformer.data.sources.detection import load_detection
from iformer.data.sources.masks import load_semantic
from iformer.data.sources.shards.index import INDEX
from iformer.data.sources.shards.packing import pack, verify
from iformer.data.video.reader import VideoReader
from iformer.data.video.writer import VideoWriter
from iformer.deploy.artifact import read_record
from iformer.deploy.export import export_artifact
from iformer.deploy.runner import open_artifact
from iformer.errors import UserError, printable
from iformer.models.weights.convert import read_class_names
from iformer.models.weights.hub import describe_by_timm
from iformer.models.weights.pickles import read_pickle
from iformer.tasks.export import exportable
from iformer.tasks.registry import load_recipe
from iformer.training.distributed import RankContext
from iformer.training.records.history import read_history
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainState, read_state, stored_network

OLD_FILES = Path(__file__).parents[1] / "compatibility" / "data"
IMAGES = ("png", "jpg", "webp", "tiff", "bmp", "gif", "ppm", "avif", "jp2")


ODD_IMAGES = ("cmyk.jpg", "pages.mpo", "animated.webp", "animated.png", "palette.png", "deep.png", "float.tiff")


@dataclass(frozen=True)
class Reader:
    """A file below the folder of `make_files`, how it is changed, and what reads it."""

    file: str
    mutations: tuple[Mutation, ...]
    read: Callable[[Path], object]
    checked: bool = False
    """A checksum covers the whole file, so that no changed one may be accepted."""
    needs: str = ""
    """A module without which the file is not read."""


def make_files(folder: Path) -> Path:
    """Write one sound file for each reader."""
    shutil.copytree(OLD_FILES, folder)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for ending in IMAGES:
        Image.fromarray(pixels).save(folder / f"image.{ending}")
    make_odd_images(pixels, folder)
    make_tables(folder)
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "images").rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    network = iformer.load(folder / "networks" / "classify.safetensors")
    torch.save({"state_dict": network.state_dict()}, folder / "network.pth")
    with VideoWriter(folder / "video.mp4", rate=Fraction(10), width=32, height=32) as video:
        for number, image in enumerate((pixels, pixels[::-1])):
            video.write(Image.fromarray(np.ascontiguousarray(image[:32, :32])), number / 10)
    foreign = folder / "foreign"
    foreign.mkdir()
    for shard in sorted((folder / "shards").glob("*.tar")):
        shutil.copy(shard, foreign)
    (foreign / "classes.txt").write_text("blue\ngreen\nred\n")
    make_new_formats(folder)
    make_openvino(folder)
    make_label_files(folder / "labels")
    return folder


def make_odd_images(pixels: npt.NDArray[np.uint8], folder: Path) -> None:
    """Write images with more than the three channels of 8 bits that most have, or with more than one frame."""
    colours, other = Image.fromarray(pixels), Image.fromarray(np.ascontiguousarray(pixels[::-1]))
    colours.convert("CMYK").save(folder / "cmyk.jpg")
    colours.save(folder / "pages.mpo", save_all=True, append_images=[other])
    colours.save(folder / "animated.webp", save_all=True, append_images=[other])
    colours.save(folder / "animated.png", save_all=True, append_images=[other])
    colours.convert("RGBA").quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "float.tiff")


def make_tables(folder: Path) -> None:
    """Write a table of the images as CSV, as TSV and as Parquet."""
    rows = [("image", "label", "split", "group")]
    for split in ("train", "val"):
        for path in sorted((folder / "images" / split).rglob("*.*")):
            rows.append((path.relative_to(folder).as_posix(), path.parent.name, split, ""))
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        (folder / f"table.{ending}").write_text("".join(separator.join(row) + "\n" for row in rows))
    if importlib.util.find_spec("pyarrow") is not None:
        from pyarrow import parquet, table

        columns = {name: [row[place] for row in rows[1:]] for place, name in enumerate(rows[0])}
        parquet.write_table(table(columns), folder / "table.parquet")


def make_openvino(folder: Path) -> None:
    """Export the classifier to OpenVINO, if it is installed."""
    if importlib.util.find_spec("openvino") is None:
        return
    network = iformer.load(folder / "networks" / "classify.safetensors")
    export_artifact(exportable(network), folder / OPENVINO.rpartition("/")[0], "openvino")


def make_new_formats(folder: Path) -> None:
    """Write files that the versions of `OLD_FILES` did not: a state and an index that their checksums cover."""
    commands()  # imports the verbs once, not in each forked process
    network = iformer.load(folder / "networks" / "classify.safetensors")
    recipe = load_recipe("finetune", {"precision": "fp32"})
    state = TrainState.create(network, recipe, RankContext(device=torch.device("cpu"), precision="fp32"))
    (folder / "run").mkdir()
    state.save(folder / NEW_STATE, identity={"model": "tiny", "recipe": recipe.to_plain()})
    pack(load_data(folder / "images", workers=1), folder / "packed")
    (folder / "config.json").write_text(json.dumps(TIMM_CONFIG))
    (folder / "messages.json").write_text(json.dumps(MESSAGES))
    (folder / "request.http").write_bytes(REQUEST.encode())
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    for verb, arguments in ARGUMENTS.items():
        (folder / f"{verb}.json").write_text(json.dumps(arguments))
    (folder / "info.json").write_text(json.dumps(["info", "iformer_t", "--size", "64x96", "--json"]))
    (folder / "set.json").write_text(json.dumps([argument for argument in TRAIN if "=" in argument]))


def read_arguments(path: Path) -> None:
    """Run a command line; its one line and exit code become an error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main(texts(path))
    if code:
        text = errors.getvalue()
        if "internal error" in text:
            raise RuntimeError(text)
        raise UserError(text.strip())


@functools.cache
def commands() -> Any:
    """The verbs by their names."""
    return get_command(build_app()).commands  # type: ignore[attr-defined]


def parse_arguments(path: Path) -> None:
    """Parse the command line of a verb without running it."""
    command = commands()[path.stem]
    usage_error = typer.BadParameter.__mro__[1]
    try:
        command.make_context(path.stem, texts(path))
    except usage_error as error:
        raise UserError(printable(error.format_message())) from None  # type: ignore[attr-defined]


def read_overrides(path: Path) -> None:
    """Apply settings as `--set` gives them."""
    load_recipe("finetune", merge_overrides(texts(path), {}))


def texts(path: Path) -> list[str]:
    """The arguments in a JSON file."""
    plain = json.loads(path.read_text())
    return [str(value) for value in (plain if isinstance(plain, list) else [plain])]


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


def fresh_shards(folder: Path) -> Path:
    """Remove the index that an earlier reading has written."""
    (folder / INDEX).unlink(missing_ok=True)
    return folder


def read_images(path: Path) -> None:
    """Read a table and the images that it lists, or an archive."""
    load_data(path, workers=1)


CLASSIFIER = "networks/classify.safetensors"
STATE = "stopped/classify/resume.safetensors"
DETECTOR, SEGMENTER = ("stopped/detect/last.safetensors", "stopped/segment/last.safetensors")
COCO = "shapes/annotations/instances_train.json"
ONNX, LITERT = "artifacts/classify.onnx", "artifacts/classify.tflite"
OPENVINO = "artifacts/classify.openvino/model.xml"
NEW_STATE = "run/resume.safetensors"
TRAIN = [
    *("--data", "images", "--out", "run", "--epochs", "3", "--lr", "1e-3", "--size", "64", "--device", "cpu"),
    *("--set", "augment.hflip=0.25", "--set", "augment={vflip: 0.5}", "--set", "value_range=[0, 4095]"),
]
ARGUMENTS = {
    "train": TRAIN,
    "eval": [
        "net",
        "--data",
        "images",
        "--split",
        "val",
        "--batch-size",
        "4",
        "--device",
        "cpu",
        "--workers",
        "0",
    ],
    "predict": ["a.png", "b.png", "--top-k", "2", "--min-score", "0.5", "--out", "out", "--weights", "net"],
    "export": [
        "net",
        "--to",
        "onnx",
        "--size",
        "64x96",
        "--batch",
        "dynamic",
        "--precision",
        "int8",
        "--max-drop",
        "1",
    ],
    "bench": ["net", "--on", "onnx", "--rounds", "3", "--threads", "1", "--size", "64", "--batch", "2"],
    "convert": ["net.pth", "net.safetensors", "--to", "iformer", "--entry", "ema", "--class-names", "names.txt"],
    "demo": ["net", "--on", "onnx,litert", "--port", "8000", "--licence", "MIT"],
}
TIMM_CONFIG = {
    "architecture": "iformer_t",
    "num_classes": 3,
    "label_names": ["a", "b", "c"],
    "pretrained_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "input_size": [3, 64, 64],
    },
}

READERS: dict[str, Reader] = {
    "recipe": Reader("recipes/classification.yaml", (yaml_values, *BYTES), lambda f: load_recipe(f, {})),
    "recipe of a detector": Reader("recipes/detection.yaml", (yaml_values,), lambda f: load_recipe(f, {})),
    "config.yaml of a run": Reader(
        "stopped/classify/config.yaml", (yaml_values, *BYTES), lambda f: RunFolder(f.parent).read_config()
    ),
    "log.jsonl": Reader("stopped/classify/log.jsonl", (json_lines, *BYTES), read_history),
    "state of a run": Reader(STATE, (header_values, *BYTES), read_state),
    "state of a run, checksummed": Reader(NEW_STATE, (header_values, *BYTES), read_state, checked=True),
    "network of a run's state": Reader(
        NEW_STATE, (header_values, *BYTES), lambda f: stored_network(RunFolder(f.parent))
    ),
    "classifier's header": Reader(CLASSIFIER, (header_values,), iformer.load),
    "classifier": Reader(CLASSIFIER, BYTES, iformer.load),
    "detector's header": Reader(DETECTOR, (header_values,), iformer.load),
    "segmenter's header": Reader(SEGMENTER, (header_values,), iformer.load),
    "pickle": Reader("network.pth", BYTES, read_pickle),
    "index of shards": Reader("shards/index.safetensors", (header_values, *BYTES), lambda f: load_data(f.parent)),
    "index of shards, checksummed": Reader(
        "packed/index.safetensors", (header_values, *BYTES), lambda f: load_data(f.parent), checked=True
    ),
    "shard": Reader("shards/train-00000.tar", BYTES, lambda f: verify(f.parent)),
    "foreign shard": Reader("foreign/train-00000.tar", BYTES, lambda f: read_images_of(load_data(f.parent))),
    "COCO annotations": Reader(COCO, (json_values, *BYTES), lambda f: load_detection(f.parents[1], workers=1)),
    **{name: Reader(f"labels/{file}", changes, read) for name, (file, changes, read) in LABEL_READERS.items()},
    "mask": Reader("shapes/masks/train/0.png", BYTES, read_mask),
    "classes.txt of shards": Reader(
        "foreign/classes.txt", BYTES, lambda f: load_data(fresh_shards(f.parent), for_training=False)
    ),
    "zip archive": Reader("images.zip", BYTES, read_images),
    "CSV table": Reader("table.csv", BYTES, read_images),
    "TSV table": Reader("table.tsv", BYTES, read_images),
    "Parquet table": Reader("table.parquet", BYTES, read_images, needs="pyarrow"),
    "class names": Reader("names.txt", BYTES, read_class_names),
    "messages of a device": Reader(
        "messages.json", (json_values,), lambda f: read_messages(f, f.parent / ONNX), needs="onnxruntime"
    ),
    "requests to the page": Reader("request.http", BYTES, send_request),
    "classes.txt": Reader("shapes/classes.txt", BYTES, lambda f: load_semantic(f.parent, workers=1)),
    "record of an artifact": Reader(
        f"{ONNX}.json", (json_values, *BYTES), lambda f: read_record(f.with_suffix(""))
    ),
    "ONNX artifact": Reader(ONNX, (flip_bits, truncate), open_artifact, checked=True),
    "LiteRT artifact": Reader(LITERT, BYTES, open_artifact, checked=True, needs="ai_edge_litert"),
    "OpenVINO artifact": Reader(
        OPENVINO, BYTES, lambda f: open_artifact(f.parent), checked=True, needs="openvino"
    ),
    "config.json of the hub": Reader(
        "config.json", (json_values, *BYTES), lambda f: describe_by_timm(Metadata(), f, 3, source="hub")
    ),
    "arguments of info": Reader("info.json", (json_values,), read_arguments),
    **{f"arguments of {verb}": Reader(f"{verb}.json", (json_values,), parse_arguments) for verb in ARGUMENTS},
    "--set": Reader("set.json", (json_values,), read_overrides),
    "video": Reader("video.mp4", BYTES, read_video),
    **{f"{ending} image": Reader(f"image.{ending}", BYTES, read_any_image) for ending in IMAGES},
    **{f"image {name}": Reader(name, BYTES, read_any_image) for name in ODD_IMAGES},
}
