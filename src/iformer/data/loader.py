"""Batches of training and evaluation images, prepared by worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from iformer.data.parallel import available_cores
from iformer.data.sampling import EpochSampler, Key
from iformer.errors import DataError, UserError

Batch = dict[str, Any]
"""Tensors of a batch by name. For classifiers: images, uint8 (B, C, H, W) in channels-last memory; labels, int64
(B), or float32 (B, K) if images may have several labels; indices, int64 (B)."""

_SECONDS_TO_END = 2.0
"""Seconds that a closed loader waits for its workers to end before it kills them."""


class BatchSource(Protocol):
    """A dataset that makes whole batches."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batch(self, keys: Sequence[Key]) -> Any:
        """Return the images of `keys` with their targets and their `indices`, int64 (B)."""


class Loader:
    """Batches of a `BatchSource` by epoch, with persistent workers.

    Use it as a context manager or call `close` to end the workers.
    """

    def __init__(
        self,
        dataset: BatchSource,
        sampler: EpochSampler,
        *,
        workers: int,
        prefetch: int = 3,
        pin_memory: bool = False,
    ) -> None:
        """Create the loader; `workers` processes (0: the calling one) prepare up to `prefetch` batches each."""
        self.dataset = dataset
        self.sampler = sampler
        options: dict[str, Any] = {}
        if workers > 0:
            options = {
                "prefetch_factor": prefetch,
                "persistent_workers": True,
                "worker_init_fn": _prepare_worker,
                "multiprocessing_context": _start_method(),
            }
        self._loader = DataLoader(
            _BatchDataset(dataset),
            batch_sampler=sampler,
            collate_fn=_as_is,
            num_workers=workers,
            pin_memory=pin_memory,
            # without its own generator, a DataLoader draws from torch's global one at each epoch
            generator=torch.Generator(),
            **options,
        )

    @property
    def steps(self) -> int:
        """Number of steps of a whole epoch, over all ranks."""
        return self.sampler.steps

    def epoch(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch (counted from 0) of this rank, from step `start_step` on.

        Raises:
            DataError: an image cannot be read.
            ConfigError: the epoch has fewer than `start_step` steps.
        """
        self.sampler.set_epoch(epoch, start_step)
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, _Failure):
                raise DataError(batch.message)
            yield batch

    def close(self) -> None:
        """End the worker processes. A loader that is used again starts new workers."""
        # private: a DataLoader has no public way to end persistent workers
        iterator = self._loader._iterator
        self._loader._iterator = None
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is None:
            return
        workers = iterator._workers  # type: ignore[union-attr]
        # a busy worker ignores signals, and torch would wait 5 s for each, one after the other
        timer = threading.Timer(_SECONDS_TO_END, _kill, [workers])
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(RuntimeError):  # a worker was killed
                shutdown()
        finally:
            timer.cancel()
            _kill(workers)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_loader(
    dataset: BatchSource,
    *,
    batch_size: int,
    train: bool,
    seed: int = 0,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    prefetch: int = 3,
    pin_memory: bool = False,
    weights: Sequence[float] | None = None,
) -> Loader:
    """Build a loader for training (shuffled, whole batches only) or evaluation (each image exactly once).

    Args:
        dataset: the images and their transform.
        batch_size: images per step, over all ranks.
        train: whether the batches are for training; see `EpochSampler`.
        seed: seed of the order of the training images.
        workers: processes that prepare batches; 0 means the calling one; None means `auto_workers`.
        rank: rank of this process.
        world_size: number of processes that share the images.
        prefetch: batches that each worker prepares in advance.
        pin_memory: copy batches to page-locked memory, for a GPU.
        weights: sampling weight of each training image; see `EpochSampler`.

    Raises:
        ConfigError: `batch_size` is not a positive multiple of `world_size`, or `rank` is out of range.
        DataError: there is no image, or for training, fewer images than ranks.
    """
    sampler = EpochSampler(
        len(dataset),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle=train,
        drop_last=train,
        weights=weights,
    )
    workers = auto_workers(world_size) if workers is None else workers
    if workers and multiprocessing.current_process().daemon:
        raise UserError(
            f"workers is {workers}; this process is a daemon, such as one of multiprocessing.Pool, and cannot "
            "start others: give workers=0"
        )
    return Loader(dataset, sampler, workers=min(workers, sampler.steps), prefetch=prefetch, pin_memory=pin_memory)


def auto_workers(world_size: int = 1) -> int:
    """Return the number of workers per rank: (usable cores - 1) / `world_size`, rounded down, from 1 to 8.

    0 in a daemonic process, such as a worker of `multiprocessing.Pool`, which cannot start processes.
    """
    if multiprocessing.current_process().daemon:
        return 0
    return max(1, min(8, (available_cores() - 1) // world_size))


class _Failure:
    """Placeholder for a batch that failed; an exception would arrive from the worker as a page of traceback."""

    def __init__(self, message: str) -> None:
        self.message = message


class _BatchDataset(Dataset[Any]):
    """Adapter of a `BatchSource` to `DataLoader`. It runs in the workers."""

    def __init__(self, dataset: BatchSource) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> Any:
        try:
            return self.dataset.batch(keys)
        except DataError as error:
            return _Failure(str(error))


def _start_method() -> str | None:
    """Return "fork" on Linux, where workers then start at once; None (torch's default) elsewhere."""
    available = multiprocessing.get_all_start_methods()
    return "fork" if sys.platform == "linux" and "fork" in available else None


def _kill(workers: Sequence[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _prepare_worker(worker: int) -> None:
    """Set up a worker: the main process handles signals, and if it ends first, the worker prints no traceback."""
    sys.excepthook = _report_unless_disconnected
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _report_unless_disconnected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report an exception, unless it is a lost connection: the main process ended while it received a tensor."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _as_is(batch: Any) -> Any:
    return batch
