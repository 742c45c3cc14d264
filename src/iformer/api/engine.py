"""What computes a network's answers on a CPU: PyTorch, or another runtime through a temporary export."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from iformer.deploy.export import export_artifact
from iformer.deploy.quiet import quiet
from iformer.deploy.runner import ArtifactRunner, open_artifact
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import MissingDependencyError, UserError
from iformer.models.classifier import Classifier
from iformer.tasks.export import exportable
from iformer.tasks.interface import Warn
from iformer.tasks.subject import Subject

ENGINES = ("torch", "onnx", "openvino")
"""PyTorch, and the runtimes that answer faster than it on some CPUs and export a network in seconds."""

IMAGES_PER_THREAD = 4_000
"""Images for each of torch's threads from which "auto" takes ONNX Runtime. With one thread an export, of 7 to
12 s, paid from 1,200 images on with iFormer-M and from 3,800 with iFormer-T. More threads shorten the rest."""


def with_engine(subject: Subject, engine: str, *, warn: Warn, images: int = 0, explain: bool = False) -> Subject:
    """Return a subject that computes the same answers with `engine`.

    A network is exported into a temporary folder, which is removed when its runtime has loaded it.

    Args:
        subject: a network in eval mode, or an artifact.
        engine: one of `ENGINES`, or "auto": ONNX Runtime for a classifier on the CPU if it is installed and there
            are enough `images`, else what the subject runs in anyway.
        warn: called with a note if the network is exported.
        images: number of images; 0 if unknown.
        explain: whether the answers include the network's attention, which exports do not have.

    Raises:
        UserError: the engine is unknown, or does not fit the subject, its device or `explain`; or the export
            failed.
        MissingDependencyError: the engine is not installed.
    """
    if engine not in ("auto", *ENGINES):
        raise UserError(f"engine is '{engine}'; expected auto, {', '.join(ENGINES)}")
    network = subject.model
    if engine == "auto":
        engine = "onnx" if not explain and _pays(subject, images) else "torch"
    elif isinstance(network, ArtifactRunner):
        raise UserError(f"--engine is '{engine}'; an artifact runs in its own runtime, leave it out")
    if engine == "torch":
        return subject
    # deferred: they import torchvision, which takes a second
    from iformer.models.light_detector import LightDetector
    from iformer.models.light_segmenter import LightSegmenter

    if subject.device.type != "cpu":
        raise UserError(f"--engine is '{engine}', which runs on the CPU; add --device cpu, or leave it out")
    if explain:
        raise UserError(f"--engine is '{engine}', which does not show the attention; leave it or --explain out")
    if not isinstance(network, Classifier | LightDetector | LightSegmenter):
        raise UserError(
            f"--engine is '{engine}'; exports of {type(network).__name__} see images of one size and answer "
            "differently, leave it out"
        )
    row = RUNTIMES[engine]
    with quiet():
        row.require()
    warn([f"{row.title} computes the answers, after a temporary export of some seconds (--engine {engine})"])
    try:
        # Windows keeps files that a runtime has mapped into memory
        with tempfile.TemporaryDirectory(prefix="iformer-", ignore_cleanup_errors=True) as folder, quiet():
            path = Path(folder) / f"network{row.suffix}"
            export_artifact(exportable(network), path, engine, precision="fp32")
            return replace(subject, model=open_artifact(path, threads=torch.get_num_threads()))
    except (UserError, OSError) as error:
        raise UserError(f"no export for --engine {engine}: {error}; --engine torch needs none") from error


def _pays(subject: Subject, images: int) -> bool:
    """Return whether the time of an export is less than the time that ONNX Runtime saves."""
    if not isinstance(subject.model, Classifier) or subject.model.is_folded or subject.device.type != "cpu":
        return False
    if images < IMAGES_PER_THREAD * torch.get_num_threads():
        return False
    try:
        with quiet():
            RUNTIMES["onnx"].require()
    except MissingDependencyError:
        return False
    return True
