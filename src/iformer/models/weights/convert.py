"""Conversion of weights between three formats: ours, timm's and the authors'."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize

from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import DISTILLED_SUFFIX, network_config
from iformer.errors import UserError, WeightsError, listed
from iformer.files import require_regular_file, write_bytes
from iformer.models.weights.checkpoint import FORMATS, Format, Weights, stored_tensors, write_checkpoint
from iformer.models.weights.dialects import POSSESSIVE, Foreign, to_authors, to_timm
from iformer.models.weights.header import backbone_config, metadata_with, write_header
from iformer.models.weights.pickles import PICKLE_SUFFIXES, with_description
from iformer.models.weights.read import for_channels
from iformer.models.weights.recognition import differences, variant_name
from iformer.models.weights.resolve import resolve_weights
from iformer.models.weights.safetensors_file import SUFFIX


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of `convert_file`."""

    source: str
    source_format: Format
    out: str
    format: Format
    model: str
    num_classes: int
    in_chans: int
    distillation: bool
    tensors: int
    bytes: int
    class_names_written: bool
    preprocessing: Preprocessing
    """How images are prepared for the network; `out` says it."""
    preprocessing_assumed: bool
    """Whether neither `source` nor the caller says how images are prepared, so that the defaults are assumed."""
    ignored: tuple[str, ...]
    """Keys of `source` that are not part of an iFormer."""


def convert_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Format,
    model: str | None = None,
    class_names: tuple[str, ...] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    half: bool = False,
    overwrite: bool = False,
    entry: str | None = None,
) -> Conversion:
    """Read weights in any format and write them in one of three: ours, timm's or the authors'.

    Config and metadata are written in every format: a file that is converted back is the network that it was.
    timm's and the authors' code reads the tensors alone.

    Args:
        source: a weight file, whose format and size are recognised, or any other name of a network with weights;
            see `iformer.models.weights.resolve`.
        out: `.safetensors` for ours; `.safetensors` or a pickle (`.pth`, `.pt`, `.bin`) for timm's; a pickle
            for the authors'. Written in one step.
        to: the format of `out`. Detectors and segmenters are written in ours only.
        model: the size that `source` must have, a name of `list_models`. None: any size.
        class_names: one name per class. None: those of `source`, if it has any.
        preprocessing: fields of `Preprocessing` that replace those of `source`, such as `{"size": [128, 128]}`.
        half: store kernels and matrices in half precision; otherwise no value is changed.
        overwrite: replace `out` if it exists.
        entry: which state dict of a training script's file to take, such as `model_ema`.

    Raises:
        UnknownNameError: `source` or `model` is not known.
        UserError: `to` is not a format.
        WeightsError: the weights cannot be read, are of another size than `model`, or are of a network that the
            target's code does not have; `out` exists or has a wrong suffix; or the number of class names is not
            the number of classes, or that of means the number of channels.
        ConfigError: a field of `preprocessing` is unknown or invalid.
        OutputError: `out` cannot be written.
    """
    if to not in FORMATS:
        raise UserError(f"unknown format '{to}'; expected one of {', '.join(FORMATS)}")
    expected = None if model is None else network_config(model)
    out = Path(out)
    _check_out(out, to, overwrite=overwrite)
    weights = resolve_weights(source, entry=entry)
    config = backbone_config(weights.config)
    name = variant_name(config) or config.name
    if expected is not None and (differences(expected, config) or expected.distillation != config.distillation):
        raise WeightsError(f"{weights.source} holds {name}, not {model}")
    metadata = weights.metadata if weights.format == "iformer" else _with_origin(weights)
    if class_names is not None:
        metadata = metadata_with(metadata, class_names=class_names)
    if preprocessing is not None:
        fields = Preprocessing.from_plain({**metadata.preprocessing.to_plain(), **preprocessing})
        metadata = for_channels(replace(metadata, preprocessing=fields), weights.config, str(source))
    dtype = torch.float16 if half else None
    if to == "iformer":
        write_checkpoint(out, weights.state_dict, weights.config, metadata, dtype=dtype)
    else:
        _write_foreign(out, weights, metadata, to, dtype)
    return Conversion(
        source=str(source),
        source_format=weights.format,
        out=str(out),
        format=to,
        model=name,
        num_classes=weights.config.num_classes,
        in_chans=config.in_chans,
        distillation=config.distillation,
        tensors=len(weights.state_dict),
        bytes=out.stat().st_size,
        class_names_written=bool(metadata.class_names),
        preprocessing=metadata.preprocessing,
        preprocessing_assumed=not weights.described and preprocessing is None,
        ignored=weights.ignored,
    )


_MAX_NAMES_BYTES = 2**24
"""Size of the largest file with class names that is read, in bytes."""


def read_class_names(file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the class names in a text file, one per line, in the order of the outputs.

    `imagenet` instead of a file means the classes of ImageNet-1k.

    Raises:
        WeightsError: the file cannot be read, a line between names is empty, or a name occurs twice.
    """
    if file == "imagenet":
        from iformer.models.weights.imagenet import imagenet_class_names  # deferred: it needs timm

        return imagenet_class_names()
    try:
        if (size := require_regular_file(file)) > _MAX_NAMES_BYTES:
            raise WeightsError(f"{file}: {size:,} bytes; expected a text file with one class name a line")
        lines = Path(file).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise WeightsError(f"class names cannot be read from {file}: {reason}") from error
    names = tuple(line.strip() for line in lines)
    empty = [number for number, name in enumerate(names, start=1) if not name]
    if empty or not names:
        raise WeightsError(f"{file}: line {empty[0] if empty else 1} is empty; give one class name a line")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise WeightsError(f"{file}: class names have to differ; more than once: {listed(twice)}")
    return names


def _check_out(out: Path, to: Format, *, overwrite: bool) -> None:
    suffixes = {"iformer": (SUFFIX,), "timm": (SUFFIX, *PICKLE_SUFFIXES), "authors": PICKLE_SUFFIXES}[to]
    if out.suffix not in suffixes:
        raise WeightsError(f"{out}: the name of a file in the format {to} has to end in {' or '.join(suffixes)}")
    if os.path.lexists(out) and not overwrite:
        raise WeightsError(f"{out} exists; pass --overwrite to replace it")


def _with_origin(weights: Weights) -> Metadata:
    with weights.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"source_file": weights.path.name, "source_format": weights.format, "source_sha256": digest}
    return replace(weights.metadata, provenance={**weights.metadata.provenance, **origin})


def _write_foreign(
    out: Path, weights: Weights, metadata: Metadata, to: Foreign, dtype: torch.dtype | None
) -> None:
    import timm  # deferred: it takes a second to import

    config = weights.config
    if not isinstance(config, NetworkConfig):
        raise WeightsError(f"{weights.source} holds {weights.row.title}; write it with --to iformer")
    size = variant_name(config)
    # the authors have the sizes of timm, and both build the distilled form of each
    if size is None or not timm.is_model(size.removesuffix(DISTILLED_SUFFIX)):
        raise WeightsError(
            f"{config.name} is none of the sizes that {POSSESSIVE[to]} code can build; keep it in our format"
        )
    converted = to_timm(weights.state_dict, config) if to == "timm" else to_authors(weights.state_dict, config)
    tensors = stored_tensors(converted, dtype)
    header = write_header(config, metadata, source=str(out))
    if out.suffix == SUFFIX:
        write_bytes(out, serialize(tensors, {"format": "pt", **header}))
        return
    buffer = io.BytesIO()
    described = with_description(tensors, header)
    torch.save(described if to == "timm" else {"model": described}, buffer)
    write_bytes(out, buffer.getvalue())
