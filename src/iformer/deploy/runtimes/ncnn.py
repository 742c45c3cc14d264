"""ncnn: a folder with `model.param` and `model.bin`, and running it on the CPU."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iformer.dependencies import require
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.spec import ExportSpec, Written, operation_counts
from iformer.errors import UserError

EXTRA = "ncnn"


def write(graph: ExportSpec, path: Path) -> Written:
    """Convert a network by pnnx; with fp16 the weights are stored in half precision.

    ncnn has no uint8 input: `Mat.from_pixels` makes floats of 0 to 255 of an image, which the graph normalises.
    Its files hold no metadata either; class names and preprocessing are in the record only.
    """
    pnnx = require("pnnx", extra=EXTRA)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        traced, example = Path(folder) / "model.pt", graph.example("NCHW", torch.float32)
        # torch's and pnnx's own writers of this file end the process where the disk is full
        serialized = io.BytesIO()
        trace = torch.jit.trace(graph.module("NCHW"), example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(trace, serialized)
        traced.write_bytes(serialized.getvalue())
        pnnx.convert(str(traced), example, fp16=graph.precision == "fp16")
        parts = {name: Path(folder) / f"model.ncnn.{name}" for name in ("param", "bin")}
        if not all(part.is_file() for part in parts.values()):
            raise UserError("the conversion for ncnn wrote nothing")
        path.mkdir()
        for name, part in parts.items():
            shutil.move(part, path / f"model.{name}")
    lines = (path / "model.param").read_text().splitlines()[2:]
    return Written(
        input_name="in0",
        output_name="out0",
        input_dtype="float32",
        input_layout="NCHW",
        graph=operation_counts(Counter(line.split()[0] for line in lines if not line.startswith("Input"))),
    )


def load(path: Path, *, threads: int = 0) -> NcnnRunner:
    """An artifact in ncnn on the CPU."""
    return NcnnRunner(path, threads=threads)


load_for_check = load


class NcnnRunner(ArtifactRunner):
    """An ncnn artifact on the CPU, computing in single precision."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load an artifact and its record.

        Raises:
            MissingDependencyError: ncnn is not installed.
            UserError: the artifact cannot be loaded.
        """
        self.ncnn = require("ncnn", extra=EXTRA)
        super().__init__(path)
        self.net = self.ncnn.Net()
        options = self.net.opt
        # half precision is on by default, whatever the weights are
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(options, name, False)
        if threads:
            options.num_threads = threads
        if self.net.load_param(str(path / "model.param")) or self.net.load_model(str(path / "model.bin")):
            raise UserError(f"{path} cannot be loaded by ncnn")

    def prepare(self, images_B3HW: Tensor) -> Tensor:
        """uint8 pixels as a caller's bitmap has them, B x H x W x 3; with `--raw` normalised floats."""
        if self.info.normalized_by == "caller":
            return super().prepare(images_B3HW)
        return images_B3HW.permute(0, 2, 3, 1).contiguous()

    def run(self, fed: Tensor) -> Any:
        """What a benchmark times: one image as `prepare` makes it to logits, 1 x K."""
        image = fed[0].numpy()
        extractor = self.net.create_extractor()
        extractor.input(self.info.input_name, self._mat(image))
        status, logits = extractor.extract(self.info.output_name)
        if status:
            raise UserError(f"{self.path}: ncnn stopped with status {status}")
        return np.array(logits)[None]

    def _mat(self, image: np.ndarray) -> Any:
        if image.dtype != np.uint8:
            return self.ncnn.Mat(image).clone()
        height, width, channels = image.shape
        kinds = self.ncnn.Mat.PixelType
        kind = kinds.PIXEL_GRAY if channels == 1 else kinds.PIXEL_RGB
        return self.ncnn.Mat.from_pixels(image, kind, width, height)
