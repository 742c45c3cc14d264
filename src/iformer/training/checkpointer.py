"""Writing of a run's checkpoints: the state to resume from, and the evaluated networks."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialize
from torch import nn

from iformer.config.metadata import Metadata
from iformer.errors import OutputError, UserError, WeightsError
from iformer.files import write_bytes
from iformer.models.weights.checkpoint import save, stored_tensors
from iformer.models.weights.header import row_of
from iformer.models.weights.safetensors_file import open_safetensors
from iformer.training.distributed import all_gather
from iformer.training.job import TrainJob
from iformer.training.network.precision import Precision
from iformer.training.records.results import Evaluation
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import TrainState, checksum, last_good_step


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
        finishes: bool = False,
    ) -> None:
        """Store what to write: `identity` goes into the state, `provenance` into the networks' metadata.

        See `iformer.training.records.provenance` for both. `finishes` says whether the task changes the best
        network after the last epoch; see `Workload.finishes`.
        """
        self.job, self.files, self.state = job, files, state
        self.identity, self.provenance, self.is_main = identity, provenance, is_main
        self._finishes = finishes
        self.best_is_lost = False
        """Whether `best.safetensors` does not hold the best network, which the next evaluation then replaces."""
        self.warnings: list[str] = []
        """One line about the best network, if it was lost; on the main rank."""

    def metadata(self, epoch: int, metrics: dict[str, Any], *, precision: Precision) -> Metadata:
        """Return the metadata of the checkpoint written after `epoch`; metrics by class are left out.

        `precision` is that in which the metrics were computed.
        """
        small = {name: value for name, value in metrics.items() if name not in ("per_class", "confusion")}
        return Metadata(
            task=self.job.task.name,
            class_names=self.job.task.class_names,
            multi_label=self.job.multi_label,
            preprocessing=self.job.preprocessing,
            metrics=small,
            provenance={
                **self.provenance,
                "epoch": epoch,
                "step": self.state.progress.step,
                **({"metrics_precision": precision} if small else {}),
            },
        )

    def save_network(self, network: nn.Module, path: Path, metadata: Metadata) -> None:
        """Write the published part of an evaluated network as a checkpoint.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        if self.is_main:
            with self.explain_failure():
                save_network(self.job.published(network), path, name=self.job.model_name, metadata=metadata)

    def is_best(self, evaluation: Evaluation, epoch: int, *, precision: Precision) -> bool:
        """Return whether the evaluation after `epoch` epochs is the best one; if so, record it in the progress.

        `precision` is that in which the evaluation was computed.
        """
        best, name = self.state.progress.best, self.job.task.primary_metric
        # a metric that is not a number never counts as better
        if best and not (self.best_is_lost or evaluation.metrics[name] > best[name] or math.isnan(best[name])):
            return False
        self.state.progress.best = {
            "epoch": epoch,
            "step": self.state.progress.step,
            "precision": precision,
            **evaluation.summary,
        }
        return True

    def save_best(self, network: nn.Module, metadata: Metadata) -> None:
        """Write the network of the best evaluation, and record its checksum in the progress.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        self.save_network(network, self.files.best, metadata)
        self.best_is_lost = False
        if self.is_main and not self._finishes:
            self.state.progress.best_crc32 = _step_and_checksum(self.files.best)[1]

    def check_best(self) -> None:
        """Check that `best.safetensors` holds the network of the best evaluation. Every rank must call it.

        If it does not, but `last.safetensors` holds that network, the file is written again. Otherwise the network
        is lost. A note says which.
        """
        if not self.state.progress.best or self.best_is_lost:
            return
        self.best_is_lost = all_gather(self.is_main and not self._best_is_there())[0]

    def _best_is_there(self) -> bool:
        best, last = self.files.best, self.files.last
        if (fault := self._fault(best)) is None:
            return True
        if same := self._fault(last, newer=False) is None:
            with self.explain_failure():
                write_bytes(best, last.read_bytes())
            note = f"{fault}; it is written again from {last.name}, which holds the same network"
        else:
            found, task = self.state.progress.best, self.job.task
            note = (
                f"{fault}; the best network so far, of epoch {found['epoch']} with {task.metric_label} "
                f"{found[task.primary_metric]:.2f} %, is lost; the next evaluation writes {best.name} again, and "
                "later ones replace it if they are better"
            )
            self.warnings.append(note)
        print(f"note: {note}", file=sys.stderr, flush=True)
        return same

    def _fault(self, path: Path, *, newer: bool = True) -> str | None:
        """Return why a file does not hold the network of the best evaluation; None if it does.

        Args:
            newer: accept a network of a step that the resumed run is going to repeat: the run was killed between
                writing the network and its state.
        """
        progress, wanted = self.state.progress, self.state.progress.best.get("step")
        if not path.is_file():
            return f"{path} is missing"
        try:
            step, crc = _step_and_checksum(path)
        except WeightsError:
            return f"{path} is damaged"
        if step is not None and wanted is not None and step != wanted:
            repeated = newer and step > wanted and step >= progress.step
            return None if repeated else f"{path} is the network of step {step}, not of step {wanted}"
        if progress.best_crc32 not in (None, crc):
            return f"{path} is damaged: its checksum does not match its contents"
        return None

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


def _step_and_checksum(path: Path) -> tuple[int | None, int]:
    """Return the optimizer step of a network that `save_network` wrote, and the CRC-32 of its tensors and header.

    Metrics and provenance, such as times, do not count for the checksum.

    Raises:
        WeightsError: the file cannot be read or is damaged.
    """
    with open_safetensors(path) as file:
        header = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        metadata = json.loads(header["metadata"])
        step = metadata.pop("provenance", {}).get("step")
        metadata.pop("metrics", None)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged") from error
    text = json.dumps(metadata, sort_keys=True)
    return step if isinstance(step, int) else None, checksum({**header, "metadata": text}, tensors)
