"""An exported artifact on disk: a file or folder, and a JSON record next to it that describes it."""

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
from iformer.errors import ConfigError, OutputError, UserError
from iformer.files import read_at_most, removed_on_failure, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_BATCH = 4096
"""Largest number of images per call of an artifact."""
_MAX_INPUT_VALUES = 2**31
"""Largest number of values in an input. A record with more is refused, because inputs are padded to the batch."""
_MAX_RECORD_BYTES = 16_000_000
_STAGING = ".iformer-export-"
_CHECKSUM = "record_sha256"
_Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "e3b0c442…")]


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo(Config):
    """Record of an artifact: the form of its input, the meaning of its outputs, and how it was checked."""

    label: ClassVar[str] = "record"

    format: Literal["iformer-artifact-1"] = "iformer-artifact-1"
    runtime: Text
    """Name of the runtime in `iformer.deploy.runtimes.registry.RUNTIMES`."""
    backend: Text | None = None
    """ExecuTorch only: the program's backend, a name in `iformer.deploy.runtimes.registry.BACKENDS`. None in
    records of early versions, whose programs are for XNNPACK."""
    file: Text
    """Name of the artifact, a file or folder next to this record."""
    sha256: _Sha256
    """`artifact_hash` of the artifact at the time of export."""
    network: Annotated[str, Length(0, 4096)]
    precision: Literal["fp32", "fp16", "bf16", "int8", "int8-dynamic", "palette6"] = "fp32"
    """Number format. int8-dynamic: 8-bit weights; activations are quantized at run time by their range in each
    call. palette6: weights are 6-bit indices into one table per layer, and arithmetic is fp16."""
    input_name: Text
    input_dtype: Literal["uint8", "float32", "image"]
    """Type of the input. image: the runtime's own RGB image type."""
    input_layout: Literal["NHWC", "NCHW"]
    normalized_by: Literal["graph", "caller"]
    """Where pixels are normalised. graph: inside the artifact; the input has values of 0 to 255. caller (`--raw`):
    before the call, which divides by 255 and applies `preprocessing.mean` and `.std`."""
    batch: Annotated[int, Range(1, MAX_BATCH)] | None
    """Number of images per call; None means any number."""
    preprocessing: Preprocessing
    """Resizing and cropping, done by the caller, and normalisation, done by `normalized_by`."""
    output_name: Text
    """Name of the first output in the artifact."""
    output: Text = "logits"
    """Name of the first output. Classifiers: `logits`, batch x classes; softmax gives probabilities, or sigmoid if
    `postprocess` says so. See `docs/reference/artifact.md` for detectors and segmenters."""
    more_outputs: dict[str, Text] = field(default_factory=dict)
    """The other outputs: name -> name in the artifact."""
    output_shapes: dict[str, tuple[Annotated[int, Range(1, 10**9)], ...]] = field(default_factory=dict)
    """Shape of every output for one image, without the batch axis. Empty in records of early versions."""
    postprocess: dict[str, Any] | None = None
    """Settings that turn outputs into answers, by task: thresholds, limits, colours. None: no postprocessing.
    Multi-label classifiers: `{"activation": "sigmoid", "threshold": …}`."""
    task: Text = "classify"
    num_classes: Annotated[int, Range(1, 1_000_000)]
    class_names: tuple[str, ...] = ()
    """One name per class, in the order of the outputs; empty if unknown."""
    weights_sha256: _Sha256
    """`weights_hash` of the network before it was folded."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the weights, as in the checkpoint's metadata."""
    versions: dict[str, str] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    """Facts about the converted graph: counts of its operations, and the operations that are not accelerated."""
    status: Literal["run here", "converted, not run here"] = "run here"
    """Whether the artifact was run in its own runtime on the machine that exported it."""
    checked_by: str = ""
    """Runtime or stand-in that computed the artifact's outputs for `parity`; empty without a comparison."""
    parity: dict[str, Any] | None = None
    """Result of `iformer.deploy.parity.compare`; None if the artifact was not compared."""
    accuracy: dict[str, Any] | None = None
    """Metrics of the artifact and of the network on a data set; None if they were not measured."""
    quantization: dict[str, Any] | None = None
    """Calibration and layers in higher precision of a quantized artifact; None if it is not quantized."""
    record_sha256: str = field(default="", compare=False)
    """`record_hash` of the other fields; empty in records of early versions, which are not protected by a hash."""

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
        """Shape of the input in `input_layout`. The batch axis is None if any batch is accepted."""
        height, width = self.preprocessing.size
        channels = len(self.preprocessing.mean)
        if self.input_layout == "NHWC":
            return self.batch, height, width, channels
        return self.batch, channels, height, width

    @property
    def outputs(self) -> dict[str, str]:
        """All outputs: name -> name in the artifact."""
        return {self.output: self.output_name} | self.more_outputs

    @property
    def multi_label(self) -> bool:
        """Whether the network is a multi-label classifier: a yes or no for each class."""
        return self.task == "classify" and (self.postprocess or {}).get("activation") == "sigmoid"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each output for one image, by name, without the batch axis."""
        return self.output_shapes or {self.output: (self.num_classes,)}


@contextmanager
def staged(artifact: Path) -> Iterator[Path]:
    """Yield a temporary path for an artifact (a file or folder); move it and its record into place at the end.

    If the block fails, nothing changes. An existing folder is replaced only if it is an artifact, that is, has a
    record.

    Raises:
        UserError: `artifact` is an existing folder that is not an artifact.
        OutputError: the folder cannot be created or written.
    """
    if os.path.isdir(artifact) and not _is_record(record_path(artifact), artifact.name):
        raise UserError(f"{artifact} is a folder and not an artifact; choose another name")
    try:
        os.lstat(record_path(artifact))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # such as a name that is too long for a file
        raise OutputError(f"cannot write {artifact}: {error.strerror or error}") from error
    with removed_on_failure(artifact.parent), _staging_folder(artifact.parent) as folder:
        path = folder / "new" / artifact.name
        path.parent.mkdir()
        try:
            yield path
        except UserError as error:  # such as from a runtime that cannot load it: name the file that was asked for
            error.args = tuple(str(part).replace(str(path), str(artifact)) for part in error.args)
            raise
        with _exclusive(artifact.parent):
            take_place(path, artifact, displaced=folder / "old")
            os.replace(record_path(path), record_path(artifact))


def _is_record(path: Path, name: str) -> bool:
    """Return whether a file is the record, perhaps a damaged one, of the artifact `name`."""
    try:
        content = json.loads(read_at_most(path, _MAX_RECORD_BYTES) or b"")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("file") == name and "runtime" in content


@contextmanager
def _staging_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder in `parent`, and remove temporary folders left there by killed processes."""
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
    """Lock a folder against other exports while the block runs, if the file system supports locks."""
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
    """Rename `path` to `target`. An existing folder at `target` is first moved to `displaced`, then removed.

    Raises:
        OSError: a rename fails; `target` is then unchanged.
    """
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
    """Return the path of an artifact's record, such as `net.onnx.json` for `net.onnx`."""
    return artifact.with_name(artifact.name + ".json")


def write_record(info: ArtifactInfo, artifact: Path) -> Path:
    """Write a record, with its checksum, next to its artifact; return the path of the record.

    Raises:
        OutputError: the file cannot be written.
    """
    plain = info.to_plain()
    plain[_CHECKSUM] = record_hash(plain)
    return write_text(record_path(artifact), json.dumps(plain, indent=2) + "\n")


def record_hash(plain: Mapping[str, Any]) -> str:
    """Return the SHA-256 in hex of a record without `record_sha256`, as JSON with sorted keys and no spaces."""
    fields = {name: value for name, value in plain.items() if name != _CHECKSUM}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_record(artifact: Path) -> ArtifactInfo:
    """Read the record of an artifact, and check the record's checksum and the artifact's hash.

    Raises:
        UserError: the record is missing, damaged or edited, or the artifact was changed after its export.
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
    """Return the SHA-256 in hex of a file's bytes, or of the names, sizes and bytes of a folder's files."""
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
    """Return the regular files of an artifact; pipes and devices are left out, because they could block."""
    return sorted(part for part in (path, *path.rglob("*")) if part.is_file())


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is an artifact, that is, whether its record exists."""
    return bool(Path(path).name) and os.path.isfile(record_path(Path(path)))


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 in hex of a network's state dict: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
