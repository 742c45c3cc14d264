"""Images to answers: decoded in threads, predicted in batches, in the order in which they were given.

Shape letters: B batch, H and W the input's sides, h and w the attention map's, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from iformer.data.parallel import available_cores
from iformer.data.stream import ImageBatch, iterate_images
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.artifact import Runner
from iformer.device import resolve_device
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.models.folding import fold
from iformer.tasks.classification.explain import AttentionRecorder


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the network says about one image."""

    path: Path
    classes: tuple[tuple[str, float], ...]
    """Name and probability of the first k classes, the likeliest first."""
    pixels: Tensor
    """The image as the network saw it: uint8, C x H x W, resized and cropped."""
    attention: Tensor | None = None
    """Where the last attention stage looked, h x w (`AttentionRecorder`); None where it was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that could not be read."""

    path: Path
    reason: str


class Predictor:
    """A classifier ready to answer: folded, channels last, behind its own preprocessing; or an artifact."""

    def __init__(
        self,
        model: Classifier | Runner,
        *,
        top_k: int = 5,
        batch_size: int = 32,
        workers: int | None = None,
        device: str | torch.device = "cpu",
        attention: bool = False,
    ) -> None:
        """Prepare a network; the one given is left as it was.

        Args:
            model: a network, or an artifact in its own runtime (`iformer.deploy.export.open_artifact`).
            top_k: how many classes an answer has, at most.
            batch_size: images in one call of the network.
            workers: threads that decode; None: one a core, at most 8.
            attention: also record where the network looks. The network is then used unfolded, which is
                slower and answers the same.

        Raises:
            UserError: a number below 1, or with `attention` an artifact or a network that has none.
        """
        for name, value in {"top_k": top_k, "batch_size": batch_size, "workers": workers}.items():
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; expected 1 or more")
        self.batch_size = batch_size
        self.workers = workers
        self.device = resolve_device(device)
        self.recorder: AttentionRecorder | None = None
        if isinstance(model, Classifier):
            self.name, num_classes = model.config.name, model.num_classes
            class_names, self.preprocessing = model.metadata.class_names, model.metadata.preprocessing
            self._logits = self._network(model, attention=attention)
        else:
            if attention:
                raise UserError("where an artifact looks cannot be seen; give the checkpoint it was made from")
            info = model.info
            self.name, num_classes = f"{info.network} ({info.runtime}, {info.precision})", info.num_classes
            class_names, self.preprocessing = info.class_names, info.preprocessing
            self._logits = model
        self.top_k = min(top_k, num_classes)
        self.class_names = class_names or tuple(f"class {i}" for i in range(num_classes))
        self._transform = eval_transform(self.preprocessing)

    def _network(self, model: Classifier, *, attention: bool) -> Callable[[Tensor], Tensor]:
        network = model if attention or model.is_folded else fold(model)
        network = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.recorder = AttentionRecorder(network) if attention else None
        normalize = Normalize(self.preprocessing).to(self.device)

        def logits(pixels_BCHW: Tensor) -> Tensor:
            batch = normalize(pixels_BCHW.to(self.device, non_blocking=True))
            logits_BK: Tensor = network(batch.contiguous(memory_format=torch.channels_last))
            return logits_BK

        return logits

    def predict(self, paths: Sequence[Path]) -> Iterator[Answer | Failure]:
        """An answer or a failure for each different path, in order.

        Decoding runs ahead of the network, but for a network that works on every core: then they take turns,
        because a decoder on a core of the network's makes all its threads wait.
        """
        in_order = iter(dict.fromkeys(paths))
        takes_turns = self.device.type == "cpu" and torch.get_num_threads() >= available_cores()
        batches = iterate_images(
            list(dict.fromkeys(paths)),
            self._transform,
            batch_size=self.batch_size,
            workers=self.workers,
            prefetch=0 if takes_turns else 2,
        )
        for batch in batches:
            outcomes: dict[Path, Answer | Failure] = {
                path: Failure(path=path, reason=line.removeprefix(f"{path}: ")) for path, line in batch.errors
            }
            if batch.paths:
                outcomes |= self._answer(batch)
            yield from (outcomes[path] for path in islice(in_order, len(outcomes)))

    def probabilities(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 images to probabilities, B x K, and with `attention` maps, B x h x w; both on the CPU."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.recorder is not None:
                stack.enter_context(self.recorder)
            probabilities_BK = self._logits(pixels_BCHW).softmax(1)
            maps = None if self.recorder is None else self.recorder.take_maps().cpu()
        return probabilities_BK.float().cpu(), maps

    def _answer(self, batch: ImageBatch) -> dict[Path, Answer]:
        probabilities_BK, maps_Bhw = self.probabilities(batch.images)
        values_BK, classes_BK = (tensor.tolist() for tensor in probabilities_BK.topk(self.top_k, dim=1))
        return {
            path: Answer(
                path=path,
                classes=tuple(
                    (self.class_names[k], value) for k, value in zip(classes_BK[row], values_BK[row], strict=True)
                ),
                pixels=batch.images[row],
                attention=None if maps_Bhw is None else maps_Bhw[row],
            )
            for row, path in enumerate(batch.paths)
        }
