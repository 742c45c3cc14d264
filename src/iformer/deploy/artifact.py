"""An exported artifact on disk: a file or folder, and the JSON record beside it that describes it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from torch import nn

from iformer.config.checking import Config, Length, Pattern, Range, Text, check
from iformer.config.preprocessing import Preprocessing
from iformer.errors import ConfigError, UserError
from iformer.files import output_folder, read_at_most, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_BATCH = 4096
"""Largest number of images per call."""
_MAX_INPUT_VALUES = 2**31
"""Largest number of values in an input: images of a call are padded to the batch."""
_MAX_RECORD_BYTES = 16_000_000
_STAGING = ".iformer-export-"
_CHECKSUM = "record_sha256"
_Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "e3b0c442…")]


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo(Config):
    """The record of an artifact: how to feed it, how to read its outputs, and how it was checked."""

    label: ClassVar[str] = "record"

    format: Literal["iformer-artifact-1"] = "iformer-artifact-1"
    runtime: Text
    """A name in `iformer.deploy.runtimes.registry.RUNTIMES`."""
    backend: Text | None = None
    """ExecuTorch only: the backend that the program is for, a name in `iformer.deploy.runtimes.registry.BACKENDS`.
    Records of early versions have none; their programs are for XNNPACK."""
    file: Text
    """Name of the artifact, a file or folder beside this record."""
    sha256: _Sha256
    """`artifact_hash` at the time of export."""
    network: Annotated[str, Length(0, 4096)]
    precision: Literal["fp32", "fp16", "bf16", "int8", "int8-dynamic", "palette6"] = "fp32"
    """int8-dynamic: weights in 8 bits; activations are quantized at run time, by the range of each call. palette6:
    weights are 6-bit indices into a table per layer, computed with in fp16."""
    input_name: Text
    input_dtype: Literal["uint8", "float32", "image"]
    """image: the runtime's own image type, RGB."""
    input_layout: Literal["NHWC", "NCHW"]
    normalized_by: Literal["graph", "caller"]
    """graph: the input has pixel values of 0 to 255. caller: the caller divides them by 255 and normalises them
    with `preprocessing.mean` and `.std` (`--raw`)."""
    batch: Annotated[int, Range(1, MAX_BATCH)] | None
    """Images per call; None means any number."""
    preprocessing: Preprocessing
    """How an image becomes the input: the caller resizes and crops, `normalized_by` normalises."""
    output_name: Text
    """Name of the first output in the artifact."""
    output: Text = "logits"
    """What the first output is. Classifiers: `logits`, batch x classes; softmax gives probabilities, or sigmoid
    if `postprocess` says so.
    `docs/reference/artifact.md` has those of detectors and segmenters."""
    more_outputs: dict[str, Text] = field(default_factory=dict)
    """The other outputs, each with its name in the artifact."""
    output_shapes: dict[str, tuple[Annotated[int, Range(1, 10**9)], ...]] = field(default_factory=dict)
    """Shape of every output for one image, without the batch. Empty in records of early versions."""
    postprocess: dict[str, Any] | None = None
    """How the outputs become an answer, by the task: thresholds, limits, colours. None: they are the answer.
    Multi-label classifiers: `{"activation": "sigmoid", "threshold": …}`."""
    task: Text = "classify"
    num_classes: Annotated[int, Range(1, 1_000_000)]
    class_names: tuple[str, ...] = ()
    """One name per class, in the order of the outputs; empty if unknown."""
    weights_sha256: _Sha256
    """`weights_hash` of the network before folding."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the weights, as in the checkpoint's metadata."""
    versions: dict[str, str] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    """The converted graph: its operations, and those that will not be accelerated."""
    status: Literal["run here", "converted, not run here"] = "run here"
    """Whether the exporting machine ran the artifact in its own runtime."""
    checked_by: str = ""
    """Runtime or stand-in that computed the artifact's outputs for `parity`; empty if they were not compared."""
    parity: dict[str, Any] | None = None
    """Result of `iformer.deploy.parity.compare`; None if not compared."""
    accuracy: dict[str, Any] | None = None
    """Metrics of the artifact and of the network on a data set; None if not measured."""
    quantization: dict[str, Any] | None = None
    """How a quantized artifact was calibrated, and which layers stayed in higher precision."""
    record_sha256: str = field(default="", compare=False)
    """`record_hash` of the other fields; empty in the records of early versions, which are not protected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"no names, or {self.num_classes} distinct ones"
        names = len(self.class_names)
        check(names in (0, self.num_classes), self, "class_names", expected)
        check(len(set(self.class_names)) == names, self, "class_names", expected)
        values = (self.batch or 1) * math.prod(self.preprocessing.size) * len(self.preprocessing.mean)
        check(
            values <= _MAX_INPUT_VALUES, self, "batch", f"fewer images, {_MAX_INPUT_VALUES:,} values in one call"
        )
        same = not self.output_shapes or self.output_shapes.keys() == self.outputs.keys()
        check(same, self, "output_shapes", f"a shape for each of {', '.join(self.outputs)}")

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
        return {self.output: self.output_name} | self.more_outputs

    @property
    def multi_label(self) -> bool:
        """Whether it is a classifier that answers each class with yes or no."""
        return self.task == "classify" and (self.postprocess or {}).get("activation") == "sigmoid"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each output for one image."""
        return self.output_shapes or {self.output: (self.num_classes,)}


@contextmanager
def staged(artifact: Path) -> Iterator[Path]:
    """Yield a path for an artifact (a file or folder) and its record; move both to their places at the end.

    If the block fails, nothing changes. A folder is replaced only if it is an artifact, that is, has a record.

    Raises:
        UserError: `artifact` is a folder and not an artifact.
        OutputError: the folder cannot be created or written.
    """
    if artifact.is_dir() and not _is_record(record_path(artifact), artifact.name):
        raise UserError(f"{artifact} is a folder and not an artifact; choose another name")
    missing = [folder for folder in (artifact.parent, *artifact.parent.parents) if not folder.exists()]
    output_folder(artifact.parent)
    try:
        with _staging_folder(artifact.parent) as folder:
            path = folder / "new" / artifact.name
            path.parent.mkdir()
            yield path
            with _exclusive(artifact.parent):
                take_place(path, artifact, displaced=folder / "old")
                os.replace(record_path(path), record_path(artifact))
    except BaseException:
        for made in missing:
            with suppress(OSError):  # not empty any more
                made.rmdir()
        raise


def _is_record(path: Path, name: str) -> bool:
    """Whether a file is the record of an artifact of this name, perhaps damaged."""
    try:
        content = json.loads(read_at_most(path, _MAX_RECORD_BYTES) or b"")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("file") == name and "runtime" in content


@contextmanager
def _staging_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder in `parent`, and remove those that killed processes left there."""
    with _exclusive(parent):
        for left in parent.glob(f"{_STAGING}*"):
            with suppress(OSError), open(left / "lock", "rb") as held:
                if fcntl is not None:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=parent))
        lock = open(folder / "lock", "wb")  # noqa: SIM115 - held until the folder is removed
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keep other exports out of a folder inside the block, if the file system has locks."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def take_place(path: Path, target: Path, *, displaced: Path) -> None:
    """Rename `path` to `target`. An existing folder is first moved to `displaced`, then removed."""
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
    """Write the record, with its checksum, beside its artifact."""
    plain = info.to_plain()
    plain[_CHECKSUM] = record_hash(plain)
    return write_text(record_path(artifact), json.dumps(plain, indent=2) + "\n")


def record_hash(plain: Mapping[str, Any]) -> str:
    """Return the sha256 in hex of the other fields of a record, as JSON with sorted keys and without spaces."""
    fields = {name: value for name, value in plain.items() if name != _CHECKSUM}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_record(artifact: Path) -> ArtifactInfo:
    """Read the record of an artifact and check its checksum and the artifact's hash.

    Raises:
        UserError: the record is missing, damaged or was edited, or the artifact was changed after its export.
    """
    path = record_path(artifact)
    try:
        content = read_at_most(path, _MAX_RECORD_BYTES)
        if content is None:
            raise UserError(f"{path} is not the record of an artifact: more than {_MAX_RECORD_BYTES:,} bytes")
        plain = json.loads(content.decode())
        info = ArtifactInfo.from_plain(plain)
        edited = info.record_sha256 not in ("", record_hash(plain))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it together with the artifact") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except ConfigError as error:
        raise UserError(f"{path} is not the record of an artifact: {error}") from None
    except UserError:
        raise
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number too long or nesting too deep
        raise UserError(f"{path} is not the record of an artifact: it is not readable JSON") from None
    if edited:
        raise UserError(f"{path} was edited after the export: its record_sha256 does not fit; export again")
    if not artifact.exists():
        raise UserError(f"{artifact} is missing; only its record exists")
    if artifact_hash(artifact) != info.sha256:
        raise UserError(f"{artifact} was changed after its export: its sha256 is not the one in {path.name}")
    return info


def artifact_hash(path: Path) -> str:
    """Return the sha256 in hex of a file's bytes, or of the names, sizes and bytes of a folder's files."""
    digest = hashlib.sha256()
    for part in _files(path):
        if path.is_dir():
            digest.update(f"{part.relative_to(path).as_posix()} {part.stat().st_size}\n".encode())
        with open(part, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def artifact_bytes(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    """Return the regular files of an artifact; anything else could block the reader."""
    return sorted(part for part in (path, *path.rglob("*")) if part.is_file())


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Return whether a record lies beside `path`."""
    return bool(Path(path).name) and record_path(Path(path)).is_file()


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of a network's state dict: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
