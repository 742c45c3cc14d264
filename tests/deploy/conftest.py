"""A tiny classifier with known classes, and photographs of a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.config.preprocessing import Preprocessing
from iformer.models.classifier import Classifier

CLASS_NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(make_tiny_config: Callable[..., NetworkConfig], randomize: Callable[..., None]) -> Classifier:
    torch.manual_seed(0)  # the head is initialised here; the same network in every test
    network = Classifier(make_tiny_config())
    randomize(network)
    network.metadata = Metadata(class_names=CLASS_NAMES, preprocessing=Preprocessing(size=(64, 64)))
    return network.eval()


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
