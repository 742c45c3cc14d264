"""A fixture that the tests of several verbs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from iformer import save
from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.models.classifier import Classifier
from tiny.networks import randomize, tiny_config


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny classifier of five classes at 64 x 64, with a metric and its command."""
    model = Classifier(tiny_config())
    randomize(model)
    path = tmp_path / "tiny.safetensors"
    metadata = Metadata(
        class_names=("ant", "bee", "cat", "dog", "elk"), preprocessing=Preprocessing(size=(64, 64))
    )
    model.metadata = metadata
    save(model, path, metrics={"top1": 91.25}, provenance={"command": "iformer train"})
    return path
