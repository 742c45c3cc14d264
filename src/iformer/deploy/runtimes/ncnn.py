"""ncnn: export to a folder with `model.param` and `model.bin`, and the runner on the CPU."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iformer.dependencies import require
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.spec import ExportSpec, operation_counts
from iformer.errors import UserError

EXTRA = "ncnn"
_FILES = ("model.param", "model.bin")


def write(spec: ExportSpec, path: Path) -> dict[str, Any]:
    """Convert a network with pnnx. The precision fp16 stores the weights in half precision.

    ncnn has no uint8 input: `Mat.from_pixels` converts an image to floats of 0 to 255, which the first layers of
    the artifact normalise. ncnn's files hold no metadata, so class names and preprocessing are in the record only.
    """
    pnnx = require("pnnx", extra=EXTRA)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        traced, example = Path(folder) / "model.pt", spec.example("NCHW", torch.float32)
        # torch's and pnnx's own writers of this file abort the process if the disk is full
        serialized = io.BytesIO()
        trace = torch.jit.trace(spec.module("NCHW"), example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(trace, serialized)
        traced.write_bytes(serialized.getvalue())
        pnnx.convert(str(traced), example, fp16=spec.precision == "fp16")
        written = [Path(folder) / name.replace("model.", "model.ncnn.") for name in _FILES]
        if not all(file.is_file() for file in written):
            raise UserError("the conversion for ncnn wrote nothing")
        path.mkdir()
        for name, file in zip(_FILES, written, strict=True):
            shutil.move(file, path / name)
    lines = (path / "model.param").read_text().splitlines()[2:]
    return operation_counts(Counter(line.split()[0] for line in lines if not line.startswith("Input")))


class NcnnRunner(ArtifactRunner):
    """Runner of ncnn artifacts on the CPU, in single precision."""

    def open(self, threads: int) -> None:
        """Load `model.param` and `model.bin`."""
        self.ncnn = require("ncnn", extra=EXTRA)
        self.net = self.ncnn.Net()
        options = self.net.opt
        # ncnn computes in half precision by default, even with fp32 weights
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(options, name, False)
        if threads:
            options.num_threads = threads
        parameters, weights = (str(self.path / name) for name in _FILES)
        if self.net.load_param(parameters) or self.net.load_model(weights):
            raise UserError(f"{self.path} cannot be loaded by ncnn")

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """Return the images as bitmaps, uint8 B x H x W x C, or for `--raw` artifacts as normalised floats."""
        if self.info.normalized_by == "caller":
            return super().prepare(images_BCHW)
        return images_BCHW.permute(0, 2, 3, 1).contiguous()

    def run(self, fed: Tensor) -> Sequence[Any]:
        """Run the network once; see `ArtifactRunner.run`."""
        extractor = self.net.create_extractor()
        extractor.input(self.info.input_name, self._mat(fed[0].numpy()))
        found = []
        for name in self.info.outputs.values():
            status, output = extractor.extract(name)
            if status:
                raise UserError(f"{self.path}: ncnn stopped with status {status}")
            found.append(np.array(output)[None])
        return found

    def _mat(self, image: np.ndarray) -> Any:
        if image.dtype != np.uint8:
            return self.ncnn.Mat(image).clone()
        height, width, channels = image.shape
        types = self.ncnn.Mat.PixelType
        kinds = {1: types.PIXEL_GRAY, 3: types.PIXEL_RGB, 4: types.PIXEL_RGBA}
        if channels not in kinds:
            channels_first = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
            return self.ncnn.Mat(channels_first).clone()  # a Mat does not keep its array alive
        return self.ncnn.Mat.from_pixels(image, kinds[channels], width, height)


RUNNER = NcnnRunner
