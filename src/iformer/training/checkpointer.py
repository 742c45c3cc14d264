"""Writing a run's checkpoints: the state to resume from, and the networks that were evaluated."""

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
    """Writes the checkpoints of a run. Every rank calls it; only the main one writes."""

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
        """`identity` is stored with the state, `provenance` with the networks; see `records.provenance`."""
        self.job, self.files, self.state = job, files, state
        self.identity, self.provenance, self.is_main = identity, provenance, is_main

    def metadata(self, epoch: int, metrics: dict[str, Any]) -> Metadata:
        """Return the metadata of a network after `epoch` epochs, without the metrics by class."""
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
        """Write the published part of a network that was evaluated.

        Raises:
            UserError: it cannot be written.
        """
        if self.is_main:
            with self.explain_failure():
                save_network(self.job.published(network), path, name=self.job.model_name, metadata=metadata)

    def save_state(self) -> None:
        """Write the state, and keep the one before it.

        Raises:
            UserError: it cannot be written.
        """
        if self.is_main:
            with self.explain_failure():
                self.state.save(self.files.state, identity=self.identity, previous=self.files.state_before)
        elif self.state.sharded is not None:
            self.state.tensors()

    @contextmanager
    def explain_failure(self) -> Iterator[None]:
        """Turn a failed write into one line that says which state is still there."""
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
        OutputError: it cannot be written. An older file at `path` is still there.
    """
    if row_of(getattr(model, "config", None)) is not None:
        model.metadata = metadata  # type: ignore[assignment]
        save(model, path)
    else:
        header = {"format": "pt", "network": json.dumps(name), "metadata": json.dumps(metadata.to_plain())}
        write_bytes(path, serialize(stored_tensors(model.state_dict()), header))
