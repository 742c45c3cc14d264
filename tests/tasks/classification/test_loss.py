"""The loss and metric of classification compared with their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from iformer.errors import ConfigError
from iformer.tasks.classification.loss import Classification
from iformer.tasks.classification.metric import ClassificationMetric

NAMES = ("a", "b", "c")


class Fixed(nn.Module):
    """Answers with given logits, and remembers its input."""

    def __init__(self, *heads: Tensor) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        self.images = images
        return self.heads if len(self.heads) > 1 else self.heads[0]


def batch(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.rand(size, 3, 8, 8, generator=generator),
        "labels": torch.randint(3, (size,), generator=generator),
    }


def test_loss_is_cross_entropy_with_smoothing() -> None:
    examples, logits = batch(6), torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    values = Classification(NAMES, label_smoothing=0.1).loss(Fixed(logits), examples)
    targets = functional.one_hot(examples["labels"], 3) * 0.9 + 0.1 / 3
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(values["loss"], expected)
    right = (logits.argmax(1) == examples["labels"]).float().mean()
    torch.testing.assert_close(values["accuracy"], 100 * right)


def test_two_heads_learn_the_labels_with_both() -> None:
    examples = batch(4)
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    task = Classification(NAMES)
    loss = task.loss(Fixed(one, other), examples)["loss"]
    single = [task.loss(Fixed(logits), examples)["loss"] for logits in (one, other)]
    torch.testing.assert_close(loss, (single[0] + single[1]) / 2)


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_mixing_mixes_images_and_targets_alike(mixup: float, cutmix: float) -> None:
    examples = batch(4)
    # each image is one constant per class, so the share of each class can be read from the pixels
    examples["images"] = functional.one_hot(examples["labels"], 3).float()[:, :, None, None].expand(-1, -1, 64, 64)
    examples["images"] = examples["images"].clone()
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    np.random.seed(3)  # noqa: NPY002 (timm's Mixup draws from it)
    network = Fixed(logits)
    task = Classification(NAMES, mixup_alpha=mixup, cutmix_alpha=cutmix)
    loss = task.loss(network, examples)["loss"]
    shares = network.images.mean((2, 3))
    assert not torch.equal(shares, functional.one_hot(examples["labels"], 3).float())
    torch.testing.assert_close(loss, -(shares * logits.log_softmax(1)).sum(1).mean())


def test_odd_batch_is_not_mixed() -> None:
    examples = batch(5)
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    mixing = Classification(NAMES, label_smoothing=0.2, mixup_alpha=1.0).loss(Fixed(logits), examples)
    plain = Classification(NAMES, label_smoothing=0.2).loss(Fixed(logits), examples)
    assert torch.equal(mixing["loss"], plain["loss"])


def test_metric_counts_over_batches_of_any_size() -> None:
    metric = ClassificationMetric(NAMES)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    answers = torch.tensor([0, 0, 1, 1, 0, 0])
    logits = functional.one_hot(answers, 3).float() * 2
    for chunk in (slice(0, 1), slice(1, 6)):
        metric.update(logits[chunk], {"labels": labels[chunk]})
    metrics = metric.compute()
    assert metrics["confusion"] == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert metrics["top1"] == 50.0
    assert "top5" not in metrics
    assert metrics["images"] == 6
    assert metrics["per_class"]["a"] == {"precision": 50.0, "recall": 66.6667, "f1": 57.1429, "support": 3}
    assert metrics["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert metrics["macro"]["recall"] == pytest.approx((66.6667 + 50 + 0) / 3, abs=1e-3)
    assert metrics["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), abs=1e-6)


def test_top5_needs_more_than_five_classes() -> None:
    names = tuple("abcdefgh")
    metric = ClassificationMetric(names)
    logits = torch.arange(8.0).repeat(8, 1)  # the last five classes are the five strongest
    metric.update(logits, {"labels": torch.arange(8)})
    metrics = metric.compute()
    assert metrics["top1"] == 12.5
    assert metrics["top5"] == 62.5


def test_one_class_is_no_classification() -> None:
    with pytest.raises(ConfigError, match="two classes"):
        Classification(("only",))
