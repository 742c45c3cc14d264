"""The words and bars that the page makes of a classifier's logits, and its comparison of outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from typing import Any

import pytest
import torch

from iformer.deploy.parity import LEAST_SCALE, error_scale
from iformer.models.detections import SelectionRule
from iformer.models.letterbox import letterbox

PAGE = resources.files("iformer.web") / "page"
LOGITS = [2.0, -1.0, 0.5]


def from_node(module: str, name: str, call: str) -> Any:
    """The value of an expression with the function `name` of a module of the page, from Node."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    code = f"import {{ {name} }} from {json.dumps(str(PAGE / module))}; console.log(JSON.stringify({call}));"
    done = subprocess.run(["node", "--input-type=module"], input=code, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def classes(artifact: dict[str, Any]) -> list[tuple[str, float]]:
    """The answer of `classesOf` in answers.js for `LOGITS`, from Node."""
    outputs = f"{{ logits: {{ data: Float32Array.from({LOGITS}) }} }}"
    found = from_node("answers.js", "classesOf", f"classesOf({json.dumps(artifact)}, {outputs})")
    return [(row["name"], row["share"]) for row in found]


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


@pytest.mark.parametrize(
    ("name", "expected", "found", "error"),
    [
        ("boxes", [0.0, 200.0], [0.0, 200.02], 1e-4),
        ("scores", [0.0, 0.5], [0.0, 0.50005], 1e-4),
        ("scores", [0.0, 1e-4], [0.0, 1.002e-4], 2e-5),  # a detector that sees nothing
        ("scores", [0.0, 1e-3], [1e-3, 0.0], 0.1),
    ],
)
def test_errors_of_scores_near_zero_are_shares_of_one_percent(
    name: str, expected: list[float], found: list[float], error: float
) -> None:
    scales = json.dumps(LEAST_SCALE)
    call = f"compare({json.dumps({name: expected})}, {json.dumps({name: found})}, {scales})"
    assert from_node("engine.js", "compare", call) == pytest.approx(error)
    largest = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    assert largest / error_scale(name, max(expected)) == pytest.approx(error)


@pytest.mark.parametrize("overlap", [None, 0.5])
def test_the_page_selects_the_detections_that_python_selects(overlap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    height, width, size = 40, 160, (64, 64)
    corners = torch.rand(60, 2, generator=generator) * 70 - 5
    boxes = torch.cat([corners, corners + 4 + 20 * torch.rand(60, 2, generator=generator)], 1)
    scores = torch.rand(60, 2, generator=generator)
    place = letterbox(torch.zeros(3, height, width, dtype=torch.uint8), size, fill=(0, 0, 0))
    rule = SelectionRule(score_threshold=0.001, detections=30, nms_iou=overlap)
    expected = rule.select(place.restore(boxes), scores, min_score=0.5)
    in_padding = boxes[:, 1] >= place.content[0]
    assert (in_padding[:, None] & (scores > 0.5)).sum() > 20
    assert len(expected["scores"]) > 5
    assert (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all()
    artifact = {
        "class_names": ["a", "b"], "num_classes": 2,
        "postprocess": {"score_threshold": 0.001, "detections": 30, "nms_iou": overlap},
    }  # fmt: skip
    arrays = ", ".join(
        f"{name}: {{ data: Float32Array.from({values.flatten().tolist()}) }}"
        for name, values in (("boxes", boxes), ("scores", scores))
    )
    where = json.dumps({"resizedWidth": place.content[1], "resizedHeight": place.content[0]})
    call = f"detectionsOf({json.dumps(artifact)}, {{ {arrays} }}, {where}, {width}, {height})"
    found = from_node("answers.js", "detectionsOf", call)
    assert [row["name"] for row in found] == ["ab"[label] for label in expected["labels"]]
    torch.testing.assert_close(torch.tensor([row["share"] for row in found]), expected["scores"])
    torch.testing.assert_close(torch.tensor([row["box"] for row in found]), expected["boxes"])
