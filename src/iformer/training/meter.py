"""Averages and rates over the steps of an epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from iformer.training.distributed import RankContext


class EpochMeter:
    """Sums of an epoch's logged values, kept on the device without synchronising, and counts of images."""

    def __init__(self, context: RankContext) -> None:
        self._context = context
        self.start(step=0, sums={})

    def start(self, *, step: int, sums: dict[str, float]) -> None:
        """Start an epoch, or continue one after `step` steps with the sums of those steps."""
        self._sums = {name: torch.tensor(value, device=self._context.device) for name, value in sums.items()}
        self._images = 0
        self._waited = 0.0
        self._began = time.perf_counter()
        self._lap = (step, dict(sums), self._images, self._began)

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Iterate over the batches and add up the time spent waiting for them."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def add(self, values: dict[str, Tensor], share: float) -> None:
        """Add the scalars of one forward pass, which had `share` (0 to 1) of the step's images."""
        for name, value in values.items():
            value = value.detach() * share
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def count(self, images: int) -> None:
        """Count the images of a step: `images` on this rank, and as many on every other rank."""
        self._images += images * self._context.world_size

    def sums(self) -> dict[str, float]:
        """Return the sums since the start of the epoch, averaged over the ranks. Every rank must call it."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        if self._context.world_size > 1:
            from accelerate.utils import reduce

            sums = reduce(sums, reduction="mean")
        return dict(zip(self._sums, sums.tolist(), strict=True))

    def lap(self, step: int) -> tuple[dict[str, float], float]:
        """Return the mean of each value and the images per second since the last call. Every rank must call it."""
        step_before, sums_before, images_before, time_before = self._lap
        sums, now = self.sums(), time.perf_counter()
        self._lap = (step, sums, self._images, now)
        steps = step - step_before
        means = {name: (total - sums_before.get(name, 0.0)) / steps for name, total in sums.items()}
        return means, (self._images - images_before) / (now - time_before)

    def rates(self) -> dict[str, float | None]:
        """Return `images_per_second` and `data_wait` (share of the time, 0 to 1); None before the first step."""
        seconds = time.perf_counter() - self._began
        if not self._images:
            return {"images_per_second": None, "data_wait": None}
        return {"images_per_second": self._images / seconds, "data_wait": self._waited / seconds}
