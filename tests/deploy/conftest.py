"""The tiny classifier with class names."""

from __future__ import annotations

import pytest

from iformer.models.classifier import Classifier
from tiny.networks import labelled_classifier


@pytest.fixture
def model() -> Classifier:
    """Return `labelled_classifier()`."""
    return labelled_classifier()
