"""The losses of DeiT's distillation for each head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from iformer.errors import ConfigError
from iformer.tasks.classification.distillation import DistilledClassification

CLASSES = ("a", "b", "c")


class Heads(nn.Module):
    """Two linear heads on the images' mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.labels, self.teacher = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        colours = images.mean((2, 3))
        return self.labels(colours), self.teacher(colours)


class Teacher:
    """Answers with the colours themselves, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return 5 * images.mean((2, 3))


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"images": torch.randn(6, 3, 4, 4, generator=generator), "labels": torch.tensor([0, 1, 2, 2, 1, 0])}


def test_hard_loss_is_half_labels_half_the_teacher_s_answers() -> None:
    torch.manual_seed(0)
    model, data = Heads(), batch()
    task = DistilledClassification(CLASSES, teacher=Teacher(), distillation="hard")
    labels_BK, teacher_BK = model(data["images"])
    answers = data["images"].mean((2, 3)).argmax(1)
    expected = 0.5 * functional.cross_entropy(labels_BK, data["labels"]) + 0.5 * functional.cross_entropy(
        teacher_BK, answers
    )
    values = task.loss(model, data)
    torch.testing.assert_close(values["loss"], expected)
    assert values["agreement"] == pytest.approx(100 * (teacher_BK.argmax(1) == answers).float().mean().item())


@pytest.mark.parametrize("distillation", ["hard", "soft"])
def test_a_teacher_whose_outputs_are_not_finite_stops_the_run(distillation: str) -> None:
    def teacher(images: Tensor) -> Tensor:
        logits_BK = 5 * images.mean((2, 3))
        logits_BK[2, 1] = torch.nan
        return logits_BK

    task = DistilledClassification(CLASSES, teacher=teacher, distillation=distillation)
    assert task.loss(Heads(), batch())["loss"].isnan()


def test_soft_loss_is_equation_2_of_deit() -> None:
    torch.manual_seed(0)
    model, data = Heads(), batch()
    task = DistilledClassification(CLASSES, teacher=Teacher(), distillation="soft", weight=0.1, temperature=3.0)
    labels_BK, teacher_BK = model(data["images"])
    student, teacher = (teacher_BK / 3).softmax(1), (5 * data["images"].mean((2, 3)) / 3).softmax(1)
    divergence_B = (teacher * (teacher.log() - student.log())).sum(1)
    expected = 0.9 * functional.cross_entropy(labels_BK, data["labels"]) + 0.1 * 9 * divergence_B.mean()
    torch.testing.assert_close(task.loss(model, data)["loss"], expected)


@pytest.mark.parametrize("distillation", ["hard", "soft"])
def test_each_head_learns_from_its_own_teacher(distillation: str) -> None:
    model, data = Heads(), batch()
    for weight, learning, idle in ((0.0, model.labels, model.teacher), (1.0, model.teacher, model.labels)):
        model.zero_grad(set_to_none=False)
        task = DistilledClassification(CLASSES, teacher=Teacher(), distillation=distillation, weight=weight)
        task.loss(model, data)["loss"].backward()
        assert learning.weight.grad.abs().sum() > 0
        assert idle.weight.grad.abs().sum() == 0


def test_teacher_sees_the_mixed_images_of_the_student() -> None:
    teacher, seen = Teacher(), []
    task = DistilledClassification(CLASSES, teacher=teacher, distillation="hard", mixup_alpha=1.0)
    model, data = Heads(), batch()
    original = data["images"].clone()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.loss(model, data)
    assert torch.equal(teacher.seen[0], seen[0])
    assert not torch.equal(seen[0], original)


def test_network_with_one_head_learns_both_with_it() -> None:
    model, data = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), batch()
    task = DistilledClassification(CLASSES, teacher=Teacher(), distillation="hard", weight=0.25)
    logits, answers = model(data["images"]), data["images"].mean((2, 3)).argmax(1)
    expected = 0.75 * functional.cross_entropy(logits, data["labels"]) + 0.25 * functional.cross_entropy(
        logits, answers
    )
    torch.testing.assert_close(task.loss(model, data)["loss"], expected)


def test_unknown_distillation_is_refused() -> None:
    with pytest.raises(ConfigError, match="distillation is 'medium'; expected hard or soft"):
        DistilledClassification(CLASSES, teacher=Teacher(), distillation="medium")  # type: ignore[arg-type]
