"""The network that a student learns from: fetched or read, with its own preprocessing, at inference speed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import list_models
from iformer.errors import DataError, UnknownNameError, WeightsError, one_line
from iformer.models.factory import create_model
from iformer.models.folding import fold
from iformer.models.weights.resolve import load_classifier
from iformer.models.weights.safetensors_file import SUFFIX, open_safetensors
from iformer.training.network.precision import compiles, multiplies_bf16

TIMM = "timm:"
"""What a timm network's name may begin with, and does where a run's checkpoint names one."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    network: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    """Empty where the outputs are ImageNet's classes in their usual order."""
    fixed_size: tuple[int, int] | None = None
    """Height and width, where the network takes no other."""


class Teacher:
    """A frozen network that answers for a student's images: float B x 3 x H x W to fp32 logits, B x K.

    It is given the student's batch, augmented, mixed and normalised, and undoes that normalisation for its own
    (and resizes, where it takes one size only). It computes in bf16 or fp16 where the device multiplies them,
    without gradients, and goes to the device of the first batch.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        student: Preprocessing,
        order: Sequence[int] | None = None,
        fixed_size: tuple[int, int] | None = None,
        compiled: Literal["auto"] | bool = False,
    ) -> None:
        """
        Args:
            network: images to logits.
            preprocessing: its mean and standard deviation are used.
            student: the preprocessing of the images that will come.
            order: the network's output for each of the student's classes; None: they are the same.
            fixed_size: height and width to resize images to.
            compiled: run it through `torch.compile`; auto: on CUDA GPUs.
        """
        self.network = network.eval().requires_grad_(False)
        self.fingerprint = _fingerprint(network)
        """SHA-256 (hex) of its weights."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (student.mean, student.std))
        own_mean, own_std = (
            torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std
        self._same = torch.equal(mean, own_mean) and torch.equal(std, own_std)
        self._order = None if order is None else torch.tensor(order)
        self._fixed_size = fixed_size
        self._compiled = compiled
        self._answer: Any = self.network
        self._device: torch.device | None = None

    def __call__(self, images: Tensor) -> Tensor:
        if images.device != self._device:
            self._move(images.device)
        logits_BK: Tensor
        with torch.inference_mode():
            if not self._same:
                images = images * self._scale + self._shift
            if self._fixed_size is not None and tuple(images.shape[2:]) != self._fixed_size:
                images = functional.interpolate(images, self._fixed_size, mode="bicubic", antialias=True)
            logits_BK = self._answer(images.to(self._dtype)).float()
            if self._order is not None:
                logits_BK = logits_BK[:, self._order]
        return logits_BK.clone()  # outside, so that a loss may keep it for its gradient

    def _move(self, device: torch.device) -> None:
        self._device, self._dtype = device, _half(device)
        self.network.to(device, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        if self._order is not None:
            self._order = self._order.to(device)
        self._answer = torch.compile(self.network) if compiles(self._compiled, device) else self.network


def build_teacher(
    name: str,
    class_names: tuple[str, ...],
    student: Preprocessing,
    *,
    compiled: Literal["auto"] | bool = False,
) -> Teacher:
    """A teacher by name or from a file.

    Args:
        name: a timm network with its released weights, one of ours with its released weights, or a checkpoint:
            of ours, or of a timm network that was trained by `iformer.training.loop.train`.
        class_names: the student's classes.
        student: the student's preprocessing.
        compiled: see `Teacher`.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the weights cannot be fetched or read.
        DataError: its classes or its channels are not the student's.
    """
    source = _read(name)
    takes, given = len(source.preprocessing.mean), len(student.mean)
    if given not in (1, takes):
        raise DataError(f"the teacher {name} takes images of {takes} channels, the student's have {given}")
    order = _class_order(name, source, class_names)
    return Teacher(
        source.network,
        source.preprocessing,
        student=student,
        order=order,
        fixed_size=source.fixed_size,
        compiled=compiled,
    )


def _read(name: str) -> _Source:
    if name in list_models():
        network = create_model(name, pretrained=True)
        return _Source(network=fold(network.eval()), preprocessing=network.metadata.preprocessing)
    if name.endswith(SUFFIX) or Path(name).exists():
        return _read_checkpoint(name)
    return _timm_network(name.removeprefix(TIMM))


def _read_checkpoint(path: str) -> _Source:
    with open_safetensors(path) as file:
        header = file.metadata() or {}
        if header.get("format") == "pt" and "network" in header:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return _trained_timm_network(path, header, tensors)
    network = load_classifier(path)
    metadata = network.metadata
    return _Source(network=fold(network), preprocessing=metadata.preprocessing, class_names=metadata.class_names)


def _trained_timm_network(path: str, header: dict[str, str], tensors: dict[str, Tensor]) -> _Source:
    """A checkpoint that training wrote of a network which is not ours."""
    import timm

    try:
        name, metadata = json.loads(header["network"]), Metadata.from_plain(json.loads(header["metadata"]))
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(name, str) or not name.startswith(TIMM):
        raise WeightsError(f"{path} holds a network named {name}, which can be a teacher only from Python")
    network: Any = timm.create_model(name.removeprefix(TIMM), num_classes=len(metadata.class_names))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit {name}: {' '.join(str(error).split())}") from None
    return _of_timm(network, metadata.preprocessing, metadata.class_names)


def _timm_network(name: str) -> _Source:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise UnknownNameError("teacher", name, [*list_models(), *timm.list_pretrained()])
    try:
        network: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises of every kind
        raise WeightsError(
            f"the weights of the teacher {name} cannot be fetched: {one_line(error)}; "
            "fetch them where there is a network, or give --teacher a checkpoint file"
        ) from None
    config = network.pretrained_cfg
    return _of_timm(network, Preprocessing(mean=tuple(config["mean"]), std=tuple(config["std"])), ())


def _of_timm(network: Any, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> _Source:
    config = network.pretrained_cfg
    fixed = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None
    return _Source(network=network, preprocessing=preprocessing, class_names=class_names, fixed_size=fixed)


def _class_order(name: str, source: _Source, class_names: tuple[str, ...]) -> list[int] | None:
    """The teacher's output for each of the student's classes, where they are in another order."""
    with torch.no_grad():
        size = source.fixed_size or (64, 64)
        classes = source.network.eval()(torch.zeros(1, len(source.preprocessing.mean), *size)).shape[1]
    if classes != len(class_names):
        raise DataError(
            f"the teacher {name} tells {classes} classes apart, the data has {len(class_names)}; train a teacher "
            "on this data and give --teacher its checkpoint"
        )
    if not source.class_names or source.class_names == class_names:
        return None
    if set(source.class_names) != set(class_names):
        only = sorted(set(class_names) - set(source.class_names))
        raise DataError(f"the teacher {name} was trained on other classes: it does not know {', '.join(only[:5])}")
    return [source.class_names.index(class_name) for class_name in class_names]


def _half(device: torch.device) -> torch.dtype:
    if multiplies_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name}\0{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
