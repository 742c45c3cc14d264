"""Fixtures that several folders of tests share. Builders of tiny networks, data and runs are in `tiny`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image

from iformer.config.network import NetworkConfig
from iformer.data.parallel import available_cores
from tiny.classification import make_images
from tiny.networks import ABLATIONS, ablated_config, tiny_config
from tiny.shapes import make_shapes

if TYPE_CHECKING:
    from iformer.models.light_detector import LightDetector

torch.set_num_threads(1)  # one core for each worker of pytest-xdist, and the same sums on every machine
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
if threading.current_thread() is threading.main_thread():
    # a shell's background jobs ignore SIGINT, those of nohup SIGHUP; so would the programs that tests interrupt
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

# a busy machine is no failure
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

MAX_WORKERS = 8
"""Each takes up to 2 GiB of memory."""


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one worker a core for the whole suite or a folder; 0, which means this process, for single files."""
    paths = [Path(argument.split("::")[0]) for argument in config.args]
    if all(path.is_file() for path in paths):
        config.option.dist = "no"
        return 0
    return min(available_cores(), MAX_WORKERS)


@pytest.fixture(params=list(ABLATIONS))
def make_ablated_config(request: pytest.FixtureRequest) -> Callable[..., NetworkConfig]:
    """`tiny_config` with each of `ABLATIONS` in turn."""
    return partial(ablated_config, request.param)


@pytest.fixture
def tiny_backbone_config() -> NetworkConfig:
    """The tiny network without a head, for detection and segmentation."""
    return tiny_config(num_classes=0)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training and 12 validation images of three classes. Read only."""
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 training images (three batches of 64) and 12 validation images of three classes. Read only."""
    return make_images(tmp_path_factory.mktemp("many"), 64)


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 4 validation images with discs and squares; the last of each split has none. Read only."""
    return make_shapes(tmp_path_factory.mktemp("shapes") / "shapes")


@pytest.fixture(scope="session")
def detector() -> LightDetector:
    """A tiny light detector. Read only."""
    from tiny.dense import light_detector  # deferred: torchvision's detectors take seconds to import

    return light_detector()


@pytest.fixture(scope="session")
def detector_file(detector: LightDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `detector`. Read only."""
    import iformer

    path = tmp_path_factory.mktemp("detector") / "light.safetensors"
    iformer.save(detector, path)
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven PNG and JPEG files of different sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    paths = []
    for index in range(7):
        small = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        path = folder / f"photo{index}.{'png' if index % 2 else 'jpg'}"
        Image.fromarray(small).resize((90 + 10 * index, 80), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def shared_exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tiny.dense.copy_of_export`, the same in all processes, with photographs to compare on."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-exports"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "photographs.lock"):
        generator = np.random.default_rng(0)
        for index in range(3):
            path = folder / f"photo{index}.jpg"
            if not path.exists():
                small = Image.fromarray(generator.integers(0, 255, (6, 8, 3), dtype=np.uint8))
                small.resize((90 + 10 * index, 80), Image.Resampling.BICUBIC).save(path)
    return folder
