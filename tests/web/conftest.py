"""Tiny artifacts for the page, and a browser to open it in.

The tests in a browser need Chromium and an npm installation with the packages of `iformer.web.assets`, in
`node_modules` or in the folder that IFORMER_WEB_ASSETS names. Without them they are skipped, unless
IFORMER_BROWSER_TESTS=required, which `.ci/run` sets: then they fail.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iformer.deploy.export import export_artifact
from iformer.deploy.quantize import Quantization
from iformer.errors import UserError
from iformer.tasks.export import exportable
from iformer.web.assets import PACKAGES, load_assets
from iformer.web.browser import FLAGS, find_browser, sandbox_flags
from tiny.networks import labelled_classifier
from tiny.pages import ROOT

ARTIFACTS = ROOT / "tests/compatibility/data/artifacts"
"""Exports of an earlier version: nothing has to be converted for most of these tests."""

REQUIRED = os.environ.get("IFORMER_BROWSER_TESTS") == "required"


def missing(reason: str) -> Any:
    """Skip the test, or fail where browsers are required."""
    return pytest.fail(reason) if REQUIRED else pytest.skip(reason)


@pytest.fixture
def tiny_onnx() -> Path:
    """A tiny classifier for ONNX Runtime. Read only."""
    pytest.importorskip("onnxruntime")
    return ARTIFACTS / "classify.onnx"


@pytest.fixture
def tiny_litert() -> Path:
    """The same classifier for LiteRT. Read only."""
    pytest.importorskip("ai_edge_litert")
    return ARTIFACTS / "classify.tflite"


@pytest.fixture(scope="session")
def new_litert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier as it is exported to LiteRT now, which WebGPU takes whole. Read only."""
    pytest.importorskip("litert_torch")
    path = tmp_path_factory.mktemp("litert") / "tiny.tflite"
    export_artifact(exportable(labelled_classifier()), path, "litert")
    return path


@pytest.fixture(scope="session")
def tiny_int8(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny classifier in INT8 for ONNX Runtime and LiteRT, calibrated on noise. Read only."""
    pytest.importorskip("ai_edge_quantizer")
    folder = tmp_path_factory.mktemp("int8")
    generator = np.random.default_rng(0)
    images = []
    for index in range(8):
        images.append(folder / f"{index}.png")
        Image.fromarray(generator.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(images[-1])
    quantization = Quantization(images=images, measure=lambda forward: {"top1": 100.0})
    paths = [folder / "tiny_int8.onnx", folder / "tiny_int8.tflite"]
    for path, runtime in zip(paths, ("onnx", "litert"), strict=True):
        network = exportable(labelled_classifier())
        export_artifact(network, path, runtime, precision="int8", quantization=quantization)
    return paths


@pytest.fixture(scope="session")
def assets() -> str:
    """The folder of an npm installation with the browser's runtimes."""
    folder = os.environ.get("IFORMER_WEB_ASSETS", str(ROOT))
    try:
        for runtime in PACKAGES:
            load_assets(runtime, folder)
    except UserError as error:
        missing(str(error))
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium with a camera that shows a green disc, driven by playwright."""
    try:
        program = find_browser("auto")
        playwright = importlib.import_module("playwright.sync_api")
    except (UserError, ImportError) as error:
        missing(str(error))
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(
            executable_path=program, args=[*FLAGS, *sandbox_flags(), *camera], chromium_sandbox=False
        )
        yield launched
        launched.close()
