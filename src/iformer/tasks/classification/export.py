"""What export needs to know about a classifier: its output, the comparison of classes, and the INT8 metric.

Shape letters: N images, K classes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from iformer.config.metadata import Metadata
from iformer.deploy.exportable import Agreement, Forward, Outputs
from iformer.deploy.quantize import Quantization, few_images_note
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.models.folding import fold
from iformer.tasks.classification.dataset import find_labelled
from iformer.tasks.classification.evaluate import LOGITS, evaluate, evaluation_loader, logits_of
from iformer.tasks.registry import find_task


class ExportableClassifier:
    """A classifier with the interface `iformer.deploy.exportable.Exportable`."""

    outputs = (LOGITS,)
    limits = None

    def __init__(self, model: Classifier) -> None:
        """Wrap a classifier that is in eval mode.

        Raises:
            UserError: the network has no classes, or is folded already.
        """
        if not isinstance(model, Classifier) or model.num_classes == 0:
            raise UserError("export takes a classifier with one class or more")
        if model.is_folded:
            raise UserError("export folds the network itself; give it the network before folding")
        self.model = model
        self.name = model.config.name
        self.metadata: Metadata = model.metadata
        self.channels = model.config.in_chans
        self.num_classes = model.num_classes
        several = self.metadata.multi_label
        self.class_logits = None if several else LOGITS
        """The output for Core ML's classifier type, which answers with one class; None with several labels."""
        self.postprocess: dict[str, Any] | None = (
            {"activation": "sigmoid", "threshold": self.metadata.threshold} if several else None
        )

    def folded(self, size: tuple[int, int]) -> Classifier:
        """Return a folded copy, which takes any size."""
        return fold(self.model)

    def agreement(self, expected: Outputs, actual: Outputs, *, tolerance: float) -> Agreement:
        """Compare the predicted classes of all images whose two largest logits differ clearly.

        A difference is clear if errors of `tolerance` cannot swap the two classes. If images may have several
        labels, the yes or no of each class is compared instead.
        """
        expected_NK, actual_NK = expected[LOGITS], actual[LOGITS]
        if self.metadata.multi_label:
            return self._label_agreement(expected_NK, actual_NK, tolerance=tolerance)
        cosine_N = F.cosine_similarity(_centred(expected_NK), _centred(actual_NK), dim=1)
        margin = 2 * tolerance * expected_NK.abs().max().item()
        share, clear = _top1_agreement(expected_NK, actual_NK, margin=margin)
        failures = []
        if share < 1:
            failures.append(f"the first class agrees on {share:.1%} of {clear} clear images")
        return Agreement(
            metrics={"min_cosine": cosine_N.min().item(), "top1_agreement": share, "clear_images": clear},
            failures=tuple(failures),
        )

    def _label_agreement(self, expected_NK: Tensor, actual_NK: Tensor, *, tolerance: float) -> Agreement:
        """Compare the yes or no of each class where the logit is clearly above or below the threshold."""
        limit = math.log(self.metadata.threshold / (1 - self.metadata.threshold))
        clear = (expected_NK - limit).abs() > tolerance * expected_NK.abs().max().item()
        agree = (expected_NK > limit) == (actual_NK > limit)
        share = float(agree[clear].float().mean()) if clear.any() else 1.0
        failures = [] if share == 1 else [f"yes and no agree for {share:.1%} of {int(clear.sum())} clear labels"]
        return Agreement(
            metrics={"label_agreement": share, "clear_labels": int(clear.sum())}, failures=tuple(failures)
        )


exportable = ExportableClassifier


def quantization(
    model: Classifier,
    data: str,
    *,
    size: tuple[int, int] | None = None,
    images: int,
    max_drop: float,
    accuracy_control: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Quantization, list[str]]:
    """Return the options of a quantized export: training images calibrate it, validation images measure it.

    Args:
        model: the classifier.
        data: name of labelled images, such as a folder with one sub-folder per class.
        size: height and width of the artifact's input in pixels. None: the network's own.
        images: number of calibration images, at most.
        max_drop: percentage points of the metric that the artifact may lose.
        accuracy_control: OpenVINO only: NNCF chooses the operations to keep in higher precision.
        report: called with a line after each attempt.

    Returns:
        The options of the export, and warnings about the data.

    Raises:
        DataError: the data cannot be used, or its classes are not the network's.
    """
    preprocessing = model.metadata.preprocessing
    if size is not None:
        preprocessing = replace(preprocessing, size=size)
    found = find_labelled(model.metadata, model.num_classes, data, for_training=True)
    # cached, because every attempt for every runtime reads the same images
    loader = evaluation_loader(
        found.images,
        preprocessing,
        batch_size=16,
        workers=0,
        cache="ram",
        multi_label=model.metadata.multi_label,
    )

    def measure(forward: Forward) -> dict[str, Any]:
        return evaluate(logits_of(forward), loader, require_finite=False).metrics

    samples = found.train.samples
    # in random order: LiteRT's ranges are moving averages, biased by images sorted by class
    chosen = random.Random(0).sample(range(len(samples)), min(images, len(samples)))
    options = Quantization(
        images=[samples[index] for index in chosen],
        measure=measure,
        metric=find_task("classify").headline(multi_label=model.metadata.multi_label)[0],
        max_drop=max_drop,
        accuracy_control=accuracy_control,
        data=f"{data} (validation)",
        report=report,
    )
    few = few_images_note(
        len(found.images),
        metric=find_task("classify").headline(multi_label=model.metadata.multi_label)[1],
        max_drop=max_drop,
    )
    return options, [*found.notes, *few]


def _centred(logits_NK: Tensor) -> Tensor:
    return logits_NK - logits_NK.mean(dim=1, keepdim=True)


def _top1_agreement(expected_NK: Tensor, actual_NK: Tensor, *, margin: float) -> tuple[float, int]:
    if expected_NK.shape[1] < 2:
        return 1.0, 0
    first_two = expected_NK.topk(2, dim=1).values
    clear = (first_two[:, 0] - first_two[:, 1]) > margin
    agree = expected_NK.argmax(1) == actual_NK.argmax(1)
    count = int(clear.sum())
    return (float(agree[clear].float().mean()) if count else 1.0), count
