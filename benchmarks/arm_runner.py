"""Run one artifact on images with NumPy and the artifact's runtime only; `arm.py` starts it.

    python arm_runner.py onnx|litert|ncnn ARTIFACT IMAGES.npy LOGITS.npy [--seconds N]

IMAGES.npy holds uint8 N x H x W x 3. LOGITS.npy gets float32 M x K: all N images, or those that `--seconds` allow.
The last line of the output is a JSON object that describes the machine and the runtime.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = {"onnx": "onnxruntime", "litert": "ai-edge-litert", "ncnn": "ncnn"}
"""The package of each runtime."""


def open_onnx(artifact: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return an ONNX artifact as a function of one image, on one thread."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["logits"], {"image": image[None]})[0][0]


def open_litert(artifact: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a LiteRT artifact as a function of one image, on one thread."""
    interpreter: Any = importlib.import_module("ai_edge_litert.interpreter")
    runner = interpreter.Interpreter(str(artifact), num_threads=1).get_signature_runner()
    return lambda image: runner(image=image[None])["logits"][0]


def open_ncnn(artifact: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return an ncnn artifact as a function of one image, in single precision on one thread."""
    ncnn: Any = importlib.import_module("ncnn")
    network = ncnn.Net()
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, name, False)
    network.opt.num_threads = 1
    if network.load_param(str(artifact / "model.param")) or network.load_model(str(artifact / "model.bin")):
        raise SystemExit(f"{artifact} cannot be loaded by ncnn")

    def run(image: np.ndarray) -> np.ndarray:
        height, width, _ = image.shape
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat.from_pixels(image, ncnn.Mat.PixelType.PIXEL_RGB, width, height))
        _, logits = extractor.extract("out0")
        return np.array(logits)

    return run


OPENERS = {"onnx": open_onnx, "litert": open_litert, "ncnn": open_ncnn}


def main() -> None:
    """Run the images and write the logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runtime", choices=list(OPENERS))
    parser.add_argument("artifact", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("logits", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    options = parser.parse_args()
    run = OPENERS[options.runtime](options.artifact)
    end = time.monotonic() + options.seconds
    found = []
    for image in np.load(options.images, mmap_mode="r"):
        found.append(np.array(run(np.ascontiguousarray(image)), dtype=np.float32))
        if time.monotonic() > end:
            break
    np.save(options.logits, np.stack(found))
    package = PACKAGES[options.runtime]
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions[package] = importlib.metadata.version(package)
    print(json.dumps({"machine": platform.machine(), "images": len(found), "versions": versions}))


if __name__ == "__main__":
    main()
