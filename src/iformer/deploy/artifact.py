"""What an exported file is, in a small JSON beside it: the same record for every runtime."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from iformer.config.checking import check, check_types, from_plain, to_plain
from iformer.config.preprocessing import Preprocessing
from iformer.errors import ConfigError, UserError
from iformer.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo:
    """Everything somebody needs to feed an artifact and to read its output, and how it was checked."""

    format: Literal["iformer-artifact-1"] = "iformer-artifact-1"
    runtime: str
    """`onnx`, …"""
    file: str
    """Name of the artifact, which lies beside this record."""
    sha256: str
    """Of the artifact's bytes: a file that was changed after export no longer has it."""
    network: str
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    input_name: str
    input_dtype: Literal["uint8", "float32"]
    """uint8: RGB values 0 to 255, normalised in the graph. float32: normalised by the caller with
    `preprocessing.mean` and `.std`, after dividing by 255."""
    input_layout: Literal["NHWC", "NCHW"]
    batch: int | None
    """Images in one call; None: any number."""
    preprocessing: Preprocessing
    """How an image becomes the input: resized and cropped by the caller; normalised in the graph where
    `input_dtype` is uint8."""
    output_name: str
    output: Literal["logits"] = "logits"
    """One logit a class, batch x classes; softmax gives probabilities."""
    task: str = "classify"
    class_names: tuple[str, ...] = ()
    weights_sha256: str
    """Of the network's weights before folding; see `weights_hash`."""
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] | None = None
    """What `iformer.deploy.parity.compare` found; None: not compared."""
    accuracy: dict[str, Any] | None = None
    """Metrics of the artifact itself on a data set; None: not measured."""

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

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """uint8 RGB images of the network's size, B x 3 x H x W, to logits, B x K, float32."""


@contextmanager
def staged(artifact: Path) -> Iterator[Path]:
    """A path to write an artifact and its record to; both take their places only when the block succeeds.

    Raises:
        OSError: the folder cannot be made or written.
    """
    artifact.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".iformer-export-", dir=artifact.parent) as folder:
        path = Path(folder) / artifact.name
        yield path
        os.replace(path, artifact)
        os.replace(record_path(path), record_path(artifact))


def record_path(artifact: Path) -> Path:
    """Where the record of an artifact lies: `net.onnx` has `net.onnx.json`."""
    return artifact.with_name(artifact.name + ".json")


def write_record(info: ArtifactInfo, artifact: Path) -> Path:
    """Write the record beside its artifact, whole or not at all."""
    path = record_path(artifact)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(info.to_plain(), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


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
    if file_hash(artifact) != info.sha256:
        raise UserError(f"{artifact} was changed after its export: its sha256 is not that of {path.name}")
    return info


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(model: Backbone) -> str:
    """sha256 of the names, shapes, types and values of a network's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
