"""What a run keeps: the state to continue from, and the networks it has evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iformer.config.metadata import Metadata
from iformer.errors import OutputError, UserError
from iformer.training.job import TrainJob
from iformer.training.network.ema import WeightAverage
from iformer.training.network.fsdp import ShardedNetwork
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainProgress, last_good_step, save_network, save_state, state_tensors


class Checkpointer:
    """Writes a run's checkpoints, which the main process does alone. `position` is the run's own."""

    def __init__(
        self,
        job: TrainJob,
        files: RunFolder,
        *,
        position: TrainProgress,
        network: nn.Module,
        average: WeightAverage | None,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        identity: dict[str, Any],
        provenance: dict[str, Any],
        sharded: ShardedNetwork | None = None,
    ) -> None:
        self.job, self.files, self.position = job, files, position
        self.network, self.average, self.optimizer, self.scaler = network, average, optimizer, scaler
        self.identity, self.provenance = identity, provenance
        self.sharded, self._whole = sharded, network

    @property
    def evaluated_network(self) -> nn.Module:
        """The network that is evaluated and kept: the averaged one, where there is an average."""
        return self.average.module if self.average is not None else self._whole

    def collect(self) -> None:
        """Make `evaluated_network` the network as it is now. All processes have to call it."""
        if self.sharded is not None:
            self._whole = self.sharded.whole()

    def help_to_keep_state(self) -> None:
        """What a process does that writes no state while another one does: hand over its shards."""
        if self.sharded is not None:
            state_tensors(self.network, self.average, self.optimizer)

    def metadata(self, epoch: int, metrics: dict[str, Any]) -> Metadata:
        """What a network's file says of it after `epoch` epochs; of the metrics, what is small."""
        kept = {name: value for name, value in metrics.items() if name not in ("per_class", "confusion")}
        return Metadata(
            task=self.job.task.name,  # type: ignore[arg-type]
            class_names=self.job.task.class_names,
            preprocessing=self.job.preprocessing,
            metrics=kept,
            provenance={**self.provenance, "epoch": epoch, "step": self.position.step},
        )

    def keep_network(self, path: Path, metadata: Metadata) -> None:
        """Write the evaluated network.

        Raises:
            OutputError: it cannot be written.
        """
        save_network(self.evaluated_network, path, name=self.job.model_name, metadata=metadata)

    def keep_state(self) -> None:
        """Write the state to continue from.

        Raises:
            OutputError: it cannot be written.
        """
        save_state(
            self.files.state,
            model=self.network,
            average=self.average,
            optimizer=self.optimizer,
            scaler=self.scaler,
            position=self.position,
            identity=self.identity,
            before=self.files.state_before,
        )

    @contextmanager
    def nothing_lost(self) -> Iterator[None]:
        """Say, where a file cannot be written, what is still there and how to go on."""
        try:
            yield
        except (OSError, OutputError) as error:
            saved = last_good_step(self.files)
            kept = f"--resume continues from step {saved}" if saved is not None else "nothing was saved before"
            reason = error if isinstance(error, OutputError) else f"{error.strerror}: {error.filename}"
            raise UserError(f"stopped at step {self.position.step}: {reason}; {kept}") from error
