"""What an epoch's steps add up to: losses, images, time spent waiting for images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Join = Callable[[Tensor], Tensor]
"""The mean of a tensor over all processes; each of them has to call it."""


class EpochMeter:
    """Sums over the steps of an epoch, kept on the device so that adding to them waits for nothing."""

    def __init__(self, join: Join, *, device: torch.device, world_size: int) -> None:
        self._join, self._device, self._world_size = join, device, world_size
        self.start(step=0, sums={})

    def start(self, *, step: int, sums: dict[str, float]) -> None:
        """Begin an epoch, or go on in it after `step` steps with their sums."""
        self._sums = {name: torch.tensor(value, device=self._device) for name, value in sums.items()}
        self._images = 0
        self._waited = 0.0
        self._began = time.perf_counter()
        self._lap = (step, dict(sums), self._images, self._began)

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; the time spent waiting for them is counted."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def add(self, values: dict[str, Tensor], share: float) -> None:
        """Add the scalars of a pass over `share` of a step's images."""
        for name, value in values.items():
            value = value.detach() * share
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def count(self, images: int) -> None:
        """Count this process's images of a step."""
        self._images += images * self._world_size

    def sums(self) -> dict[str, float]:
        """The sums so far, as the mean over the processes. All processes have to call it."""
        if not self._sums:
            return {}
        joined = self._join(torch.stack(list(self._sums.values()))).tolist()
        return dict(zip(self._sums, joined, strict=True))

    def lap(self, step: int) -> tuple[dict[str, float], float]:
        """Means of the values, and images per second, since the last call. All processes have to call it."""
        step_before, sums_before, images_before, time_before = self._lap
        sums, now = self.sums(), time.perf_counter()
        self._lap = (step, sums, self._images, now)
        steps = step - step_before
        means = {name: (total - sums_before.get(name, 0.0)) / steps for name, total in sums.items()}
        return means, (self._images - images_before) / (now - time_before)

    def rates(self) -> dict[str, float | None]:
        """`images_per_second` and `data_wait` (share of the time) since the start; None where no step was made."""
        seconds = time.perf_counter() - self._began
        if not self._images:
            return {"images_per_second": None, "data_wait": None}
        return {"images_per_second": self._images / seconds, "data_wait": self._waited / seconds}
