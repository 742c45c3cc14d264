"""Batches of training and evaluation images, made by worker processes.

Whatever is random here is a function of (seed, epoch, index of the image): neither the number of workers or
ranks nor an interruption changes an image, its place in the epoch or its augmentation.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from iformer.data.images import read_image
from iformer.data.samples import ImageSet
from iformer.data.sources import Progress, available_cores
from iformer.data.transforms import Transform, TransformSchedule
from iformer.errors import ConfigError, DataError

Key = tuple[int, int]
"""(epoch, index of the image)."""

Batch = dict[str, Any]
"""images: uint8 (B, C, H, W) in channels-last memory; labels and indices: int64 (B)."""


class BatchSource(Protocol):
    """What a `Loader` takes its batches from."""

    def __len__(self) -> int:
        """How many images there are."""

    def batch(self, keys: Sequence[Key]) -> Any:
        """The images of `keys` with their targets, and `indices`, int64 (B)."""


class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """The images of an `ImageSet` after a transform; a key is (epoch, index), or an index for epoch 0.

    While an image is transformed, the global generators of `random`, `numpy.random` and torch (CPU) are
    seeded with (seed, epoch, index); afterwards they are as they were.
    """

    def __init__(
        self,
        image_set: ImageSet,
        transform: Transform | TransformSchedule,
        *,
        seed: int = 0,
        cache: Literal["none", "ram"] = "none",
        cache_side: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Make the data set; with `cache="ram"` this decodes every image once.

        Args:
            image_set: the images.
            transform: PIL image -> uint8 (C, H, W), for all epochs or by epoch.
            seed: of the augmentations.
            cache: "ram" keeps the decoded images (gray ones as one channel), which workers then share.
            cache_side: cached images whose shorter side is longer than this are kept reduced to it. They are
                then no longer the same images; by default they are.
            progress: told how many images are cached.

        Raises:
            DataError: an image cannot be read, or the decoded images do not fit into the free memory.
        """
        self.image_set = image_set
        self.transform = transform
        self.seed = seed
        self._cache = _DecodedImages(image_set, cache_side, progress) if cache == "ram" else None

    def __len__(self) -> int:
        return len(self.image_set)

    def image(self, index: int) -> Image.Image:
        """The decoded image in mode RGB or L, before any transform.

        Raises:
            DataError: the file cannot be read.
        """
        if self._cache is not None:
            return self._cache.image(index)
        return read_image(self.image_set.samples[index].path, keep_gray=True)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, int, int]:
        """uint8 (C, H, W), the label and the index.

        Raises:
            DataError: the file cannot be read.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        transform = self.transform
        if isinstance(transform, TransformSchedule):
            transform = transform.at(epoch)
        image = self.image(index)
        with seeded(self.seed, epoch, index):
            pixels_CHW = transform(image)
        return pixels_CHW, self.image_set.samples[index].label, index

    def batch(self, keys: Sequence[Key]) -> Batch:
        """The images of `keys`, all of one size, as a batch."""
        items = [self[key] for key in keys]
        # Stacked as B, H, W, C, the transforms' own layout: plain copies, and what channels-last means.
        images_BHWC = torch.stack([pixels_CHW.permute(1, 2, 0) for pixels_CHW, _, _ in items])
        return {
            "images": images_BHWC.permute(0, 3, 1, 2),
            "labels": torch.tensor([label for _, label, _ in items], dtype=torch.int64),
            "indices": torch.tensor([index for _, _, index in items], dtype=torch.int64),
        }


class EpochSampler(Sampler[list[Key]]):
    """The batches of one epoch for one rank, as lists of (epoch, index).

    A step takes `batch_size` images over all ranks, each rank a slice of them: the order of the images and
    the images of each step are the same for any `world_size`.

    Training (`shuffle`, `drop_last`): the order is a permutation that depends on (seed, epoch) only; the
    images of a last, incomplete step sit out this epoch. Where all images are fewer than a batch, they are
    one step (less what does not divide by the ranks). All ranks take the same number of steps of the same size.

    Evaluation: the order is that of the files and every image comes exactly once over all ranks. In the last
    step ranks may get fewer images than others, or none: then that step is missing on them.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        """Describe an epoch.

        Args:
            length: number of images.
            batch_size: images a step takes over all ranks together; a multiple of `world_size`.
            seed: of the order.
            epoch: counted from 0; see also `set_epoch`.
            rank: this process's number, 0 <= rank < world_size.
            world_size: number of processes.
            start_step: steps of this epoch that are already done and are left out.
            shuffle: another order in each epoch.
            drop_last: leave out an incomplete last step.

        Raises:
            ConfigError: `batch_size` is not a positive multiple of `world_size`, or another number is out of
                its range.
            DataError: there is no image, or while training fewer than ranks.
        """
        if world_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank}, world_size {world_size}; expected 0 <= rank < world_size")
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(
                f"batch_size is {batch_size}; expected a positive multiple of the {world_size} processes"
            )
        if length < 1 or (drop_last and length < world_size):
            raise DataError(f"{length} images are too few for {world_size} processes")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.set_epoch(epoch, start_step)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Go to an epoch, and in it past its first `start_step` steps.

        Raises:
            ConfigError: the epoch is negative or has fewer steps.
        """
        if epoch < 0 or not 0 <= start_step <= self.steps:
            raise ConfigError(f"epoch is {epoch}, start_step {start_step}; an epoch has {self.steps} steps")
        self.epoch = epoch
        self.start_step = start_step

    @property
    def steps(self) -> int:
        """Steps of a whole epoch over all ranks."""
        if self.drop_last:
            return max(1, self.length // self.batch_size)
        return -(-self.length // self.batch_size)

    def order(self) -> list[int]:
        """The epoch's indices in the order in which all ranks together take them, before any is left out."""
        if not self.shuffle:
            return list(range(self.length))
        order = list(range(self.length))
        random.Random(_mix(self.seed, self.epoch)).shuffle(order)
        return order

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order()
        for step in range(self.start_step, self.steps):
            members = order[step * self.batch_size : (step + 1) * self.batch_size]
            if self.drop_last:
                members = members[: len(members) - len(members) % self.world_size]
            share, rest = divmod(len(members), self.world_size)
            start = self.rank * share + min(self.rank, rest)
            own = members[start : start + share + (self.rank < rest)]
            if own:
                yield [(self.epoch, index) for index in own]

    def __len__(self) -> int:
        """Steps that are left for this rank."""
        steps = self.steps - self.start_step
        last = self.length - (self.steps - 1) * self.batch_size
        missing = not self.drop_last and steps > 0 and self.rank >= last
        return steps - missing


class Loader:
    """Batches of an `ImageDataset` or another source by epoch; workers live on from one epoch to the next.

    Use it as a context manager, or `close` it, to end the workers.
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
        """`workers` processes (0: the calling one) hold up to `prefetch` batches each in advance."""
        self.dataset = dataset
        self.sampler = sampler
        options: dict[str, Any] = {}
        if workers > 0:
            options = {
                "prefetch_factor": prefetch,
                "persistent_workers": True,
                "worker_init_fn": _ignore_interrupt,
                "multiprocessing_context": _start_method(),
            }
        self._loader = DataLoader(
            _BatchDataset(dataset),
            batch_sampler=sampler,
            collate_fn=_as_is,
            num_workers=workers,
            pin_memory=pin_memory,
            # Without its own generator a DataLoader draws from torch's global one at each epoch.
            generator=torch.Generator(),
            **options,
        )

    @property
    def steps(self) -> int:
        """Steps of a whole epoch over all ranks."""
        return self.sampler.steps

    def epoch(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 0) for this rank, from step `start_step` on.

        Raises:
            DataError: an image cannot be read.
            ConfigError: the epoch has fewer steps.
        """
        self.sampler.set_epoch(epoch, start_step)
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, _Failure):
                raise DataError(batch.message)
            yield batch

    def close(self) -> None:
        """End the worker processes. The loader can be used again; it then starts new ones."""
        iterator = self._loader._iterator
        self._loader._iterator = None
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
) -> Loader:
    """A loader for training (shuffled, whole batches only) or evaluation (each image exactly once).

    Args:
        dataset: the images and their transform.
        batch_size: images a step takes over all ranks together.
        train: which of the two; `EpochSampler` has the rules.
        seed: of the order of the training images.
        workers: processes that make batches; 0: none beside the caller; nothing: `auto_workers`.
        rank, world_size: this process among those that share the images.
        prefetch: batches each worker makes in advance.
        pin_memory: copy batches to page-locked memory, for a GPU.

    Raises:
        ConfigError, DataError: as `EpochSampler`.
    """
    sampler = EpochSampler(
        len(dataset),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle=train,
        drop_last=train,
    )
    workers = auto_workers(world_size) if workers is None else workers
    return Loader(dataset, sampler, workers=min(workers, sampler.steps), prefetch=prefetch, pin_memory=pin_memory)


def auto_workers(world_size: int = 1) -> int:
    """Worker processes for each of `world_size` ranks on this machine: its cores but one shared out, 1 to 8."""
    return max(1, min(8, (available_cores() - 1) // world_size))


class _Failure:
    """Stands in for a batch whose making failed: an exception would arrive as a page of traceback."""

    def __init__(self, message: str) -> None:
        self.message = message


class _BatchDataset(Dataset[Any]):
    """What runs in the workers: makes whole batches."""

    def __init__(self, dataset: BatchSource) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])

    def __getitems__(self, keys: list[Key]) -> Any:
        try:
            return self.dataset.batch(keys)
        except DataError as error:
            return _Failure(str(error))


class _DecodedImages:
    """All images of a set, decoded once, in one buffer: forked workers share its pages.

    One object an image would be copied to each worker bit by bit, as reference counts are written.
    """

    def __init__(self, image_set: ImageSet, side: int | None, progress: Progress | None) -> None:
        paths = [sample.path for sample in image_set.samples]

        def decode(path: os.PathLike[str]) -> np.ndarray:
            return np.asarray(_reduce(read_image(path, keep_gray=True), side))

        arrays: list[np.ndarray] = []
        with ThreadPoolExecutor(min(16, available_cores()), thread_name_prefix="decode") as pool:
            # A bounded window: map over everything would decode past the memory check below.
            window = 64
            for start in range(0, len(paths), window):
                arrays += pool.map(decode, paths[start : start + window])
                needed = sum(array.nbytes for array in arrays) * len(paths) // len(arrays)
                if start == 0:
                    _check_memory(needed, len(paths))
                if progress is not None:
                    progress(len(arrays), len(paths))
        self._shapes = np.array([(*a.shape, 1)[:3] for a in arrays], dtype=np.int64).reshape(-1, 3)
        ends = np.cumsum([array.nbytes for array in arrays])
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self._pixels = np.empty(int(self._starts[-1]), dtype=np.uint8)
        # From the last to the first, giving up each array: never twice the memory at once.
        for index in range(len(arrays) - 1, -1, -1):
            array = arrays.pop()
            self._pixels[self._starts[index] : self._starts[index + 1]] = array.reshape(-1)

    def image(self, index: int) -> Image.Image:
        height, width, channels = (int(size) for size in self._shapes[index])
        pixels = self._pixels[self._starts[index] : self._starts[index + 1]]
        mode = "L" if channels == 1 else "RGB"
        # A copy: an image in mode L would otherwise be a window on the cache.
        return Image.frombytes(mode, (width, height), pixels.data)


def _reduce(image: Image.Image, side: int | None) -> Image.Image:
    shorter = min(image.size)
    if side is None or shorter <= side:
        return image
    width, height = (max(1, round(length * side / shorter)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _check_memory(needed: int, count: int) -> None:
    free = _free_memory()
    if free is not None and needed > 0.7 * free:
        raise DataError(
            f"cache=ram needs about {needed / 2**30:.1f} GiB for {count:,} decoded images, "
            f"{free / 2**30:.1f} GiB are free; use cache=none"
        )


def _free_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the three global CPU generators with a mix of `numbers`; put their states back afterwards.

    The global ones, NumPy's legacy one included, because timm's and torchvision's transforms draw from them.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state = torch.default_generator.get_state()
    seed = _mix(*numbers)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    # torch.manual_seed would seed accelerators too, which this does not put back.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.default_generator.set_state(torch_state)


def _mix(*numbers: int) -> int:
    """A 63-bit number that depends on all of `numbers`, the same on every machine."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _start_method() -> str | None:
    """Forked workers share the cache and start at once; elsewhere than on Linux forking is not safe."""
    available = multiprocessing.get_all_start_methods()
    return "fork" if sys.platform == "linux" and "fork" in available else None


def _ignore_interrupt(worker: int) -> None:
    """Signals reach the whole process group; the main process ends the workers in its own time."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch
