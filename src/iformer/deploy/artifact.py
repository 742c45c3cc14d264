"""An exported artifact on disk: a file or folder, and the JSON record beside it that describes it."""

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
from typing import Any, Literal

from torch import nn

from iformer.config.checking import check, check_types, from_plain, to_plain
from iformer.config.preprocessing import Preprocessing
from iformer.deploy.exportable import Task
from iformer.errors import ConfigError, UserError
from iformer.files import write_text


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo:
    """The record of an artifact: how to feed it, how to read its outputs, and how it was checked."""

    format: Literal["iformer-artifact-1"] = "iformer-artifact-1"
    runtime: str
    """A name in `iformer.deploy.runtimes.registry.RUNTIMES`."""
    file: str
    """Name of the artifact, a file or folder beside this record."""
    sha256: str
    """`artifact_hash` at the time of export."""
    network: str
    precision: Literal["fp32", "fp16", "bf16", "int8", "palette6"] = "fp32"
    """palette6: weights are 6-bit indices into a table per layer, computed with in fp16."""
    input_name: str
    input_dtype: Literal["uint8", "float32", "image"]
    """image: the runtime's own image type, RGB."""
    input_layout: Literal["NHWC", "NCHW"]
    normalized_by: Literal["graph", "caller"]
    """graph: the input has pixel values of 0 to 255. caller: the caller divides them by 255 and normalises them
    with `preprocessing.mean` and `.std` (`--raw`)."""
    batch: int | None
    """Images per call; None means any number."""
    preprocessing: Preprocessing
    """How an image becomes the input: the caller resizes and crops, `normalized_by` normalises."""
    output_name: str
    output: Literal["logits"] = "logits"
    """One logit per class, batch x classes; softmax gives probabilities."""
    task: Task = "classify"
    num_classes: int
    class_names: tuple[str, ...] = ()
    """One name per class, in the order of the logits; empty if unknown."""
    weights_sha256: str
    """`weights_hash` of the network before folding."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the weights, as in the checkpoint's metadata."""
    versions: dict[str, str] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    """The converted graph: its operations, and those that will not be accelerated."""
    status: Literal["run here", "converted, not run here"] = "run here"
    """Whether the exporting machine ran the artifact in its own runtime."""
    checked_by: str = ""
    """What computed the artifact's outputs for `parity`."""
    parity: dict[str, Any] | None = None
    """Result of `iformer.deploy.parity.compare`; None if not compared."""
    accuracy: dict[str, Any] | None = None
    """Metrics of the artifact and of the network on a data set; None if not measured."""
    quantization: dict[str, Any] | None = None
    """How a quantized artifact was calibrated, and which layers stayed in higher precision."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.batch is None or self.batch >= 1, self, "batch", "a whole number of 1 or more, or null")

    @property
    def input_shape(self) -> tuple[int | None, int, int, int]:
        """Shape of the input in `input_layout`; None means any batch."""
        height, width = self.preprocessing.size
        channels = len(self.preprocessing.mean)
        if self.input_layout == "NHWC":
            return self.batch, height, width, channels
        return self.batch, channels, height, width

    @property
    def outputs(self) -> dict[str, str]:
        """Outputs by name, with the name that each has in the artifact."""
        return {self.output: self.output_name}

    def to_plain(self) -> dict[str, Any]:
        """Return nested dicts and lists for JSON."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ArtifactInfo:
        """Build a record from the result of `to_plain`.

        Raises:
            ConfigError: a field is unknown, missing or invalid; the message names it.
        """
        return from_plain(cls, plain)


@contextmanager
def staged(artifact: Path) -> Iterator[Path]:
    """Yield a path for an artifact (a file or folder) and its record; move both to their places at the end.

    If the block fails, nothing changes. A folder is replaced only if it is an artifact, that is, has a record.

    Raises:
        UserError: `artifact` is a folder and not an artifact.
        OSError: the folder cannot be created or written.
    """
    if artifact.is_dir() and not record_path(artifact).is_file():
        raise UserError(f"{artifact} is a folder and not an artifact; choose another name")
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
            with suppress(OSError):  # not empty any more
                made.rmdir()
        raise


def _take_place(path: Path, target: Path, *, displaced: Path) -> None:
    """Rename `path` to `target`. An existing folder is first moved to `displaced`."""
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
    """Return the path of an artifact's record: `net.onnx.json` for `net.onnx`."""
    return artifact.with_name(artifact.name + ".json")


def write_record(info: ArtifactInfo, artifact: Path) -> Path:
    """Write the record beside its artifact."""
    return write_text(record_path(artifact), json.dumps(info.to_plain(), indent=2) + "\n")


def read_record(artifact: Path) -> ArtifactInfo:
    """Read the record of an artifact and check the artifact's hash.

    Raises:
        UserError: the record is missing or damaged, or the artifact was changed after its export.
    """
    path = record_path(artifact)
    try:
        info = ArtifactInfo.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it together with the artifact") from None
    except (ConfigError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not the record of an artifact: {error}") from None
    try:
        found = artifact_hash(artifact)
    except FileNotFoundError:
        raise UserError(f"{artifact} is missing; only its record exists") from None
    if found != info.sha256:
        raise UserError(f"{artifact} was changed after its export: its sha256 is not the one in {path.name}")
    return info


def artifact_hash(path: Path) -> str:
    """Return the sha256 in hex of a file's bytes, or of the names, sizes and bytes of a folder's files."""
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(part for part in path.rglob("*") if part.is_file()):
        digest.update(f"{part.relative_to(path).as_posix()} {part.stat().st_size}\n".encode())
        digest.update(part.read_bytes())
    return digest.hexdigest()


def artifact_bytes(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    return sum(file.stat().st_size for file in files)


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Return whether a record lies beside `path`."""
    return record_path(Path(path)).is_file()


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of a network's state dict: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
