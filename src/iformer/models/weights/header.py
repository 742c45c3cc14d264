"""The header of a checkpoint: the config and the metadata of its network.

A checkpoint is a `.safetensors` file with these strings in its header:

    format        "iformer-1"
    network       JSON of a classifier's `NetworkConfig`, or
    task_network  JSON of a `DetectorConfig` or `SegmenterConfig`, or
    light_network JSON of a `LightDetectorConfig` or `LightSegmenterConfig`
    metadata      JSON of `Metadata`; its `task` and the key above say which row of `NETWORKS` the network is
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from iformer.config.checking import check
from iformer.config.detector import DetectorConfig
from iformer.config.light_detector import LightDetectorConfig
from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.config.segmenter import LightSegmenterConfig, SegmenterConfig
from iformer.errors import ConfigError, WeightsError, one_line, printable

FORMAT = "iformer-1"
FORMAT_FAMILY = "iformer-"
_MAX_CONFIG, _MAX_METADATA = 200_000, 6_000_000
"""Largest number of characters of JSON that is read from a header. A config has at most 10,000 characters,
metadata of 20,000 classes 3 million."""
_MAX_DEPTH = 32

Config = NetworkConfig | DetectorConfig | LightDetectorConfig | SegmenterConfig | LightSegmenterConfig


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    """One kind of network, and how a checkpoint stores it."""

    task: str
    title: str
    config: type[Config]
    module: str
    """The module of the network's class, imported on use: torchvision's detectors take seconds to import."""
    name: str
    key: str
    """The header's key of the config."""
    backbone: str
    """Prefix of the backbone's weights."""

    def network_class(self) -> type[nn.Module]:
        """Import and return the network's class."""
        found: type[nn.Module] = getattr(importlib.import_module(self.module), self.name)
        return found


NETWORKS = [
    NetworkRow(
        task="classify",
        title="a classifier",
        config=NetworkConfig,
        module="iformer.models.classifier",
        name="Classifier",
        key="network",
        backbone="",
    ),
    NetworkRow(
        task="detect",
        title="a detector",
        config=DetectorConfig,
        module="iformer.models.detector",
        name="Detector",
        key="task_network",
        backbone="rcnn.backbone.body.",
    ),
    NetworkRow(
        task="detect",
        title="a detector",
        config=LightDetectorConfig,
        module="iformer.models.light_detector",
        name="LightDetector",
        key="light_network",
        backbone="pyramid.body.",
    ),
    NetworkRow(
        task="segment",
        title="a segmenter",
        config=SegmenterConfig,
        module="iformer.models.segmenter",
        name="Segmenter",
        key="task_network",
        backbone="pyramid.body.",
    ),
    NetworkRow(
        task="segment",
        title="a segmenter",
        config=LightSegmenterConfig,
        module="iformer.models.light_segmenter",
        name="LightSegmenter",
        key="light_network",
        backbone="pyramid.body.",
    ),
]
"""The kinds of networks that a checkpoint can hold."""


def row_of(config: object, task: str = "") -> NetworkRow | None:
    """Return the row of `NETWORKS` for a config; `task` decides between several rows. None: there is no row."""
    rows = [row for row in NETWORKS if isinstance(config, row.config)]
    return next((row for row in rows if row.task == task), rows[0] if rows else None)


def backbone_config(config: Config) -> NetworkConfig:
    """Return the config of a network's backbone; for a classifier, this is `config` itself."""
    return config if isinstance(config, NetworkConfig) else config.backbone


def write_header(config: Config, metadata: Metadata, *, source: str) -> dict[str, str]:
    """Return config and metadata as strings of a safetensors header, without `format`.

    Raises:
        WeightsError: the number of class names is not the number of classes, or JSON cannot hold the metadata.
    """
    row = row_of(config)
    assert row is not None
    _check_class_names(config, metadata, source)
    try:
        text = json.dumps(metadata.to_plain())
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{source}: the metadata cannot be written as JSON: {error}") from error
    return {row.key: json.dumps(config.to_plain()), "metadata": text}


def is_checkpoint_header(header: Mapping[str, str]) -> bool:
    """Return whether a safetensors header names a format of this package, in this version or a later one."""
    return header.get("format", "").startswith(FORMAT_FAMILY)


def is_described(header: Mapping[str, str]) -> bool:
    """Return whether a safetensors header of any format holds a config and metadata."""
    return "metadata" in header and any(row.key in header for row in NETWORKS)


def read_header(header: Mapping[str, str], source: str) -> tuple[Config, Metadata]:
    """Return the config and metadata in a header.

    Raises:
        WeightsError: the header describes no network, was written by a later version, or is invalid.
    """
    version = header.get("format", "")
    if is_checkpoint_header(header) and version != FORMAT:
        raise WeightsError(
            f"{source} has format {printable(version, limit=120)}, this iformer reads {FORMAT}; upgrade iformer"
        )
    if not is_described(header):
        raise WeightsError(f"{source} is a safetensors file whose header describes no network")
    try:
        metadata = Metadata.from_plain(_parse(header["metadata"], _MAX_METADATA))
        tasks = dict.fromkeys(repr(row.task) for row in NETWORKS)
        rows = [row for row in NETWORKS if row.task == metadata.task]
        check(bool(rows), metadata, "task", f"one of {', '.join(tasks)}")
        row = next((row for row in rows if row.key in header), None)
        if row is None:
            keys = " or ".join(f"'{row.key}'" for row in rows)
            raise ConfigError(f"it describes {rows[0].title} (metadata.task), but has no {keys}")
        config = row.config.from_plain(_parse(header[row.key], _MAX_CONFIG))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{source}: the description in its header is invalid: {one_line(error)}") from error
    _check_class_names(config, metadata, source)
    return config, metadata


def metadata_with(metadata: Metadata, **fields: Any) -> Metadata:
    """Return `metadata` with some fields changed and checked.

    Raises:
        ConfigError: a field is unknown or invalid.
    """
    known = sorted(Metadata.__dataclass_fields__)
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ConfigError(f"Metadata has no field {', '.join(unknown)}; its fields are {', '.join(known)}")
    return Metadata.from_plain({**vars(metadata), **fields})


def _parse(text: str, most: int) -> Any:
    """Parse JSON of a bounded length and depth."""
    if len(text) > most:
        raise ConfigError(f"it has {len(text):,} characters; expected at most {most:,}")
    parsed = json.loads(text)
    level = [parsed]
    for _ in range(_MAX_DEPTH):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return parsed
    raise ConfigError(f"it is nested more than {_MAX_DEPTH} levels deep")


def _check_class_names(config: Config, metadata: Metadata, source: str) -> None:
    names = len(metadata.class_names)
    if names and names != config.num_classes:
        raise WeightsError(
            f"{source}: there are {names} class names for {config.num_classes} classes; give one name a class"
        )
