"""Teachers: frozen networks that are called with the student's batches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import list_models, shipped_checkpoints
from iformer.errors import DataError, UnknownNameError, UserError, WeightsError, counted, one_line, printable
from iformer.models.backbone import Backbone
from iformer.models.folding import fold
from iformer.models.weights.hub import release_names
from iformer.models.weights.imagenet import imagenet_class_names
from iformer.models.weights.resolve import RUN_CHECKPOINT, load_classifier
from iformer.models.weights.safetensors_file import SUFFIX, open_safetensors
from iformer.training.network.precision import compiles, multiplies_bf16

_EXPECTED = "A teacher is a network of timm with weights, a size, a file, a run folder or hf-hub:USER/NAME."
TIMM = "timm:"
"""Prefix of a timm network's name in checkpoints that training writes; optional in a teacher's name."""


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """A network to learn from, with its preprocessing and classes."""

    network: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    """Names of the classes; empty if unknown, as for timm's networks."""
    fixed_size: tuple[int, int] | None = None
    """Height and width of the input in pixels, if the network takes only one size. None: any size."""


class FrozenNetwork:
    """A frozen network that takes the student's batches: float B x C x H x W, augmented, mixed and normalised.

    The student's normalisation is replaced by the network's own, and the batch is resized if the network takes
    only one size. The network runs on the device of the batch: in bf16 where the device computes fast in bf16, in
    fp16 on other CUDA GPUs, else in fp32.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        student: Preprocessing,
        fixed_size: tuple[int, int] | None = None,
    ) -> None:
        """Freeze a network.

        Args:
            network: takes normalised images.
            preprocessing: preprocessing of the network; only mean and std are used.
            student: preprocessing of the batches.
            fixed_size: height and width in pixels to which batches are resized; None keeps their size.
        """
        self.network = network.eval().requires_grad_(False)
        self.fingerprint = _fingerprint(network)
        """SHA-256 of the weights, in hexadecimal."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (student.mean, student.std))
        own_mean, own_std = (
            torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std
        self._same = torch.equal(mean, own_mean) and torch.equal(std, own_std)
        self._fixed_size = fixed_size
        self._device: torch.device | None = None

    def inputs(self, images: Tensor) -> Tensor:
        """Move the network to the device of a student's batch, and return the batch as input of the network."""
        if images.device != self._device:
            self.move(images.device)
        if not self._same:
            images = images * self._scale + self._shift
        if self._fixed_size is not None and tuple(images.shape[2:]) != self._fixed_size:
            images = functional.interpolate(images, self._fixed_size, mode="bicubic", antialias=True)
        return images.to(self._dtype)

    def move(self, device: torch.device) -> None:
        """Move the network to a device."""
        self._device, self._dtype = device, _half(device)
        self.network.to(device, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)


class Teacher(FrozenNetwork):
    """A frozen classifier: from the student's batch to fp32 logits, B x K, without gradient."""

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
        """Freeze a classifier.

        Args:
            network: maps normalised images to logits.
            preprocessing: preprocessing of the network; only mean and std are used.
            student: preprocessing of the batches.
            order: for each class of the student, the index of the network's output; None if the order is the same.
            fixed_size: height and width in pixels to which batches are resized; None keeps their size.
            compiled: whether to use `torch.compile`; "auto" means on CUDA GPUs.
        """
        super().__init__(network, preprocessing, student=student, fixed_size=fixed_size)
        self._order = None if order is None else torch.tensor(order)
        self._compiled = compiled
        self._answer: Any = self.network

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        logits_BK: Tensor = self._answer(self.inputs(images)).float()
        return logits_BK if self._order is None else logits_BK[:, self._order]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits, fp32 B x K, of a batch of the student."""
        return self._logits(images).clone()  # not an inference tensor, so that a loss can save it for its backward

    def move(self, device: torch.device) -> None:
        super().move(device)
        if self._order is not None:
            self._order = self._order.to(device)
        self._answer = torch.compile(self.network) if compiles(self._compiled, device) else self.network


def build_teacher(
    name: str,
    class_names: tuple[str, ...],
    student: Preprocessing,
    *,
    entry: str | None = None,
    compiled: Literal["auto"] | bool = False,
) -> Teacher:
    """Create a teacher from a name.

    Args:
        name: a timm network with released weights, also as `timm/NAME`; any name of `iformer.load` that means a
            classifier; or a checkpoint that training wrote of a timm network.
        class_names: names of the student's classes.
        student: preprocessing of the student.
        entry: which state dict of a training script's file to take, such as `model_ema`.
        compiled: see `Teacher`.

    Raises:
        UserError: `entry` is given for a timm network.
        UnknownNameError: the name is unknown; the message suggests the nearest names.
        WeightsError: the weights cannot be fetched or read, or do not belong to a classifier.
        DataError: the teacher has other classes or channels than the student.
    """
    source = read_teacher(name, student, entry=entry)
    return Teacher(
        source.network,
        source.preprocessing,
        student=student,
        order=_class_order(name, source, class_names),
        fixed_size=source.fixed_size,
        compiled=compiled,
    )


def read_teacher(
    name: str,
    student: Preprocessing,
    *,
    entry: str | None = None,
    weights: str | None = None,
    load: Callable[..., Backbone] = load_classifier,
) -> TeacherSource:
    """Load the network that is the teacher of this name.

    Args:
        name: see `build_teacher`.
        student: preprocessing of the student.
        entry: which state dict of a training script's file to take.
        weights: file with the weights of a timm network, under timm's key names. None: the released weights.
        load: function that opens the names that `iformer.load` knows.

    Raises:
        UserError: `entry` is given for a timm network, or `weights` for another network.
        UnknownNameError: the name is unknown; the message suggests the nearest names.
        WeightsError: the weights cannot be fetched or read.
        DataError: the teacher takes images with other channels than the student's.
    """
    source = _read(name, entry, weights, load)
    takes, given = len(source.preprocessing.mean), len(student.mean)
    if given not in (1, takes):
        raise DataError(
            f"the teacher {name} takes images of {counted(takes, 'channel')}, the student's have {given}"
        )
    return source


def _read(name: str, entry: str | None, weights: str | None, load: Callable[..., Backbone]) -> TeacherSource:
    import timm

    path = Path(name)
    if os.path.isdir(path):
        path = path / RUN_CHECKPOINT
    if path.suffix == SUFFIX and os.path.isfile(path) and (trained := _trained_timm_network(path)) is not None:
        return trained
    timm_name = name.removeprefix(TIMM).removeprefix("timm/")
    is_ours = os.path.exists(path) or name in (*list_models(), *release_names())
    if not is_ours and timm.is_model(timm_name.partition(".")[0]):
        if entry is not None:
            raise UserError(f"teacher_entry is for files of training scripts; {name} is not one")
        return _timm_network(timm_name, weights)
    if weights is not None:
        raise UserError(f"teacher_weights is for the name of a timm network; {name} has weights of its own")
    try:
        network = load(name, entry=entry)
    except UnknownNameError:
        known = [*shipped_checkpoints(), *list_models(), *timm.list_pretrained()]
        raise UnknownNameError("teacher", timm_name, known, expected=_EXPECTED) from None
    except UserError as error:
        option = "--set distillation.teacher_entry=KEY"
        text = str(error).replace("--entry (in Python entry=)", option).replace("--entry", option)
        raise WeightsError(f"the teacher: {text}") from None
    metadata = network.metadata
    return TeacherSource(
        network=fold(network), preprocessing=metadata.preprocessing, class_names=metadata.class_names
    )


def _trained_timm_network(path: Path) -> TeacherSource | None:
    """Read a checkpoint that training wrote of a timm network; return None for any other file."""
    import timm

    with open_safetensors(path) as file:
        header = file.metadata() or {}
        if header.get("format") != "pt" or "network" not in header:
            return None
        try:
            name, metadata = json.loads(header["network"]), Metadata.from_plain(json.loads(header["metadata"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(f"{path} is damaged: {one_line(error)}") from None
        if not isinstance(name, str):  # an iFormer in timm's format
            return None
        if not name.startswith(TIMM):
            raise WeightsError(f"{path} holds a network named {name}, which can be a teacher only from Python")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if not timm.is_model(name.removeprefix(TIMM)):  # an untrusted name, which may also name a repository
        raise WeightsError(f"{path} holds a network named {printable(name, limit=100)}, which timm does not have")
    network: Any = timm.create_model(name.removeprefix(TIMM), num_classes=len(metadata.class_names))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit {name}: {' '.join(str(error).split())}") from None
    return _of_timm(network, metadata.preprocessing, metadata.class_names)


def _timm_network(name: str, weights: str | None) -> TeacherSource:
    import timm

    if weights is not None:
        return _with_weights(timm.create_model(name), weights, name)
    try:
        network: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client has no common base class of its errors
        raise WeightsError(
            f"the weights of the teacher {name} cannot be fetched: {one_line(error)}; "
            "try again with a connection, or give --teacher a checkpoint file"
        ) from None
    return _of_timm(network, _preprocessing(network), ())


def _with_weights(network: Any, weights: str, name: str) -> TeacherSource:
    """Load the weights of a timm network from a file, strictly and without running code of the file."""
    from timm.models import load_checkpoint

    try:
        load_checkpoint(network, weights, use_ema=False)
    except FileNotFoundError:
        raise WeightsError(f"teacher_weights is {weights}; there is no such file") from None
    except Exception as error:  # a damaged or hostile file can fail in any way
        reason = printable(" ".join(str(error).split()), limit=300)
        raise WeightsError(f"{weights} does not hold the weights of timm's {name}: {reason}") from None
    return _of_timm(network, _preprocessing(network), ())


def _preprocessing(network: Any) -> Preprocessing:
    config = network.pretrained_cfg
    return Preprocessing(mean=tuple(config["mean"]), std=tuple(config["std"]))


def _of_timm(network: Any, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> TeacherSource:
    config = network.pretrained_cfg
    fixed = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None
    return TeacherSource(network=network, preprocessing=preprocessing, class_names=class_names, fixed_size=fixed)


def _class_order(name: str, source: TeacherSource, class_names: tuple[str, ...]) -> list[int] | None:
    """Return the index of the teacher's output for each class of the student; None if the order is the same."""
    with torch.no_grad():
        size = source.fixed_size or (64, 64)
        classes = source.network.eval()(torch.zeros(1, len(source.preprocessing.mean), *size)).shape[1]
    if classes != len(class_names):
        raise DataError(
            f"the teacher {name} has {classes} classes, the data has {len(class_names)}; train a teacher on this "
            "data and give --teacher its checkpoint"
        )
    if not source.class_names or source.class_names == class_names:
        return None
    if set(source.class_names) != set(class_names):
        if source.class_names == imagenet_class_names():  # a data set's folders may be named by WordNet id
            return None
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
