"""What the runners of all runtimes share: from uint8 images to the artifact's input, and back to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.data.transforms import Normalize
from iformer.deploy.artifact import read_record
from iformer.deploy.spec import embedded
from iformer.errors import UserError


class ArtifactRunner(ABC):
    """An artifact loaded in its own runtime; see `iformer.deploy.artifact.Runner`."""

    stands_in_for: str | None = None

    def __init__(self, path: Path) -> None:
        """Read the record.

        Raises:
            UserError: there is none, or the artifact is not the one that it describes.
        """
        self.path = path
        self.info = read_record(path)
        self._normalize = Normalize(self.info.preprocessing)

    @abstractmethod
    def run(self, fed: Tensor) -> Any:
        """What a benchmark times: the input as `prepare` makes it to logits, an array of B x K."""

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """uint8 RGB images, B x 3 x H x W, to logits, B x K, float32."""
        fed = self.prepare(images_B3HW)
        if self.info.batch is None:
            return self._logits(fed)
        outputs = []
        for chunk in torch.split(fed, self.info.batch):
            missing = self.info.batch - len(chunk)
            padded = torch.cat([chunk, chunk[-1:].expand(missing, *chunk.shape[1:])]) if missing else chunk
            outputs.append(self._logits(padded)[: len(chunk)])
        return torch.cat(outputs)

    def prepare(self, images_B3HW: Tensor) -> Tensor:
        """uint8 RGB images, B x 3 x H x W, as the artifact's input."""
        if self.info.normalized_by == "caller":
            normalized: Tensor = self._normalize(images_B3HW)
            return normalized.contiguous()
        if self.info.input_layout == "NHWC":
            return images_B3HW.permute(0, 2, 3, 1).contiguous()
        return images_B3HW.contiguous()

    def _logits(self, fed: Tensor) -> Tensor:
        # a copy: some runtimes hand out memory that their next call writes to
        return torch.tensor(self.run(fed), dtype=torch.float32)

    def check_embedded(self, found: Mapping[str, str]) -> None:
        """Raise `UserError` unless the file carries the class names and preprocessing that its record has."""
        for key, value in embedded(self.info.class_names, self.info.preprocessing).items():
            if found.get(key) != value:
                raise UserError(f"{self.path}: {key} inside the file and in its record differ")
