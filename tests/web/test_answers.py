"""The words and bars that the page makes of a classifier's logits."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from typing import Any

import pytest
import torch

PAGE = resources.files("iformer.web") / "page" / "answers.js"
LOGITS = [2.0, -1.0, 0.5]


def classes(artifact: dict[str, Any]) -> list[tuple[str, float]]:
    """The answer of `classesOf` in answers.js for `LOGITS`, from Node."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    code = (
        f"import {{ classesOf }} from {json.dumps(str(PAGE))};"
        f"const outputs = {{ logits: {{ data: Float32Array.from({LOGITS}) }} }};"
        f"console.log(JSON.stringify(classesOf({json.dumps(artifact)}, outputs)));"
    )
    done = subprocess.run(["node", "--input-type=module"], input=code, capture_output=True, text=True, check=True)
    return [(found["name"], found["share"]) for found in json.loads(done.stdout)]


def test_one_label_has_a_softmax_and_several_labels_have_sigmoids() -> None:
    artifact = {"task": "classify", "class_names": ["a", "b", "c"], "postprocess": None}
    order = ["a", "c", "b"]
    softmax, sigmoid = torch.tensor(LOGITS).softmax(0).tolist(), torch.tensor(LOGITS).sigmoid().tolist()
    found = classes(artifact)
    assert [name for name, _ in found] == order
    assert dict(found) == pytest.approx(dict(zip("abc", softmax, strict=True)), abs=1e-6)
    several = classes({**artifact, "postprocess": {"activation": "sigmoid", "threshold": 0.3}})
    assert [name for name, _ in several] == order
    assert dict(several) == pytest.approx(dict(zip("abc", sigmoid, strict=True)), abs=1e-6)
