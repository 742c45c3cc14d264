"""Subjects of a benchmark: iFormer networks, timm's networks, existing artifacts, and a matrix product.

Each subject is an artifact of one runtime. Networks are exported with a normalised float32 input; timm's networks
are converted without any rewrite of the graph. An existing artifact is timed as it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from iformer.config.preprocessing import Preprocessing
from iformer.dependencies import require
from iformer.deploy.artifact import artifact_bytes, read_record
from iformer.deploy.export import convert, export_artifact, resolve_options
from iformer.deploy.quiet import quiet
from iformer.deploy.runtimes.registry import RUNTIMES, Runtime
from iformer.deploy.spec import ExportSpec
from iformer.errors import UserError, counted, one_line
from iformer.models.complexity import count_macs
from iformer.models.factory import create_model
from iformer.models.weights.checkpoint import Weights
from iformer.models.weights.resolve import Artifact, Size, load, load_classifier, resolve
from iformer.tasks.export import exportable

MATRIX_PRODUCT = "matrix product"
"""Label of the matrix product, which shows the peak rate of a runtime on this machine."""

_PRODUCT_CHANNELS, _PRODUCT_SIDE = 1024, 32

DENSE_SIZES = ((320, 320), (416, 416), (512, 512), (640, 640))
"""Input sizes (height, width) in pixels at which detectors and segmenters are timed by default."""

TIMM_PREFIX = "timm/"
"""Prefix of the names of timm's networks."""


@dataclass(frozen=True, kw_only=True)
class BenchSubject:
    """An artifact to time."""

    label: str
    runtime: str
    artifact: Path
    precision: str
    size: tuple[int, int]
    """Height and width of the input in pixels."""
    batch: int
    """Number of images per call."""
    gmacs: float | None
    """Multiply-accumulate operations per image, in billions; None if unknown."""
    file_mb: float
    postprocess: bool = False
    """Whether the timed calls include postprocessing."""


def prepare_all(
    name: str, runtime: Runtime, folder: Path, *, sizes: Sequence[tuple[int, int]], label: str, **options: Any
) -> list[BenchSubject]:
    """Prepare a network at several sizes; see `prepare_subject` for the other arguments.

    Detectors and segmenters become two subjects at each size: the network alone, and with postprocessing.

    Args:
        sizes: heights and widths in pixels. If empty, `DENSE_SIZES` for detectors and segmenters, else the
            network's own size. An artifact has a fixed size, which must be among them.
        label: name in the table; the size is appended if there are several.
        options: further arguments of `prepare_subject`.

    Raises:
        UserError: an artifact has another size; see also `prepare_subject`.
    """
    found = resolve(name, entry=options.get("entry")) if not name.startswith(TIMM_PREFIX) else None
    if isinstance(found, Artifact):
        own = read_record(found.path).preprocessing.size
        if sizes and own not in sizes:
            raise UserError(
                f"{found.path} takes {own[0]} x {own[1]} pixels only; leave out --size, or add this size"
            )
        sizes = ()
    elif not sizes and isinstance(found, Weights) and found.task != "classify":
        sizes = DENSE_SIZES
    subjects = []
    wanted: Sequence[tuple[int, int] | None] = sizes or [None]
    for size in wanted:
        title = label if size is None or len(sizes) == 1 else f"{label} at {size[0]} x {size[1]}"
        subject = prepare_subject(name, runtime, folder, size=size, label=title, **options)
        subjects.append(subject)
        info = read_record(subject.artifact)
        if info.postprocess is not None and info.task != "classify":  # negligible for a classifier
            subjects.append(replace(subject, label=f"{title}, postprocessed", postprocess=True))
    return subjects


def prepare_subject(
    name: str,
    runtime: Runtime,
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    label: str | None = None,
    entry: str | None = None,
) -> BenchSubject:
    """Export a network to a runtime in its default precision, or use an artifact as it is.

    Args:
        name: an artifact, a checkpoint or the name of a network. `timm/NAME` is timm's network with random
            weights, because latency does not depend on the weights.
        runtime: the runtime; an artifact must have been exported for this runtime.
        folder: folder for exported artifacts.
        size: height and width of the input in pixels. None: the network's own.
        batch: number of images per call; an artifact must accept this number.
        label: name in the table. None: made from `name`.
        entry: which weights to take from the checkpoint of a training script that holds several.

    Raises:
        UserError: the name is unknown, the network cannot be exported to the runtime, or the artifact is for
            another runtime or number of images.
    """
    pixels = "" if size is None else f"_{size[0]}x{size[1]}"
    # the digest tells names with the same end apart
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    path = folder / f"{Path(name).name[-40:]}_{digest}{pixels}{runtime.suffix}"
    if name.startswith(TIMM_PREFIX):
        return _peer(name.removeprefix(TIMM_PREFIX), runtime, path, size, batch, label or name)
    found = resolve(name, entry=entry if os.path.isfile(name) else None)
    if isinstance(found, Artifact):
        return _artifact(found.path, runtime, batch, label)
    # a size name gets random weights instead of a download, because latency does not depend on the weights
    if isinstance(found, Size):
        model: Any = create_model(found).eval()
    else:
        model = load_classifier(found) if found.task == "classify" else load(found)
    network = exportable(model)
    raw = network.limits is None  # an R-CNN normalises its own input
    info = export_artifact(network, path, runtime.name, size=size, batch=batch, raw=raw)
    # the work of an R-CNN depends on the image
    macs = count_macs(network.model, info.preprocessing.size, in_chans=network.channels) if raw else None
    return _subject(label or Path(name).stem, path, macs, batch)


def prepare_matrix_product(runtime: Runtime, folder: Path) -> BenchSubject:
    """Export a matrix product of 1024 x 1024 x 1024 as a 1x1 convolution, like those in the networks."""
    network = nn.Conv2d(_PRODUCT_CHANNELS, _PRODUCT_CHANNELS, 1, bias=False)
    nn.init.normal_(network.weight, std=_PRODUCT_CHANNELS**-0.5)
    side = (_PRODUCT_SIDE, _PRODUCT_SIDE)
    return prepare_layer(network, MATRIX_PRODUCT, runtime, folder, size=side, channels=_PRODUCT_CHANNELS)


def prepare_layer(
    layer: nn.Module, label: str, runtime: Runtime, folder: Path, *, size: tuple[int, int], channels: int
) -> BenchSubject:
    """Export a layer, from 1 x C x H x W to a map of any shape, without any rewrite of the graph."""
    path = folder / f"{label.replace(' ', '_')}{runtime.suffix}"
    network = _Pooled(layer)
    _write_plain(network, label, runtime, path, size, channels=channels)
    return _subject(label, path, count_macs(network, size, in_chans=channels), 1)


class _Pooled(nn.Module):
    """A layer followed by the mean over its output map, because a classifier's output is B x K."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).mean((2, 3))
        return y


def _artifact(path: Path, runtime: Runtime, batch: int, label: str | None) -> BenchSubject:
    info = read_record(path)
    if info.batch not in (None, batch):
        raise UserError(f"{path} takes {counted(info.batch, 'image')} in one call, not {batch}; see --batch")
    if info.runtime != runtime.name:
        raise UserError(f"{path} is for {RUNTIMES[info.runtime].title}, not for {runtime.title}")
    return _subject(label or path.name, path, None, batch)


def timm_network(name: str, size: tuple[int, int]) -> nn.Module:
    """Return timm's network in evaluation mode, random weights, built for `size` if its input size is fixed."""
    import timm

    published: Any = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": size} if published.fixed_input_size else {}
    return timm.create_model(name, pretrained=False, **options).eval()


def merged(network: nn.Module) -> nn.Module:
    """Return timm's network as usual before export: branches merged as in RepVGG, batch norms folded."""
    from timm.utils.model import reparameterize_model

    smaller: Any = reparameterize_model(network)
    if hasattr(smaller, "fuse"):
        smaller.fuse()
    return cast("nn.Module", smaller)


def _peer(
    name: str, runtime: Runtime, path: Path, size: tuple[int, int] | None, batch: int, label: str
) -> BenchSubject:
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no network '{name}'; iformer bench takes {TIMM_PREFIX}NAME")
    published: Any = timm.get_pretrained_cfg(name)
    height, width = size or published.input_size[1:]
    size = (height, width)
    try:
        network = merged(timm_network(name, size))
        macs = count_macs(network, size)
    except (AssertionError, RuntimeError, ValueError) as error:  # such as attention biases of a fixed size
        raise UserError(
            f"{TIMM_PREFIX}{name} does not take {size[0]} x {size[1]} pixels ({one_line(error)}); leave out --size"
        ) from None
    _write_plain(network, name, runtime, path, size, channels=3, batch=batch)
    return _subject(label, path, macs, batch)


def _write_plain(
    network: nn.Module,
    name: str,
    runtime: Runtime,
    path: Path,
    size: tuple[int, int],
    *,
    channels: int,
    batch: int = 1,
) -> None:
    """Export a network with the runtime's converter, without any rewrite of the graph and without a comparison."""
    mean = (0.5,) * channels
    with torch.inference_mode():
        outputs_BK: Tensor = network.eval()(torch.zeros(1, channels, *size))
    resolve_options(runtime, batch=batch, precision=None)
    spec = ExportSpec(
        network=network.requires_grad_(False),
        name=name,
        num_classes=outputs_BK.shape[1],
        channels=channels,
        preprocessing=Preprocessing(size=size, mean=mean, std=mean),
        class_names=(),
        batch=batch,
        raw=True,
        precision=runtime.precisions[0],
        plain=True,
    )
    convert(runtime, spec, path, weights_sha256=hashlib.sha256(b"").hexdigest(), provenance={"weights": "random"})


def _subject(label: str, path: Path, macs: int | None, batch: int) -> BenchSubject:
    info = read_record(path)
    return BenchSubject(
        label=label,
        runtime=info.runtime,
        artifact=path,
        precision=info.precision,
        size=info.preprocessing.size,
        batch=batch,
        gmacs=None if macs is None else macs / 1e9,
        file_mb=artifact_bytes(path) / 1e6,
    )


def require_runtime(runtime: Runtime) -> None:
    """Raise `MissingDependencyError` if a runtime, its converter or psutil is not installed."""
    with quiet():
        runtime.require()
    require("psutil", extra="bench")
