"""Base class of all runners, which converts uint8 images to an artifact's input, and results to named outputs."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from iformer.data.transforms import Normalize
from iformer.deploy.artifact import read_record
from iformer.deploy.exportable import Outputs, named
from iformer.deploy.runtimes.registry import find_runtime
from iformer.deploy.spec import ExportSpec, embedded, embedded_hash
from iformer.errors import UserError


class ArtifactRunner(ABC):
    """An artifact loaded in its own runtime. Each runtime's module has a subclass."""

    stand_in: str | None = None
    """Description of the stand-in that computes the outputs; None if the runtime itself does."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load an artifact and its record.

        Args:
            path: the artifact.
            threads: number of threads of the runtime; 0 lets the runtime choose. Ignored by Core ML.

        Raises:
            MissingDependencyError: the runtime is not installed.
            UserError: the record is missing, the artifact does not match the record, or the runtime cannot load it
                on this machine.
        """
        self.path = path
        self.info = read_record(path)
        self._normalize = Normalize(self.info.preprocessing)
        try:
            found = self.open(threads)
        except UserError:
            raise
        except Exception as error:  # the runtimes' errors have no common base class
            raise self._unusable("loaded", error) from None
        if found is not None:
            self._check_embedded(found)

    @classmethod
    def for_check(cls, path: Path) -> ArtifactRunner | None:
        """Load an artifact for the parity check, in its runtime or, if that cannot run here, in a stand-in.

        Returns:
            The runner, or None if this machine has neither.
        """
        return cls(path)

    @abstractmethod
    def open(self, threads: int) -> Mapping[str, str] | None:
        """Load the artifact and return the metadata stored in the file; None if the format has no metadata."""

    @abstractmethod
    def run(self, fed: Tensor) -> Sequence[Any]:
        """Run the artifact once. A benchmark times this method alone.

        Args:
            fed: an input returned by `prepare`, with the artifact's batch.

        Returns:
            One array per output, in the order of the record's `outputs`.
        """

    def __call__(self, images_BCHW: Tensor) -> Outputs:
        """Return the float32 outputs, on the CPU, for any number of uint8 images of the network's input size.

        Raises:
            UserError: the runtime cannot run the artifact, or an output has another shape than in the record.
        """
        fed = self.prepare(images_BCHW)
        if self.info.batch is None:
            return self._outputs(fed)
        chunks = []
        for chunk in torch.split(fed, self.info.batch):
            missing = self.info.batch - len(chunk)
            padded = torch.cat([chunk, chunk[-1:].expand(missing, *chunk.shape[1:])]) if missing else chunk
            chunks.append({name: output[: len(chunk)] for name, output in self._outputs(padded).items()})
        return {name: torch.cat([outputs[name] for outputs in chunks]) for name in chunks[0]}

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """Convert uint8 images, B x C x H x W, to the layout and type of the artifact's input."""
        if self.info.normalized_by == "caller":
            normalized: Tensor = self._normalize(images_BCHW)
            return normalized.contiguous()
        if self.info.input_layout == "NHWC":
            return images_BCHW.permute(0, 2, 3, 1).contiguous()
        return images_BCHW.contiguous()

    def _outputs(self, fed: Tensor) -> Outputs:
        try:
            # copy the outputs: some runtimes overwrite the returned memory at the next call
            values = [torch.tensor(value, dtype=torch.float32) for value in self.run(fed)]
        except Exception as error:  # the record does not match the artifact, such as in a name or layout
            raise self._unusable("run", error) from None
        outputs = named(list(self.info.outputs), values)
        for name, shape in self.info.shapes.items():
            if outputs[name].shape != (len(fed), *shape):
                found, expected = (" x ".join(map(str, s)) for s in (outputs[name].shape, (len(fed), *shape)))
                raise UserError(f"{self.path}: {name} are {found}, by its record they are {expected}")
        return outputs

    def _unusable(self, what: str, error: Exception) -> UserError:
        title = find_runtime(self.info.runtime).with_backend(self.info.backend).title
        reason = " ".join(str(error).split()) or type(error).__name__
        return UserError(f"{self.path} cannot be {what} by {title}: {reason[:300]}")

    def _check_embedded(self, found: Mapping[str, str]) -> None:
        info, found = self.info, found if isinstance(found, Mapping) else {}
        expected = embedded(info.class_names, info.preprocessing, info.postprocess)
        if "checksum" in found:
            if found["checksum"] != embedded_hash(found):
                raise UserError(f"{self.path}: the metadata inside the file does not fit its checksum")
            expected |= {"precision": info.precision, "normalized_by": info.normalized_by, "task": info.task}
            expected |= {"network": info.network}
        for key, value in expected.items():
            if found.get(key) != value:
                raise UserError(f"{self.path}: {key} inside the file and in its record differ")


class RuntimeModule(Protocol):
    """Protocol of a runtime's module, `iformer/deploy/runtimes/NAME.py`."""

    RUNNER: type[ArtifactRunner]
    """Class that loads and runs an artifact."""

    def write(self, spec: ExportSpec, path: Path) -> dict[str, Any]:
        """Convert a network to the file or folder `path`, and return the record's `graph`."""


def runtime_module(runtime: str) -> RuntimeModule:
    """Import the module of a runtime, given by its name in `RUNTIMES`.

    Raises:
        UnknownNameError: the runtime is unknown.
    """
    name = find_runtime(runtime).name
    return cast(RuntimeModule, importlib.import_module(f"iformer.deploy.runtimes.{name}"))


def open_artifact(path: Path, *, threads: int = 0) -> ArtifactRunner:
    """Load an artifact in the runtime named by its record.

    Raises:
        MissingDependencyError: the runtime is not installed.
        UserError: the record is missing, the artifact does not match the record, or the runtime cannot load it.
    """
    return runtime_module(read_record(path).runtime).RUNNER(path, threads=threads)
