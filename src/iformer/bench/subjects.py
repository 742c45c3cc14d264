"""What is timed: networks of ours, timm's networks exported the plain way, artifacts, and a matrix product.

Everything becomes an artifact of one runtime, so that one runner times all of it the same way. Networks are
exported with a normalised float32 input, ours and others alike; an artifact of the user's runs as it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import list_models
from iformer.dependencies import require
from iformer.deploy.artifact import artifact_bytes, is_artifact, read_record
from iformer.deploy.export import check_wishes, convert, export_artifact, quiet
from iformer.deploy.runtimes.registry import RUNTIMES, Runtime
from iformer.deploy.spec import ExportSpec
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.models.complexity import count_macs
from iformer.models.factory import create_model
from iformer.models.weights.resolve import open_network

MATRIX_PRODUCT = "matrix product"
"""The label of the subject that shows what a runtime can reach on this machine."""

_PRODUCT_CHANNELS, _PRODUCT_SIDE = 1024, 32

TIMM_PREFIX = "timm/"
"""Before the name of a network of timm's."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An artifact to time."""

    label: str
    runtime: str
    artifact: Path
    precision: str
    size: tuple[int, int]
    """Height and width of the input."""
    batch: int
    """Images in one call."""
    gmacs: float | None
    """Multiply-accumulates of one image in 10^9; None: not known."""
    megabytes: float
    """Of the artifact on disk."""


def prepare(
    name: str,
    runtime: Runtime,
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    label: str | None = None,
) -> Subject:
    """Export a network to a runtime in its default precision, or take an artifact as it is.

    Args:
        name: an artifact, a checkpoint or the name of a network; `timm/NAME` for one of timm's, with random
            weights, on which latency does not depend.
        runtime: where it runs; an artifact has to be of it.
        folder: for what is exported.
        size: height and width of the input; None: the network's own.
        batch: images in one call; an artifact has to take so many.
        label: what the table calls it; None: its name.

    Raises:
        UserError: the name is not known, or the network cannot be exported to the runtime.
    """
    if is_artifact(name):
        return _artifact(Path(name), runtime, batch, label)
    path = folder / f"{name.replace('/', '_')}{'' if size is None else f'_{size[0]}x{size[1]}'}{runtime.suffix}"
    if name.startswith(TIMM_PREFIX):
        return _peer(name.removeprefix(TIMM_PREFIX), runtime, path, size, batch, label or name)
    # by name alone: random weights, on which latency does not depend, rather than a download
    model = create_model(name).eval() if name in list_models() else open_network(name)
    assert isinstance(model, Classifier)
    info = export_artifact(model, path, runtime.name, size=size, batch=batch, raw=True)
    macs = count_macs(model, info.preprocessing.size, in_chans=model.config.in_chans)
    return _subject(label or Path(name).stem, path, macs, batch)


def prepare_matrix_product(runtime: Runtime, folder: Path) -> Subject:
    """One product of 1024 x 1024 x 1024, as the 1x1 convolution that the networks consist of."""
    network = nn.Conv2d(_PRODUCT_CHANNELS, _PRODUCT_CHANNELS, 1, bias=False)
    nn.init.normal_(network.weight, std=_PRODUCT_CHANNELS**-0.5)
    side = (_PRODUCT_SIDE, _PRODUCT_SIDE)
    return prepare_layer(network, MATRIX_PRODUCT, runtime, folder, size=side, channels=_PRODUCT_CHANNELS)


def prepare_layer(
    layer: nn.Module, label: str, runtime: Runtime, folder: Path, *, size: tuple[int, int], channels: int
) -> Subject:
    """A single layer, 1 x C x H x W to any map, as the runtime's own converter writes it."""
    path = folder / f"{label.replace(' ', '_')}{runtime.suffix}"
    network = _Pooled(layer)
    _write_plain(network, label, runtime, path, size, channels=channels)
    return _subject(label, path, count_macs(network, size, in_chans=channels), 1)


class _Pooled(nn.Module):
    """A layer's mean, because an artifact of ours gives B x K."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x).mean((2, 3))
        return y


def _artifact(path: Path, runtime: Runtime, batch: int, label: str | None) -> Subject:
    info = read_record(path)
    if info.batch not in (None, batch):
        raise UserError(f"{path} takes {info.batch} images in one call, not {batch}; see --batch")
    if info.runtime != runtime.name:
        raise UserError(f"{path} is for {RUNTIMES[info.runtime].title}, not for {runtime.title}")
    return _subject(label or path.name, path, None, batch)


def _peer(
    name: str, runtime: Runtime, path: Path, size: tuple[int, int] | None, batch: int, label: str
) -> Subject:
    import timm
    from timm.utils.model import reparameterize_model

    if not timm.is_model(name):
        raise UserError(f"timm has no network '{name}'; iformer bench takes {TIMM_PREFIX}NAME")
    network: Any = timm.create_model(name, pretrained=False).eval()
    if size is None:
        size = network.pretrained_cfg["input_size"][1:]
    macs = count_macs(network, size)
    # what timm's users do before they export: RepVGG-like branches become one convolution, batch norms go in
    network = reparameterize_model(network)
    if hasattr(network, "fuse"):
        network.fuse()
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
    """The runtime's own conversion of a network as it comes, with nothing of ours in the graph."""
    mean = (0.5,) * channels
    check_wishes(runtime, batch=batch, precision=None)
    graph = ExportSpec(
        network=network.eval().requires_grad_(False),
        name=name,
        num_classes=1,
        channels=channels,
        preprocessing=Preprocessing(size=size, mean=mean, std=mean),
        class_names=(),
        batch=batch,
        raw=True,
        precision=runtime.precisions[0],
        plain=True,
    )
    nothing = hashlib.sha256(b"").hexdigest()
    convert(runtime, graph, path, weights_sha256=nothing, provenance={"weights": "random"})


def _subject(label: str, path: Path, macs: int | None, batch: int) -> Subject:
    info = read_record(path)
    return Subject(
        label=label,
        runtime=info.runtime,
        artifact=path,
        precision=info.precision,
        size=info.preprocessing.size,
        batch=batch,
        gmacs=None if macs is None else macs / 1e9,
        megabytes=artifact_bytes(path) / 1e6,
    )


def require_runtime(runtime: Runtime) -> None:
    """Raise `MissingDependencyError` unless a runtime, what converts to it and psutil are here."""
    with quiet():
        runtime.require()
    require("psutil", extra="bench")
