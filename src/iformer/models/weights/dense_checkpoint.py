"""Checkpoints of detectors and segmenters: one `.safetensors` file, as those of classifiers.

The header's strings are `format` ("iformer-1"), `task_network` (JSON of the config) and `metadata`, whose
`task` says which of the two it is. Reading runs no pickle; writing replaces the file in one step.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Literal

import torch
from safetensors.torch import save as serialize

from iformer.config.detector import DetectorConfig
from iformer.config.metadata import Metadata
from iformer.config.segmenter import SegmenterConfig
from iformer.errors import WeightsError
from iformer.files import write_bytes
from iformer.models.detector import Detector
from iformer.models.segmenter import Segmenter
from iformer.models.weights import checkpoint as weights

DenseNetwork = Detector | Segmenter


def save_dense(model: DenseNetwork, path: str | os.PathLike[str], metadata: Metadata | None = None) -> None:
    """Write a network and its metadata (None: its own) to one `.safetensors` file, atomically.

    Raises:
        WeightsError: JSON cannot hold the metadata.
        OutputError: the file cannot be written.
    """
    metadata = replace(metadata or model.metadata, task=_task(model))
    try:
        header = {
            "format": weights.FORMAT,
            weights.TASK_NETWORK: json.dumps(model.config.to_plain()),
            "metadata": json.dumps(metadata.to_plain()),
        }
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the metadata cannot be written as JSON: {error}") from error
    write_bytes(path, serialize(weights.stored_tensors(model.state_dict(), None), header))


def load_dense(path: str | os.PathLike[str]) -> DenseNetwork:
    """The network of a checkpoint that `save_dense` or training wrote, in eval mode, in fp32, on the CPU.

    Raises:
        WeightsError: there is no such file, it is damaged, it holds no detector or segmenter, or its weights
            do not fit its config; keys that are missing, extra or misshapen are listed.
    """
    with weights.open_safetensors(path) as file:
        config, metadata = _parse_header(file.metadata() or {}, str(path))
        state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    with torch.device("meta"):  # a shell without memory and without random initialisation
        model = Detector(config) if isinstance(config, DetectorConfig) else Segmenter(config)
    weights.load_strict(model, state_dict, source=str(path))
    if isinstance(model, Detector):
        model.reset_anchors()
    model.metadata = metadata
    return model.eval()


def is_dense_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a checkpoint of a detector or segmenter; reads the header only."""
    try:
        with weights.open_safetensors(path) as file:
            return weights.TASK_NETWORK in (file.metadata() or {})
    except WeightsError:
        return False


def _task(model: DenseNetwork) -> Literal["detect", "segment"]:
    return "detect" if isinstance(model, Detector) else "segment"


def _parse_header(header: dict[str, str], source: str) -> tuple[DetectorConfig | SegmenterConfig, Metadata]:
    if weights.TASK_NETWORK not in header:
        raise WeightsError(f"{source} holds no network for detection or segmentation; give one that does")
    weights.check_version(header, source)
    try:
        metadata = Metadata.from_plain(json.loads(header["metadata"]))
        kind = DetectorConfig if metadata.task == "detect" else SegmenterConfig
        config = kind.from_plain(json.loads(header[weights.TASK_NETWORK]))
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        reason = weights.one_line(error)
        raise WeightsError(f"{source}: the description in its header is invalid: {reason}") from error
    names = len(metadata.class_names)
    if names and names != config.num_classes:
        raise WeightsError(f"{source}: there are {names} class names for {config.num_classes} classes")
    return config, metadata
