"""Writing of a run's checkpoints: the state to resume from, and the evaluated networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialize
from torch import nn

from iformer.config.metadata import Metadata
from iformer.errors import OutputError, UserError
from iformer.files import write_bytes
from iformer.models.weights.checkpoint import save, stored_tensors
from iformer.models.weights.header import row_of
from iformer.training.job import TrainJob
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainState, last_good_step


class Checkpointer:
    """Writer of a run's checkpoints. Every rank must call the methods; only the main rank writes files."""

    def __init__(
        self,
        job: TrainJob,
        files: RunFolder,
        state: TrainState,
        *,
        identity: dict[str, Any],
        provenance: dict[str, Any],
        is_main: bool,
    ) -> None:
        """Store what to write: `identity` goes into the state, `provenance` into the networks' metadata.

        See `iformer.training.records.provenance` for both.
        """
        self.job, self.files, self.state = job, files, state
        self.identity, self.provenance, self.is_main = identity, provenance, is_main

    def metadata(self, epoch: int, metrics: dict[str, Any]) -> Metadata:
        """Return the metadata of the checkpoint written after `epoch`; metrics by class are left out."""
        small = {name: value for name, value in metrics.items() if name not in ("per_class", "confusion")}
        return Metadata(
            task=self.job.task.name,
            class_names=self.job.task.class_names,
            multi_label=self.job.multi_label,
            preprocessing=self.job.preprocessing,
            metrics=small,
            provenance={**self.provenance, "epoch": epoch, "step": self.state.progress.step},
        )

    def save_network(self, network: nn.Module, path: Path, metadata: Metadata) -> None:
        """Write the published part of an evaluated network as a checkpoint.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        if self.is_main:
            with self.explain_failure():
                save_network(self.job.published(network), path, name=self.job.model_name, metadata=metadata)

    def save_state(self) -> None:
        """Write the state to resume from, and keep the previous one.

        Raises:
            UserError: the state cannot be written.
        """
        if self.is_main:
            with self.explain_failure():
                self.state.save(self.files.state, identity=self.identity, previous=self.files.state_before)
        elif self.state.sharded is not None:
            self.state.tensors()

    @contextmanager
    def explain_failure(self) -> Iterator[None]:
        """Turn a failed write inside the block into a one-line `UserError` that names the step to resume from."""
        try:
            yield
        except (OSError, OutputError) as error:
            step = last_good_step(self.files)
            resume = f"--resume continues from step {step}" if step is not None else "no state was saved before"
            reason = error if isinstance(error, OutputError) else f"{error.strerror}: {error.filename}"
            raise UserError(f"stopped at step {self.state.progress.step}: {reason}; {resume}") from error


def save_network(model: nn.Module, path: Path, *, name: str, metadata: Metadata) -> None:
    """Write an iFormer network as a checkpoint, any other network as plain tensors.

    Raises:
        OutputError: the file cannot be written. An older file at `path` stays as it was.
    """
    if row_of(getattr(model, "config", None)) is not None:
        model.metadata = metadata  # type: ignore[assignment]
        save(model, path)
    else:
        header = {"format": "pt", "network": json.dumps(name), "metadata": json.dumps(metadata.to_plain())}
        write_bytes(path, serialize(stored_tensors(model.state_dict()), header))
