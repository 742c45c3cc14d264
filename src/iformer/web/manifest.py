"""The files of the page, identical for the server and for static hosts, and the manifest of its networks."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image, read_input
from iformer.data.transforms import eval_transform
from iformer.deploy.artifact import ArtifactInfo, artifact_bytes, read_record
from iformer.deploy.export import export_artifact
from iformer.deploy.exportable import Outputs
from iformer.deploy.parity import FP16_TOLERANCE, LEAST_SCALE, generated_images
from iformer.deploy.quiet import quiet
from iformer.deploy.runner import open_artifact
from iformer.deploy.runtimes.registry import QUANTIZED, RUNTIMES, find_runtime
from iformer.errors import UserError, printable
from iformer.models.weights.resolve import Artifact, load, resolve
from iformer.tasks.export import exportable
from iformer.web.assets import PACKAGES, load_assets, runtime_folder
from iformer.web.headers import CONTENT_SECURITY_POLICY
from iformer.web.server import Resource

TOLERANCE = 1e-4
"""Allowed error of an fp32 output in a browser, as a share of the output's largest absolute value."""

PAGE_FORMAT = "iformer-page-1"
"""Value of `format` in the manifest `networks.json`."""

REFERENCE_PICTURES = 3
_LONGEST_SIDE = 1024
_PREPROCESSING = ("size", "crop_pct", "interpolation", "mean", "std", "letterbox")
_COMPARED_VALUES = 20_000

_ELPV_LICENCE = "CC BY-NC-SA 4.0, that of the ELPV photographs"


@dataclass(frozen=True, kw_only=True)
class PageArtifact:
    """An artifact for the page, with the reference outputs against which a browser's outputs are checked."""

    label: str
    path: Path
    info: ArtifactInfo
    outputs: tuple[Outputs, ...]
    """Outputs for each reference picture, computed on this machine in the artifact's own runtime."""

    @property
    def strides(self) -> dict[str, int]:
        """Sampling stride n of each output: every n-th value is compared, at most 20,000 values."""
        return {name: -(-output.numel() // _COMPARED_VALUES) for name, output in self.outputs[0].items()}

    def sampled(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the compared values of each output as a flat float32 tensor; see `strides`."""
        return {name: outputs[name].float().flatten()[::stride] for name, stride in self.strides.items()}

    @property
    def tolerance(self) -> float | None:
        """Allowed relative error of an output; None if quantized, where only the top class must agree."""
        if self.info.precision in QUANTIZED:
            return None
        return FP16_TOLERANCE if self.info.precision == "fp16" else TOLERANCE


def prepare_artifacts(name: str, runtimes: Sequence[str], folder: Path, *, entry: str | None = None) -> list[Path]:
    """Return artifacts that run in a browser: `name` itself if it is an artifact, else exports of the network.

    Args:
        name: an artifact, or any name of a network.
        runtimes: names of the runtimes to export a network to.
        folder: folder for the exports.
        entry: which weights to take if a training script's checkpoint holds several.

    Raises:
        UserError: the name or a runtime is unknown, or the network cannot be exported or cannot run in a browser.
        MissingDependencyError: a package that the export needs is not installed.
    """
    found = resolve(name, entry=entry)
    if isinstance(found, Artifact):
        return [found.path]
    network = exportable(load(found))
    if network.limits is not None:
        raise UserError(f"{name} does not run in a browser; train a light detector (--detector light)")
    _check_channels(name, network.channels)
    for runtime in runtimes:  # report a missing package before any work is done
        find_runtime(runtime).require()
    paths = []
    for runtime in runtimes:
        paths.append(folder / f"network{find_runtime(runtime).suffix}")
        export_artifact(network, paths[-1], runtime)
    return paths


def _check_channels(name: str | Path, channels: int) -> None:
    if channels not in (1, 3):
        raise UserError(f"{name} takes {channels} channels; a camera's pictures have 1 or 3")


def read_page_artifact(path: Path, pictures: Sequence[bytes], *, label: str | None = None) -> PageArtifact:
    """Read an artifact and compute its outputs for the reference pictures.

    Raises:
        UserError: the artifact cannot run in a browser, or cannot run on this machine.
    """
    info = read_record(path)
    if info.runtime not in PACKAGES:
        titles = " and ".join(RUNTIMES[name].title for name in PACKAGES)
        raise UserError(f"{path} is for {find_runtime(info.runtime).title}; browsers run artifacts of {titles}")
    _check_channels(label or path, len(info.preprocessing.mean))
    if info.batch not in (None, 1):
        raise UserError(f"{path} takes {info.batch} images in one call; the page gives one, export with --batch 1")
    with quiet():
        runner = open_artifact(path, threads=1)
        transform = eval_transform(info.preprocessing)
        images = [transform(read_input(picture, info.preprocessing)) for picture in pictures]
        outputs = tuple(runner(image[None]) for image in images)
    return PageArtifact(label=label or path.name, path=path, info=info, outputs=outputs)


def reference_pictures(paths: Sequence[Path], preprocessing: Preprocessing) -> list[bytes]:
    """Return reference pictures as PNG files: the first 3 of `paths`, or generated patterns if `paths` is empty.

    Photographs are reduced to at most 1024 pixels per side.

    Raises:
        DataError: a photograph cannot be read.
    """
    if not paths:
        return [picture for picture in generated_images(preprocessing) if isinstance(picture, bytes)]
    encoded = []
    for path in paths[:REFERENCE_PICTURES]:
        image = read_image(path)
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        file = io.BytesIO()
        image.save(file, format="PNG")
        encoded.append(file.getvalue())
    return encoded


def network_licence(info: ArtifactInfo, given: str | None) -> str:
    """Return the licence of an artifact's weights.

    It is `given` if that is not empty, else the licence of the ELPV data for weights trained on ELPV, else "not
    stated".
    """
    data = info.provenance.get("data")
    if given:
        return given
    if isinstance(data, dict) and data.get("name") == "elpv":
        return _ELPV_LICENCE
    return "not stated"


def page_files(
    artifacts: Sequence[PageArtifact],
    pictures: Sequence[bytes],
    *,
    title: str,
    licence: str,
    assets: str | None,
    bench: dict[str, Any] | None = None,
) -> dict[str, Resource]:
    """Return all files of the page by path. The path of the page itself is `""`.

    Args:
        artifacts: the networks that the page runs.
        pictures: the reference pictures.
        title: the page's title.
        licence: the licence of the networks.
        assets: source of the runtimes' files; see `iformer.web.assets.load_assets`.
        bench: settings of a benchmark; None for the demo.

    Raises:
        UserError: files of the runtimes are missing or differ from the tested files.
    """
    files = own_files()
    runtimes = sorted({artifact.info.runtime for artifact in artifacts})
    for runtime in runtimes:
        for name, content in load_assets(runtime, assets).items():
            files[runtime_folder(runtime) + name] = Resource(content=content, public=True, lasting=True)
    for index, picture in enumerate(pictures):
        files[_picture_file(index)] = Resource(content=picture)
    for index, artifact in enumerate(artifacts):
        files[_network_file(index, artifact)] = Resource(content=artifact.path)
    manifest = {
        "format": PAGE_FORMAT,
        "title": printable(title, limit=100),
        "licence": printable(licence, limit=300),
        "runtimes": {runtime: {"path": runtime_folder(runtime)} for runtime in runtimes},
        "artifacts": [_described(index, artifact, len(pictures)) for index, artifact in enumerate(artifacts)],
        "bench": bench,
    }
    files["networks.json"] = Resource(content=json.dumps(manifest, allow_nan=False).encode())
    return files


def own_files() -> dict[str, Resource]:
    """Return the page (under the path `""`) and its scripts, styles and pictures, by path."""
    files = {}
    for file in sorted(Path(str(resources.files("iformer.web"))).joinpath("page").iterdir()):
        content = file.read_bytes()
        if file.name == "index.html":
            content = content.replace(b"{policy}", CONTENT_SECURITY_POLICY.encode())
        files["" if file.name == "index.html" else file.name] = Resource(content=content, public=True)
    return files


def _described(index: int, artifact: PageArtifact, pictures: int) -> dict[str, Any]:
    info = artifact.info
    preprocessing = info.preprocessing.to_plain()
    return {
        "label": printable(artifact.label, limit=100),
        "network": printable(info.network, limit=100),
        "file": _network_file(index, artifact),
        "bytes": artifact_bytes(artifact.path),
        "sha256": info.sha256,
        "runtime": info.runtime,
        "precision": info.precision,
        "task": info.task,
        "num_classes": info.num_classes,
        "class_names": [printable(name, limit=200) for name in info.class_names],
        "input": {
            "name": info.input_name,
            "dtype": info.input_dtype,
            "layout": info.input_layout,
            "normalized_by": info.normalized_by,
        },
        "outputs": info.outputs,
        "postprocess": info.postprocess,
        "preprocessing": {key: preprocessing[key] for key in _PREPROCESSING},
        "check": {
            "photographs": [_picture_file(number) for number in range(pictures)],
            "outputs": [_plain(artifact.sampled(outputs)) for outputs in artifact.outputs],
            "strides": artifact.strides,
            "tolerance": artifact.tolerance,
            "least_scale": {name: LEAST_SCALE[name] for name in info.outputs if name in LEAST_SCALE},
        },
    }


def _plain(outputs: Outputs) -> dict[str, list[float]]:
    return {name: output.tolist() for name, output in outputs.items()}


def _network_file(index: int, artifact: PageArtifact) -> str:
    return f"networks/{index}{find_runtime(artifact.info.runtime).suffix}"


def _picture_file(index: int) -> str:
    return f"pictures/{index}.png"
