"""Read a weight file of any format: our checkpoints, and files of timm, the authors and training scripts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.errors import ConfigError, WeightsError, counted
from iformer.files import require_regular_file
from iformer.models.weights.checkpoint import Weights, check_fit, expected_shapes, shapes_of
from iformer.models.weights.dialects import from_foreign
from iformer.models.weights.entries import select_entry
from iformer.models.weights.header import (
    Config,
    backbone_config,
    is_checkpoint_header,
    is_described,
    read_header,
)
from iformer.models.weights.pickles import read_pickle
from iformer.models.weights.recognition import differences, recognise, recognise_network
from iformer.models.weights.safetensors_file import open_safetensors, unreadable

_MAX_TENSORS = 100_000
"""Largest number of tensors in a file; the largest network that a config allows has fewer."""


def read_weights(path: str | os.PathLike[str], *, entry: str | None = None) -> Weights:
    """Read a weight file; its format is recognised by its content.

    The tensors of safetensors files are memory-mapped, so reading a file costs little until they are used.

    Args:
        path: our checkpoint of any task, timm's `.safetensors` or pickle, or the authors' pickle.
        entry: which state dict of a training script's file to read, such as `model_ema`; see
            `iformer.models.weights.entries.select_entry`.

    Raises:
        WeightsError: the file does not exist, is damaged, asks for code to be run, holds something else, or its
            weights fit no network.
    """
    path = Path(path)
    try:
        require_regular_file(path)
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise unreadable(path, error) from error
    # a safetensors file is a length of 8 bytes, the first of which may be 0x80 too, then a JSON object
    if start.startswith((b"PK", b"\x80")) and start[8:9] != b"{":
        return _from_script(path, read_pickle(path), {}, entry)
    with open_safetensors(path) as opened:
        header = dict(opened.metadata() or {})
        keys = opened.keys()
        if len(keys) > _MAX_TENSORS:
            raise WeightsError(f"{path} holds {len(keys):,} tensors; expected at most {_MAX_TENSORS:,}")
        tensors = {key: opened.get_tensor(key) for key in keys}
    if not is_checkpoint_header(header):
        return _from_script(path, tensors, header, entry)
    if entry is not None:
        raise WeightsError(f"{path} is a checkpoint of one network; leave out --entry (in Python entry=)")
    config, metadata = read_header(header, str(path))
    blocks = sum(stage.depth for stage in backbone_config(config).stages)
    if blocks > len(tensors):  # before a network of so many blocks is built
        raise WeightsError(
            f"{path}: its header describes {counted(blocks, 'block')}, but it holds "
            f"{counted(len(tensors), 'tensor')}"
        )
    try:
        expected = expected_shapes(config)
    except ConfigError as error:
        raise WeightsError(f"{path}: the description in its header is invalid: {error}") from error
    check_fit(expected, shapes_of(tensors), source=str(path), network=backbone_config(config).name)
    return Weights(
        source=str(path),
        path=path,
        format="iformer",
        config=config,
        state_dict=tensors,
        metadata=for_channels(metadata, config, str(path)),
    )


def _from_script(path: Path, content: Any, header: dict[str, str], entry: str | None) -> Weights:
    """Return the weights in a file that is not a checkpoint; a file that was converted from one has its header."""
    source = str(path)
    try:
        state_dict, beside, description = select_entry(content, entry)
        format_ = recognise(state_dict)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    config = recognise_network(state_dict, source)
    metadata = Metadata(provenance={"source_file": path.name, "source_format": format_})
    header = header or description
    if is_described(header):
        described, metadata = read_header(header, source)
        if not _is_of(described, config):
            raise WeightsError(f"{source}: its header describes another network than its weights")
        config = cast(NetworkConfig, described)
    ours = state_dict if format_ == "iformer" else from_foreign(state_dict, config, format_, source)
    return Weights(
        source=source,
        path=path,
        format=format_,
        config=config,
        state_dict=ours,
        metadata=for_channels(metadata, config, source),
        ignored=beside,
        described=is_described(header),
    )


def _is_of(described: Config, config: NetworkConfig) -> bool:
    """Return whether a description is that of the network that was recognised by its weights."""
    sizes = ("in_chans", "num_classes", "distillation")
    return (
        isinstance(described, NetworkConfig)
        and not differences(described, config)
        and all(getattr(described, name) == getattr(config, name) for name in sizes)
    )


def for_channels(metadata: Metadata, config: Config, source: str) -> Metadata:
    """Return metadata with a mean and std for each input channel, adapted from RGB if necessary.

    Raises:
        WeightsError: the number of channels of the preprocessing is neither 3 nor the network's.
    """
    channels = backbone_config(config).in_chans
    preprocessing = metadata.preprocessing.with_channels(channels)
    if len(preprocessing.mean) != channels:
        raise WeightsError(
            f"{source}: its preprocessing is for {counted(len(preprocessing.mean), 'channel')}, its network "
            f"for {channels}"
        )
    return replace(metadata, preprocessing=preprocessing)
