"""The order of images in an epoch, and their distribution over steps and ranks.

All randomness is a function of (seed, epoch, index of the image): the number of workers or ranks, and
interruptions, change neither an image's position in the epoch nor its augmentation.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler

from iformer.errors import ConfigError, DataError

Key = tuple[int, int]
"""Key of a sample: (epoch, index of the image)."""


class EpochSampler(Sampler[list[Key]]):
    """The batches of one epoch for one rank, as lists of (epoch, index).

    A step takes `batch_size` images over all ranks, and each rank a slice of them: the order of the images and
    the images of each step are the same for any `world_size`.

    Training (`shuffle`, `drop_last`): the order is a permutation that depends only on (seed, epoch). An
    incomplete last step is dropped in this epoch. If there are fewer images than `batch_size`, they make one step,
    cut to a multiple of `world_size`. All ranks take the same number of steps of the same size.

    Evaluation: images keep the order of the data set, and each occurs exactly once over all ranks. In the last
    step a rank may get fewer images than others; a rank that gets none has one step less.
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
        weights: Sequence[float] | None = None,
    ) -> None:
        """Create the sampler.

        Args:
            length: number of images.
            batch_size: images per step, over all ranks; a multiple of `world_size`.
            seed: seed of the order.
            epoch: counted from 0; see also `set_epoch`.
            rank: rank of this process, 0 <= rank < world_size.
            world_size: number of processes.
            start_step: number of steps at the start of this epoch to skip.
            shuffle: use another order in each epoch.
            drop_last: drop an incomplete last step.
            weights: with `shuffle`, relative probability of each image, drawn with replacement; None: each image
                once.

        Raises:
            ConfigError: `batch_size` is not a positive multiple of `world_size`, or another number is out of
                range.
            DataError: there is no image, or with `drop_last`, fewer images than ranks.
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
        self.weights = weights
        self.set_epoch(epoch, start_step)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Select an epoch, and skip its first `start_step` steps.

        Raises:
            ConfigError: the epoch is negative, or has fewer than `start_step` steps.
        """
        if epoch < 0 or not 0 <= start_step <= self.steps:
            raise ConfigError(f"epoch is {epoch}, start_step {start_step}; an epoch has {self.steps} steps")
        self.epoch = epoch
        self.start_step = start_step

    @property
    def steps(self) -> int:
        """Number of steps of a whole epoch, over all ranks."""
        if self.drop_last:
            return max(1, self.length // self.batch_size)
        return -(-self.length // self.batch_size)

    def order(self) -> list[int]:
        """Return the indices in the epoch's order, over all ranks, including those that are dropped at the end."""
        if not self.shuffle:
            return list(range(self.length))
        generator = random.Random(_mix(self.seed, self.epoch))
        if self.weights is not None:
            return generator.choices(range(self.length), self.weights, k=self.length)
        order = list(range(self.length))
        generator.shuffle(order)
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
        """Return the number of steps that remain for this rank."""
        steps = self.steps - self.start_step
        last = self.length - (self.steps - 1) * self.batch_size
        missing = not self.drop_last and steps > 0 and self.rank >= last
        return steps - missing


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the global CPU generators of `random`, NumPy and torch with a hash of `numbers` while the block runs.

    Afterwards their states are restored. The transforms of timm and torchvision draw from these generators.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state = torch.default_generator.get_state()
    seed = _mix(*numbers)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    # torch.manual_seed would also seed accelerators, whose states are not restored here
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.default_generator.set_state(torch_state)


def _mix(*numbers: int) -> int:
    """Return a 63-bit hash of `numbers`, the same on every machine."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
