"""The processes of a run: the device of each rank, exchange of Python objects, and errors if a process is lost."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from iformer.dependencies import require
from iformer.device import resolve_device
from iformer.errors import UserError, listed, one_line, printable
from iformer.time_limit import call_within, note_after
from iformer.training.network.precision import Precision, autocast, resolve_precision


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """Device, precision and rank of one process."""

    device: torch.device
    precision: Precision
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes; see `iformer.training.network.precision.autocast`."""
        return autocast(self.precision, self.device)


_training = threading.Lock()


@contextmanager
def one_training_per_process() -> Iterator[None]:
    """Refuse a second training in this process while the block runs.

    Raises:
        UserError: another thread is training.
    """
    if not _training.acquire(blocking=False):
        raise _already_training()
    try:
        yield
    finally:
        _training.release()


def check_no_training() -> None:
    """Check that no thread of this process is training, because two trainings would share random generators.

    Raises:
        UserError: another thread is training.
    """
    if _training.locked():
        raise _already_training()


def _already_training() -> UserError:
    return UserError(
        "this process is training already, and two trainings would change each other's random numbers; start "
        "another process for the second one, or train one after the other"
    )


def launch(device: str, precision: str) -> tuple[Any, RankContext]:
    """Join the process group if a launcher such as torchrun started this process, and find the rank's device.

    Returns:
        The Accelerator, and the context of this rank.

    Raises:
        MissingDependencyError: Accelerate is not installed.
        UserError: the device does not exist, the launcher's variables do not describe a process group, or another
            process of the group does not come within `JOIN_SECONDS`.
    """
    accelerate = require("accelerate", extra="train")
    on = resolve_device(device)
    processes = launched_processes()
    if on.index is not None:  # Accelerator has no argument for the index: it takes the current device
        torch.accelerator.set_device_index(on.index)
    try:
        with _note_of_waiting(processes):
            if processes > 1:
                _join(accelerate, cpu=on.type == "cpu")
            accelerator = accelerate.Accelerator(cpu=on.type == "cpu", mixed_precision="no")
    except (ValueError, KeyError, RuntimeError, OSError, ImportError) as error:
        if settings := sorted(name for name in os.environ if name.startswith("ACCELERATE_")):
            raise UserError(
                f"Accelerate cannot start ({one_line(error)}); the environment sets {listed(settings)}; unset "
                "what is not for this run"
            ) from error
        if not _LAUNCHER.keys() & os.environ.keys():
            raise
        remedy = _SEE_THE_OTHERS if isinstance(error, TimeoutError) or _is_lost(error) else _START_WITH_A_LAUNCHER
        raise UserError(f"the processes of this run cannot be joined ({one_line(error)}); {remedy}") from error
    context = RankContext(
        device=accelerator.device,
        precision=resolve_precision(precision, accelerator.device),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    return accelerator, context


JOIN_SECONDS = 600
"""Longest time that a process waits for the others at the start of a run."""
_COLLECTIVE_SECONDS = 1800
"""Longest time that a process waits for the others' addresses later; torch's own default."""
_NOTE_SECONDS = 15
"""Time of waiting after which a note is printed."""


def _note_of_waiting(processes: int) -> AbstractContextManager[None]:
    """Print a note on stderr if the block, in which the processes of a run join, takes long."""
    if processes == 1:
        return nullcontext()
    rank, address = os.environ.get("RANK", "0"), os.environ.get("MASTER_ADDR", "localhost")
    note = (
        f"note: rank {rank} waits for the other processes of this run ({processes} in all, joined at "
        f"{printable(address, limit=80)}), for {JOIN_SECONDS / 60:g} minutes at most; if one of them ended with "
        "an error, stop the run and start all of them again"
    )
    return note_after(_NOTE_SECONDS, note)


def _join(accelerate: Any, *, cpu: bool) -> None:
    """Join the process group within `JOIN_SECONDS`; Accelerate's own limit would be that of collectives too."""
    needed = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    if (
        not torch.distributed.is_available()
        or torch.distributed.is_initialized()
        or accelerate.state.is_initialized()
    ):
        return
    if not needed <= os.environ.keys():
        return  # Accelerate knows other launchers, and completes variables
    from torch.distributed.rendezvous import rendezvous  # absent from builds without torch.distributed

    meeting: Iterator[tuple[Any, int, int]] = rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS))
    # in a thread, so that Ctrl-C works; the main rank ends first and says how many processes came
    store, rank, processes = call_within(JOIN_SECONDS + 5, lambda: next(meeting))
    store.set_timeout(timedelta(seconds=_COLLECTIVE_SECONDS))
    cpu = cpu or accelerate.utils.parse_flag_from_env("ACCELERATE_USE_CPU")
    accelerate.PartialState(cpu=cpu, store=store, rank=rank, world_size=processes)


_LAUNCHER = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": 1}
"""Environment variables that launchers set, with the smallest valid value of each."""
_START_WITH_A_LAUNCHER = "start them with torchrun, or unset RANK and WORLD_SIZE to train in one process"
_SEE_THE_OTHERS = (
    "see the messages of the other processes, one of which may have ended; then start all of them again, or unset "
    "RANK and WORLD_SIZE to train in one process"
)


def launched_processes() -> int:
    """Return the number of processes from the launcher's environment variables; 1 without a launcher.

    Raises:
        UserError: a variable is not a number, too small or too large, or `RANK` is not below `WORLD_SIZE`.
    """
    numbers = {}
    for name, least in _LAUNCHER.items():
        text = os.environ.get(name, str(least))
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
            raise UserError(
                f"the environment variable {name} is '{printable(text, limit=40)}'; expected a number of {least} "
                f"or more; {_START_WITH_A_LAUNCHER}"
            )
        numbers[name] = int(text)
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        raise UserError(
            f"the environment variables RANK {numbers['RANK']} and WORLD_SIZE {numbers['WORLD_SIZE']} do not fit; "
            f"{_START_WITH_A_LAUNCHER}"
        )
    return numbers["WORLD_SIZE"]


def all_gather(value: Any) -> list[Any]:
    """Gather a picklable value of any size from every rank, in rank order. Every rank must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def check_ranks_agree(
    values: Mapping[str, Collection[str]], *, remedy: str = "start every rank with the same data and settings"
) -> None:
    """Check that the values of all ranks are the same. Every rank must call it, and all of them raise alike.

    Args:
        values: short texts by the name of the field, in the order in which they are compared. Each field has one
            or more texts that mean the same; two ranks agree if they share one of them.
        remedy: end of the message.

    Raises:
        UserError: two ranks differ. The message names the first such field, and the ranks with their values.
    """
    ranks = all_gather({name: tuple(texts) for name, texts in values.items()})
    for name in dict.fromkeys(name for rank in ranks for name in rank):
        texts = [rank.get(name, ("nothing",)) for rank in ranks]
        others = [rank for rank, own in enumerate(texts) if set(own).isdisjoint(texts[0])]
        if others:
            found = [f"rank {rank} has {texts[rank][0]}" for rank in (0, *others)]
            raise UserError(f"the ranks of this run differ in {name}: {listed(found, limit=4)}; {remedy}")


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turn the loss of a data-loading worker or of another rank into a `UserError` that says what to do.

    torch raises a plain RuntimeError for both; for a lost worker, from a signal handler anywhere in the code.

    Raises:
        UserError: a process was lost.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if text.startswith("DataLoader worker"):
            raise UserError(
                "a process that loads images was killed, often for lack of memory; --resume continues the run, "
                "with fewer of them if you add --set workers=1"
            ) from error
        if _is_lost(error):
            raise UserError(
                "another process of this run ended or cannot be reached; see its own message, then start all of "
                "them again with --resume"
            ) from error
        raise


def _is_lost(error: Exception) -> bool:
    """Return whether an error of torch says that another process cannot be reached."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
