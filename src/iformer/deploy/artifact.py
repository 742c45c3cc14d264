"""What an exported file is, in a small JSON beside it: the same record for every runtime."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from iformer.config.checking import check, check_types, from_plain, to_plain
from iformer.config.preprocessing import Preprocessing
from iformer.errors import ConfigError, UserError
from iformer.files import write_text
from iformer.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo:
    """Everything somebody needs to feed an artifact and to read its output, and how it was checked."""

    format: Literal["iformer-artifact-1"] = "iformer-artifact-1"
    runtime: str
    """A name of `iformer.deploy.runtimes.registry.RUNTIMES`: `onnx`, …"""
    file: str
    """Name of the artifact, a file or a folder, which lies beside this record."""
    sha256: str
    """Of the artifact's bytes (`artifact_hash`): one that was changed after export no longer has it."""
    network: str
    precision: Literal["fp32", "fp16", "bf16", "int8", "palette6"] = "fp32"
    """palette6: weights as indices of 6 bits into a table for each layer, computed with in fp16."""
    input_name: str
    input_dtype: Literal["uint8", "float32", "image"]
    """image: the runtime's own image type, RGB."""
    input_layout: Literal["NHWC", "NCHW"]
    normalized_by: Literal["graph", "caller"]
    """graph: the input's values are those of the image file, 0 to 255. caller: they are divided by 255 and
    normalised with `preprocessing.mean` and `.std` before they are fed (`--raw`)."""
    batch: int | None
    """Images in one call; None: any number."""
    preprocessing: Preprocessing
    """How an image becomes the input: resized and cropped by the caller, normalised by `normalized_by`."""
    output_name: str
    output: Literal["logits"] = "logits"
    """One logit a class, batch x classes; softmax gives probabilities."""
    task: Literal["classify", "detect", "segment"] = "classify"
    num_classes: int
    class_names: tuple[str, ...] = ()
    """One name a class, in the order of the logits; empty where they are not known."""
    weights_sha256: str
    """Of the network's weights before folding; see `weights_hash`."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from, as in the checkpoint's metadata."""
    versions: dict[str, str] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    """What the runtime's format made of the network: operations, and what will not be accelerated."""
    status: Literal["run here", "converted, not run here"] = "run here"
    """Whether the machine that exported it has run it in its own runtime."""
    checked_by: str = ""
    """What gave the artifact's logits in `parity`."""
    parity: dict[str, Any] | None = None
    """What `iformer.deploy.parity.compare` found; None: not compared."""
    accuracy: dict[str, Any] | None = None
    """Metrics of the artifact itself on a data set, beside the network's own; None: not measured."""
    quantization: dict[str, Any] | None = None
    """How the ranges of a quantized artifact were found, and which layers stayed as they were."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.batch is None or self.batch >= 1, self, "batch", "a whole number of 1 or more, or nothing")

    @property
    def input_shape(self) -> tuple[int | None, int, int, int]:
        """The input's shape in `input_layout`; None stands for any batch."""
        height, width = self.preprocessing.size
        channels = len(self.preprocessing.mean)
        if self.input_layout == "NHWC":
            return self.batch, height, width, channels
        return self.batch, channels, height, width

    def to_plain(self) -> dict[str, Any]:
        """Nested dicts and lists for JSON."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ArtifactInfo:
        """The inverse of `to_plain`; an unknown, missing or invalid field is a `ConfigError` that names it."""
        return from_plain(cls, plain)


class Runner(Protocol):
    """An artifact loaded in its own runtime."""

    info: ArtifactInfo
    stands_in_for: str | None
    """None, or what was computed instead, where the runtime itself cannot run on this machine."""

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """uint8 RGB images of the network's size, B x 3 x H x W, to logits, B x K, float32."""


@contextmanager
def staged(artifact: Path) -> Iterator[Path]:
    """A path to write an artifact (a file or a folder) and its record to.

    Both take their places only when the block succeeds. An artifact that is a folder takes the place of
    another one, never that of a folder which no record calls an artifact.

    Raises:
        UserError: a folder that is no artifact is in the way.
        OSError: the folder cannot be made or written.
    """
    if artifact.is_dir() and not record_path(artifact).is_file():
        raise UserError(f"{artifact} is a folder and no artifact; give the artifact another name")
    missing = [folder for folder in (artifact.parent, *artifact.parent.parents) if not folder.exists()]
    artifact.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".iformer-export-", dir=artifact.parent) as folder:
            path = Path(folder) / "new" / artifact.name
            path.parent.mkdir()
            yield path
            _take_place(path, artifact, displaced=Path(folder) / "old")
            os.replace(record_path(path), record_path(artifact))
    except BaseException:
        for made in missing:
            with suppress(OSError):  # something of another's lies there by now
                made.rmdir()
        raise


def _take_place(path: Path, target: Path, *, displaced: Path) -> None:
    """Rename `path` to `target`; a folder cannot be renamed onto another, so that one is moved away first."""
    if not (path.is_dir() or target.is_dir()) or not target.exists():
        os.replace(path, target)
        return
    os.replace(target, displaced)
    try:
        os.replace(path, target)
    except OSError:
        os.replace(displaced, target)
        raise
    if displaced.is_dir():
        shutil.rmtree(displaced)


def record_path(artifact: Path) -> Path:
    """Where the record of an artifact lies: `net.onnx` has `net.onnx.json`."""
    return artifact.with_name(artifact.name + ".json")


def write_record(info: ArtifactInfo, artifact: Path) -> Path:
    """Write the record beside its artifact."""
    return write_text(record_path(artifact), json.dumps(info.to_plain(), indent=2) + "\n")


def read_record(artifact: Path) -> ArtifactInfo:
    """The record of an artifact.

    Raises:
        UserError: there is none, it is damaged, or the artifact is not the file that it describes.
    """
    path = record_path(artifact)
    try:
        info = ArtifactInfo.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; an artifact needs the record that was exported with it") from None
    except (ConfigError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not the record of an artifact: {error}") from None
    try:
        found = artifact_hash(artifact)
    except FileNotFoundError:
        raise UserError(f"{artifact} is missing; only its record is there") from None
    if found != info.sha256:
        raise UserError(f"{artifact} was changed after its export: its sha256 is not that of {path.name}")
    return info


def artifact_hash(path: Path) -> str:
    """sha256 in hex: of a file's bytes, or of the names, sizes and bytes of all files in a folder."""
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(part for part in path.rglob("*") if part.is_file()):
        digest.update(f"{part.relative_to(path).as_posix()} {part.stat().st_size}\n".encode())
        digest.update(part.read_bytes())
    return digest.hexdigest()


def artifact_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    return sum(file.stat().st_size for file in files)


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether an artifact's record lies beside a path."""
    return record_path(Path(path)).is_file()


def weights_hash(model: Backbone) -> str:
    """sha256 of the names, shapes, types and values of a network's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
