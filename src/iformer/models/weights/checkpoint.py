"""Checkpoints: one `.safetensors` file with the weights of a network of any task and, in the header, its config.

`iformer.models.weights.header` documents the header. Writing replaces the file in one step, so neither a crash nor
a full disk leaves half a checkpoint behind. Loading is strict: a missing, extra or misshapen weight is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from iformer.config.checking import FileName, check_arguments
from iformer.config.metadata import Metadata
from iformer.errors import ConfigError, UserError, WeightsError, listed, one_line
from iformer.files import write_bytes
from iformer.models.backbone import Backbone
from iformer.models.classifier import Classifier
from iformer.models.timm_interface import Indices
from iformer.models.weights.header import (
    FORMAT,
    Config,
    NetworkRow,
    backbone_config,
    metadata_with,
    row_of,
    write_header,
)
from iformer.models.weights.safetensors_file import SUFFIX
from iformer.plain_values import plain_arguments

Format = Literal["iformer", "timm", "authors"]
FORMATS: tuple[Format, ...] = ("iformer", "timm", "authors")

_HEAD = "head."
_STORED_TYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of a network of any task, under this package's key names and in the precision of their file."""

    source: str
    """File or hub repository from which the weights were read, for messages."""
    path: Path
    format: Format
    """The key names that the file uses."""
    config: Config
    state_dict: dict[str, Tensor]
    metadata: Metadata
    ignored: tuple[str, ...] = ()
    """Keys of the file that are not part of an iFormer, such as the weights of a loss."""
    described: bool = True
    """Whether the file or its repository says how images are prepared. False: `metadata` has the defaults."""

    @property
    def row(self) -> NetworkRow:
        """The kind of network: its row of `NETWORKS`."""
        row = row_of(self.config, self.metadata.task)
        assert row is not None
        return row

    @property
    def task(self) -> str:
        """Name of the network's task, such as "detect"."""
        return self.row.task

    def backbone(self) -> Weights:
        """Return the weights of the backbone, without the head's class names, metrics and letterbox."""
        prefix = self.row.backbone
        preprocessing = replace(self.metadata.preprocessing, letterbox=None)
        return replace(
            self,
            config=backbone_config(self.config).with_options(num_classes=0),
            state_dict={
                key.removeprefix(prefix): value
                for key, value in self.state_dict.items()
                if key.startswith(prefix) and not key.startswith(_HEAD)
            },
            metadata=replace(
                self.metadata, task="classify", class_names=(), metrics={}, preprocessing=preprocessing
            ),
        )


@plain_arguments
def save(model: nn.Module, path: FileName, *, dtype: torch.dtype | None = None, **fields: Any) -> None:
    """Write a network and its metadata to one `.safetensors` file, in one step.

    Args:
        model: a `Classifier`, `Backbone`, `Detector`, `LightDetector`, `Segmenter` or `LightSegmenter` that is not
            folded, on any device; wrappers of torch around it are removed (see `unwrapped`).
        path: the file, in an existing folder. An existing file is replaced.
        dtype: `torch.float16` or `torch.bfloat16` halves the file: kernels and matrices are stored in this type,
            while norms, statistics, biases and layer scales keep their precision. None changes no value.
        fields: fields of `Metadata` that replace those of `model.metadata`.

    Raises:
        UserError: `model` is not an iFormer network, is folded, is quantized, or lacks stages of its config; or
            `path` is no path, or `dtype` none of these types.
        WeightsError: `path` does not end in `.safetensors`, the weights do not fit the network's config, a weight
            does not fit into `dtype`, or the number of class names is not the number of classes.
        ConfigError: a metadata field is unknown or invalid.
        OutputError: the file cannot be written.
    """
    check_arguments(save, {"path": path})
    if dtype not in _STORED_TYPES:
        kinds = ", ".join(str(kind) for kind in _STORED_TYPES)
        raise UserError(f"dtype is {dtype!r}; expected one of {kinds}")
    model = unwrapped(model)
    own: Any = getattr(model, "metadata", None)
    row = row_of(getattr(model, "config", None), getattr(own, "task", ""))
    if row is None:
        hint = "; pass the network inside it" if isinstance(model, nn.Module) else ""
        raise UserError(f"save takes an iFormer network; got {type(model).__name__}{hint}")
    if getattr(model, "is_folded", False):
        raise UserError("a folded network is for inference and cannot be saved; save the one it was made from")
    if isinstance(model, Backbone) and not model.is_complete:
        raise UserError(
            f"this network has {len(model.stages)} of the {len(model.config.stages)} stages of "
            f"{model.config.name} and cannot be saved; save the whole network"
        )
    config: Any = model.config
    if isinstance(model, Backbone) and not isinstance(model, Classifier):
        config = config.with_options(num_classes=0)
    require_weights(model)
    state_dict = model.state_dict()
    # other modules in the network, such as pruned layers, would give a file that cannot be loaded
    check_fit(expected_shapes(config), shapes_of(state_dict), source=type(model).__name__, network=_name_of(model))
    metadata = metadata_with(own, **{"task": row.task, **fields})
    write_checkpoint(path, state_dict, config, metadata, dtype=dtype)


def unwrapped(model: Any) -> Any:
    """Return the network inside `torch.compile`, `DataParallel`, `DistributedDataParallel` and `AveragedModel`.

    Anything else is returned as it is.
    """
    while isinstance(model, nn.Module):
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif "_orig_mod" in model._modules:  # the class of `torch.compile`, which takes seconds to import
            model = model._modules["_orig_mod"]
        else:
            break
    return model


def require_weights(network: nn.Module) -> None:
    """Check that a network has weights, and has them as numbers that it can compute with.

    Raises:
        UserError: the network is on the meta device, or has layers that were quantized by torch.
    """
    state_dict: dict[str, Any] = network.state_dict()
    other = [key for key, x in state_dict.items() if not isinstance(x, Tensor) or x.is_quantized]
    if other:
        raise UserError(
            f"the network has quantized layers ({listed(other, limit=2)}); give the network that they were made "
            "from, and quantize it with iformer.export"
        )
    if any(x.is_meta for x in state_dict.values()):
        raise UserError("the network is on the meta device and has no weights; load or initialise them first")


def write_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    config: Config,
    metadata: Metadata,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights under this package's key names as a checkpoint.

    Args:
        path: the file, in an existing folder. An existing file is replaced.
        state_dict: the weights.
        config: config of the network.
        metadata: metadata of the network.
        dtype: see `save`.

    Raises:
        WeightsError: `path` does not end in `.safetensors`, a weight does not fit into `dtype`, the number of
            class names is not the number of classes, or JSON cannot hold the metadata.
        OutputError: the file cannot be written.
    """
    if Path(path).suffix != SUFFIX:
        raise WeightsError(f"{path}: the name of a checkpoint ends in {SUFFIX}")
    header = {"format": FORMAT, **write_header(config, metadata, source=str(path))}
    write_bytes(path, serialize(stored_tensors(state_dict, dtype), header))


def stored_tensors(state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the tensors to write: contiguous, on the CPU, matrices and kernels in `dtype`.

    Vectors keep their precision: they are one percent of the file, and a running variance or a layer scale of
    1e-6 does not survive half precision.

    Raises:
        WeightsError: a tensor has values that `dtype` cannot hold.
    """
    stored = {}
    for key, tensor in state_dict.items():
        tensor = tensor.detach().cpu()
        if dtype is not None and tensor.is_floating_point() and _is_matrix(tensor):
            halved = tensor.to(dtype)
            if not torch.isfinite(halved).all() and torch.isfinite(tensor).all():
                raise WeightsError(f"{key} has values that {dtype} cannot hold; save without dtype")
            tensor = halved
        stored[key] = tensor.clone(memory_format=torch.contiguous_format)
    return stored


def _is_matrix(tensor: Tensor) -> bool:
    """Return whether a tensor is a kernel or matrix; timm's layer scales of 1 x C x 1 x 1 are vectors."""
    return sum(side > 1 for side in tensor.shape) > 1


# ------------------------------------------------------------------------------------------------- loading


def build_network(weights: Weights, *, features_only: bool = False, out_indices: Indices = (0, 1, 2, 3)) -> Any:
    """Build the network that `weights` describe, and load the weights strictly.

    Weights of stages that `out_indices` does not need are left out.

    Returns:
        The network in training mode, in fp32, on the CPU. With `features_only` a `Backbone` that returns the
        maps of `out_indices`.

    Raises:
        WeightsError: the weights do not fit their config; see `load_strict`.
        UserError: `out_indices` names a stage that does not exist, or is empty.
    """
    if features_only:
        weights = weights.backbone()
    with torch.device("meta"):  # without memory and random initialisation
        if features_only:
            model: Any = Backbone(weights.config, out_indices=out_indices)  # type: ignore[arg-type]
        else:
            model = weights.row.network_class()(weights.config)
    state_dict = weights.state_dict
    if features_only and not model.is_complete:
        unused = tuple(f"stages.{index}." for index in range(len(model.stages), len(model.config.stages)))
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith(unused)}
    load_strict(model, state_dict, source=weights.source)
    model.metadata = weights.metadata
    return model


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Load copies of weights into `model`, as fp32, counters as int64. `model` may be on the meta device.

    Counters of batch norm may be floating-point numbers, as averages of weights store them; they are rounded.

    Raises:
        WeightsError: a key is missing, extra or misshapen, or a tensor has the wrong kind of number or values that
            are not finite.
    """
    own = model.state_dict()
    check_fit(shapes_of(own), shapes_of(state_dict), source=source, network=_name_of(model))
    wrong = [
        f"{key} ({value.dtype})"
        for key, value in state_dict.items()
        if value.is_complex() or (own[key].is_floating_point() and not value.is_floating_point())
    ]
    if wrong:
        raise WeightsError(f"{source}: weights are floating-point numbers; found {listed(wrong)}")
    copies = {
        key: value.detach().to(
            "cpu",
            torch.float32 if value.is_floating_point() else torch.int64,
            copy=True,
            memory_format=torch.contiguous_format,
        )
        for key, value in state_dict.items()
    }
    # with weights that are not finite, a network gives no error, but finds nothing or the first class everywhere
    if broken := [key for key, value in copies.items() if not torch.isfinite(value).all()]:
        raise WeightsError(
            f"{source}: has weights that are not finite numbers ({listed(broken, limit=5)}); the training that "
            "wrote it has diverged, or the file is damaged"
        )
    counters = {key: value.round().long() for key, value in copies.items() if not own[key].is_floating_point()}
    model.load_state_dict(copies | counters, strict=True, assign=True)


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its key."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


@lru_cache(maxsize=32)
def expected_shapes(config: Config) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each tensor of a network's state dict, without allocating weights.

    Raises:
        ConfigError: the sizes are too large for a tensor.
    """
    row = row_of(config)
    assert row is not None
    try:
        with torch.device("meta"):
            return shapes_of(row.network_class()(config).state_dict())
    except (RuntimeError, OverflowError, TypeError) as error:
        name = backbone_config(config).name
        raise ConfigError(f"the network {name} cannot be built: {one_line(error)}") from error


def check_fit(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    network: str,
) -> None:
    """Check that weights have the expected keys and shapes.

    Args:
        expected: shape by key of the network.
        found: shape by key of the weights.
        source: name of the weights in the message.
        network: name of the network in the message.

    Raises:
        WeightsError: keys are missing, unexpected or misshapen; one message lists all three.
    """
    misshapen = [
        f"{key} {_shape(found[key])} instead of {_shape(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    differences = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": misshapen,
    }
    if any(differences.values()):
        counts = [f"{len(keys)} {kind}: {listed(keys, limit=10)}" for kind, keys in differences.items() if keys]
        raise WeightsError(f"{source}: its weights do not fit {network}: " + "; ".join(counts))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"


def _name_of(model: nn.Module) -> str:
    return model.config.name if isinstance(model, Backbone) else type(model).__name__
