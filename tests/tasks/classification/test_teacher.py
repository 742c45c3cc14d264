"""Teachers: names and files, their preprocessing, and errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import VARIANTS
from iformer.data.transforms import Normalize
from iformer.errors import DataError, UnknownNameError, UserError, WeightsError
from iformer.models.factory import build, create_model
from iformer.models.folding import fold
from iformer.models.weights import hub, imagenet
from iformer.models.weights.checkpoint import save
from iformer.tasks.classification import teacher as module
from iformer.tasks.classification.teacher import Teacher, build_teacher
from iformer.training.checkpointer import save_network
from tiny.networks import tiny_config, tiny_variant

STUDENT = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
OTHER = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLASSES = ("a", "b", "c", "d", "e")


@pytest.fixture(autouse=True)
def _fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_bf16", lambda device: False)


def pixels(side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def checkpoint(config: NetworkConfig, path: Path, class_names: tuple[str, ...] = CLASSES) -> nn.Module:
    model = build(config)
    save(model, path, class_names=class_names, preprocessing=OTHER)
    return model.eval()


def test_teacher_replaces_the_normalisation_of_the_student(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = checkpoint(tiny_config(), tmp_path / "teacher.safetensors")
    teacher = build_teacher(str(tmp_path / "teacher.safetensors"), CLASSES, STUDENT)
    answers = teacher(Normalize(STUDENT)(pixels()))
    with torch.no_grad():
        torch.testing.assert_close(answers, model(Normalize(OTHER)(pixels())), atol=1e-5, rtol=1e-4)
    assert answers.dtype == torch.float32
    assert not answers.requires_grad
    assert not answers.is_inference()  # a loss may keep it for its gradient


def test_outputs_come_in_the_student_s_order_of_classes(tmp_path: Path) -> None:
    model = checkpoint(tiny_config(), tmp_path / "teacher.safetensors", ("e", "d", "c", "b", "a"))
    teacher = build_teacher(str(tmp_path / "teacher.safetensors"), CLASSES, OTHER)
    images = Normalize(OTHER)(pixels())
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), model(images).flip(1), atol=1e-5, rtol=1e-4)


def test_trained_timm_network_is_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    path = tmp_path / "last.safetensors"
    save_network(model, path, name="timm:test_resnet", metadata=Metadata(class_names=CLASSES, preprocessing=OTHER))
    teacher = build_teacher(str(path), CLASSES, STUDENT)
    with torch.no_grad():
        expected = model(Normalize(OTHER)(pixels(64)))
    torch.testing.assert_close(teacher(Normalize(STUDENT)(pixels(64))), expected, atol=1e-5, rtol=1e-4)
    assert teacher.fingerprint == build_teacher(str(path), CLASSES, STUDENT).fingerprint


def test_every_name_of_a_classifier_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder, a repository on the hub, and one entry of a training script's file."""
    run = tmp_path / "run"
    run.mkdir()
    checkpoint(tiny_config(), run / "best.safetensors")
    monkeypatch.setattr(hub, "fetch", lambda wanted: run / "best.safetensors")
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())  # files without a header are of a known size
    weights, average = (create_model("iformer_tiny", num_classes=5) for _ in range(2))
    torch.save({"model": weights.state_dict(), "model_ema": average.state_dict()}, tmp_path / "a.pth")
    fingerprints = [
        build_teacher(name, CLASSES, STUDENT).fingerprint for name in (str(run), "hf-hub:someone/net@main")
    ]
    assert fingerprints[0] == fingerprints[1]
    entry = build_teacher(str(tmp_path / "a.pth"), CLASSES, STUDENT, entry="model_ema")
    assert entry.fingerprint == Teacher(fold(average), STUDENT, student=STUDENT).fingerprint
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: timm.models.test_resnet(num_classes=5))
    for name in ("timm/test_resnet.r160_in1k", "timm:test_resnet", "test_resnet"):
        assert type(build_teacher(name, CLASSES, STUDENT).network).__name__ == "ResNet"
    with pytest.raises(UserError, match="teacher_entry is for files of training scripts; test_resnet is not one"):
        build_teacher("test_resnet", CLASSES, STUDENT, entry="model_ema")


def test_outputs_of_imagenet_keep_their_order_for_folders_named_by_wordnet_id(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.safetensors"
    names = imagenet.imagenet_class_names()
    checkpoint(tiny_config(num_classes=1000), path, names)
    folders = tuple(f"n{number:08}" for number in range(1000))
    images = Normalize(STUDENT)(pixels())
    as_they_are = build_teacher(str(path), folders, STUDENT)(images)
    torch.testing.assert_close(build_teacher(str(path), names[::-1], STUDENT)(images), as_they_are.flip(1))


def test_images_are_resized_for_a_teacher_of_one_size() -> None:
    sizes = []

    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(images.shape[2:]))
            return images.mean((2, 3))

    Teacher(Fixed(), STUDENT, student=STUDENT, fixed_size=(48, 40))(torch.zeros(1, 3, 32, 32))
    assert sizes == [(48, 40)]


def test_half_precision_changes_answers_little(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build(tiny_config()).eval()
    images = Normalize(STUDENT)(pixels())
    exact = Teacher(model, STUDENT, student=STUDENT)(images)
    monkeypatch.setattr(module, "multiplies_bf16", lambda device: True)
    half = Teacher(model, STUDENT, student=STUDENT)
    torch.testing.assert_close(half(images), exact, atol=0.02, rtol=0.02)
    assert next(half.network.parameters()).dtype == torch.bfloat16


def test_other_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    checkpoint(tiny_config(), path)
    with pytest.raises(DataError, match="has 5 classes, the data has 2; train a teacher on this data"):
        build_teacher(str(path), ("a", "b"), STUDENT)
    with pytest.raises(DataError, match="trained on other classes: it does not know f"):
        build_teacher(str(path), (*CLASSES[:4], "f"), STUDENT)


def test_a_file_cannot_name_a_repository_as_its_network(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    for name in ("timm:hf-hub:user/name", "timm:local-dir:/tmp", "timm:nothing"):
        save_network(nn.Linear(3, 5), path, name=name, metadata=Metadata(class_names=CLASSES))
        with pytest.raises(WeightsError, match="which timm does not have"):
            build_teacher(str(path), CLASSES, STUDENT)


def test_the_option_for_a_teachers_entry_is_named(tmp_path: Path) -> None:
    state = build(tiny_config()).state_dict()
    torch.save({"first": state, "second": dict(state)}, tmp_path / "two.pth")
    with pytest.raises(WeightsError, match=r"choose one with --set distillation\.teacher_entry=KEY$"):
        build_teacher(str(tmp_path / "two.pth"), CLASSES, STUDENT)


def test_invalid_teachers_are_errors_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="unknown teacher 'regnety_16'; did you mean"):
        build_teacher("regnety_16", CLASSES, STUDENT)
    with pytest.raises(
        UnknownNameError, match=r"'nope'; it is like none of the [\d,]+ known names. A teacher is a"
    ):
        build_teacher("nope", CLASSES, STUDENT)
    with pytest.raises(WeightsError, match="does not exist"):
        build_teacher(str(tmp_path / "missing.safetensors"), CLASSES, STUDENT)
    save_network(
        nn.Linear(3, 5), tmp_path / "own.safetensors", name="mine", metadata=Metadata(class_names=CLASSES)
    )
    with pytest.raises(WeightsError, match="network named mine, which can be a teacher only from Python"):
        build_teacher(str(tmp_path / "own.safetensors"), CLASSES, STUDENT)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        WeightsError, match=r"teacher regnety_160\.deit_in1k cannot be fetched: no network"
    ) as caught:
        build_teacher("regnety_160.deit_in1k", CLASSES, replace(STUDENT))
    assert "\n" not in str(caught.value)
