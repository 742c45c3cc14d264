"""Detectors and segmenters through every runtime: the artifact is the network, and what is not is found out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from iformer.config.light_detector import LightDetectorConfig
from iformer.config.segmenter import LightSegmenterConfig
from iformer.config.variants import network_config
from iformer.deploy.artifact import (
    ArtifactInfo,
    artifact_hash,
    read_record,
    record_path,
    write_record,
)
from iformer.deploy.export import export_artifact
from iformer.deploy.parity import compare
from iformer.deploy.runner import runtime_module
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.deploy.spec import folded_for_export
from iformer.errors import UserError
from iformer.models.light_detector import LightDetector
from iformer.models.light_segmenter import LightSegmenter
from iformer.tasks.detection.export import ExportableDetector
from iformer.tasks.export import exportable
from iformer.tasks.segmentation.export import ExportableSegmenter
from tiny.dense import BUILDERS, SIZE, copy_of_export, light_detector, light_segmenter
from tiny.networks import randomize

FAST = {("detector", "onnx"), ("detector", "openvino"), ("detector", "ncnn"), ("segmenter", "onnx")}
"""The exports of the fast suite; each costs seconds."""
SWEEP = {*(("detector", name) for name in RUNTIMES), ("segmenter", "coreml"), ("semantic-fpn", "coreml")}
"""The exports of the sweep. The others, and what is tried on them, are in the full one."""


def pairs(slow: pytest.MarkDecorator, kinds: Sequence[str] = tuple(BUILDERS)) -> list[Any]:
    """Kinds of networks with each runtime; those of the sweep get the mark `slow`."""

    def mark(pair: tuple[str, str]) -> tuple[pytest.MarkDecorator, ...]:
        if pair in FAST:
            return ()
        return (slow,) if pair in SWEEP else (pytest.mark.full,)

    return [pytest.param(pair, marks=mark(pair), id="-".join(pair)) for pair in product(kinds, RUNTIMES)]


every_artifact = pytest.mark.parametrize("artifact", pairs(pytest.mark.sweep), indirect=True)
each_artifact = pytest.mark.parametrize("artifact", pairs(pytest.mark.full), indirect=True)
each_detector = pytest.mark.parametrize("artifact", pairs(pytest.mark.full, ["detector"]), indirect=True)


@pytest.fixture
def artifact(request: pytest.FixtureRequest, tmp_path: Path, shared_exports: Path) -> Path:
    """A fresh copy of a tiny network's fp32 artifact."""
    (tmp_path / "copy").mkdir()
    return copy_of_export(*request.param, shared_exports, tmp_path / "copy")


def check(path: Path, images: list[Path] | None = None) -> tuple[str, ...]:
    """What the parity check has to say against an artifact."""
    runner = runtime_module(read_record(path).runtime).RUNNER.for_check(path)
    return compare(exportable(BUILDERS[path.stem]()), runner, images or ()).failures


def reseal(path: Path, change: Callable[[ArtifactInfo], ArtifactInfo] = lambda info: info) -> None:
    """Change the record, and make it fit the file again."""
    info = ArtifactInfo.from_plain(json.loads(record_path(path).read_text()))
    write_record(replace(change(info), sha256=artifact_hash(path)), path)


def patch(path: Path, exchanges: list[tuple[bytes, bytes]]) -> int:
    """Replace bytes by others of the same length wherever they are, and make the record fit again."""
    found = 0
    for file in [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]:
        content = file.read_bytes()
        for old, new in exchanges:
            assert len(old) == len(new)
            if old != new and old in content:
                found += 1
                content = content.replace(old, new)
        file.write_bytes(content)
    reseal(path)
    return found


# ------------------------------------------------------------------------------------------ it is the network


@every_artifact
def test_the_artifact_is_the_network(artifact: Path) -> None:
    info, network = read_record(artifact), BUILDERS[artifact.stem]()
    parity = info.parity
    assert parity is not None
    assert parity["images"] == 3 + parity["generated_images"]
    assert parity["max_relative_error"] < 1e-4
    assert parity["failures"] == []
    assert info.class_names == network.metadata.class_names
    assert info.preprocessing.size == SIZE
    assert info.preprocessing.letterbox == (124, 116, 104)
    points = sum((SIZE[0] // stride) * (SIZE[1] // stride) for stride in (8, 16, 32))
    if artifact.stem == "detector":
        assert info.task == "detect"
        assert info.shapes == {"boxes": (points, 4), "scores": (points, 2)}
        assert info.postprocess == {"score_threshold": 0.001, "detections": 100, "nms_iou": 0.65}
        assert parity["compared_detections"] > 300
        assert parity["unmatched_detections"] == 0
        assert parity["min_iou"] > 0.999
    else:
        assert info.task == "segment"
        assert info.shapes == {"logits": (3, SIZE[0] // 4, SIZE[1] // 4)}
        assert info.postprocess == {"palette": [list(colour) for colour in network.config.colours]}
        assert parity["clear_points"] > 1000
        assert parity["point_agreement"] == 1.0


@pytest.mark.parametrize(
    "runtime",
    [pytest.param(name, marks=pytest.mark.sweep if name == "onnx" else pytest.mark.full) for name in RUNTIMES],
)
@pytest.mark.parametrize(
    "options", [{"objectness": True, "neck": "top-down"}, {"matching": "fixed", "neck": "none"}]
)
def test_other_scores_and_necks_in_every_runtime(runtime: str, options: dict[str, Any], tmp_path: Path) -> None:
    network = exportable(light_detector(**options))
    path = tmp_path / f"a{RUNTIMES[runtime].suffix}"
    parity = export_artifact(network, path, runtime, size=SIZE, precision="fp32").parity
    assert parity is not None
    assert parity["max_relative_error"] < 1e-4
    assert parity["compared_detections"] > 100
    assert parity["unmatched_detections"] == 0


def test_sides_are_multiples_of_the_coarsest_stride(tmp_path: Path) -> None:
    for network in (light_detector(), light_segmenter()):
        with pytest.raises(UserError, match="size is 64 x 100; the network takes sides that are multiples of 32"):
            export_artifact(exportable(network), tmp_path / "a.onnx", "onnx", size=(64, 100))
    assert not list(tmp_path.iterdir())


PHONES = list(
    product(
        RUNTIMES, (LightDetector, LightSegmenter), ("iformer_t", "iformer_m"), ((320, 320), (512, 512), (320, 512))
    )
)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "kind", "model", "size"),
    [
        pytest.param(*case, id=f"{case[0]}-{case[1].__name__}-{case[2]}-{case[3][0]}x{case[3][1]}")
        for case in PHONES
    ],
)
def test_the_family_at_the_sizes_of_phones(
    tmp_path: Path, name: str, kind: type[LightDetector] | type[LightSegmenter], model: str, size: tuple[int, int]
) -> None:
    """Outputs within 1e-3, and equal detections or classes on 20 photographs; the export raises otherwise."""
    RUNTIMES[name].require()
    backbone = network_config(model).with_options(num_classes=0)
    config = LightDetectorConfig if kind is LightDetector else LightSegmenterConfig
    torch.manual_seed(0)
    network = kind(config(backbone=backbone, num_classes=5, input_size=size))  # type: ignore[arg-type]
    randomize(network)
    generator = np.random.default_rng(0)
    photographs = []
    for index in range(20):
        small = Image.fromarray(generator.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        photographs.append(tmp_path / f"{index}.jpg")
        small.resize((200 + 40 * index, 400), Image.Resampling.BICUBIC).save(photographs[-1])
    path = tmp_path / f"net{RUNTIMES[name].suffix}"
    info = export_artifact(exportable(network.eval()), path, name, precision="fp32", images=photographs)
    assert info.parity is not None
    assert info.parity["max_relative_error"] < 1e-3
    assert info.parity["images"] == 23
    assert info.preprocessing.size == size


# --------------------------------------------------------------------------------------------- tampering


@each_detector
def test_a_swapped_class_name_is_caught(artifact: Path) -> None:
    """Inside the file, where the format has them, and in the record."""
    info = read_record(artifact)
    reseal(artifact, lambda info: replace(info, class_names=("square", "disc")))
    if info.runtime == "ncnn":  # its files hold no names; the record is compared with the network
        assert "its class names are not the network's" in check(artifact)
        return
    with pytest.raises(UserError):
        check(artifact)
    reseal(artifact, lambda _: info)
    assert patch(artifact, [(b"disc", b"xyzw"), (b"square", b"disc__"), (b"xyzw", b"squa")])
    with pytest.raises(UserError):
        check(artifact)


@each_artifact
@pytest.mark.parametrize("letterbox", [(0, 0, 0), None])
def test_another_letterbox_is_caught(artifact: Path, letterbox: Any) -> None:
    info = read_record(artifact)
    other = replace(info.preprocessing, letterbox=letterbox)
    reseal(artifact, lambda info: replace(info, preprocessing=other))
    if info.runtime == "ncnn":
        assert "its letterbox is not the network's" in check(artifact)
    else:
        with pytest.raises(UserError, match="preprocessing inside the file and in its record differ"):
            check(artifact)


@each_artifact
def test_other_thresholds_and_colours_are_caught(artifact: Path) -> None:
    info = read_record(artifact)
    changed = {"score_threshold": 0.9, "detections": 100, "nms_iou": None}
    if info.task == "segment":
        changed = {"palette": [[1, 2, 3]] * 3}
    reseal(artifact, lambda info: replace(info, postprocess=changed))
    if info.runtime == "ncnn":
        assert "its postprocessing is not the network's" in check(artifact)
    else:
        with pytest.raises(UserError, match="postprocess inside the file and in its record differ"):
            check(artifact)


@each_artifact
def test_red_for_blue_is_caught(artifact: Path) -> None:
    network = folded_for_export(exportable(BUILDERS[artifact.stem]()), SIZE)
    weight = next(value for name, value in network.named_parameters() if name.endswith("stem.conv1.weight")).data

    def stored(value: Tensor, order: tuple[int, ...]) -> bytes:
        return np.ascontiguousarray(value.numpy().transpose(order)).tobytes()

    orders = list(permutations(range(4)))
    assert patch(artifact, [(stored(weight, order), stored(weight.flip(1), order)) for order in orders])
    assert any("differ by" in failure for failure in check(artifact))


@pytest.mark.parametrize("artifact", [("detector", "onnx")], indirect=True, ids=["onnx"])
def test_wrong_points_are_caught(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of a converter that takes the constants of one level for those of all: scores are right."""
    runner = runtime_module("onnx").RUNNER(artifact)
    right = runner.run

    def wrong(fed: Tensor) -> list[Any]:
        boxes, scores = right(fed)
        return [boxes + 8 * (np.arange(boxes.shape[1]) < 96)[:, None], scores]

    monkeypatch.setattr(runner, "run", wrong)
    failures = compare(exportable(light_detector()), runner).failures
    assert any("boxes differ by" in failure for failure in failures)
    assert any("have no counterpart" in failure for failure in failures)
    assert not any("scores" in failure for failure in failures[:1])


# ------------------------------------------------------------------------------------- the comparison of answers


def detections(boxes: list[list[float]], scores: list[list[float]]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor([boxes]), "scores": torch.tensor([scores])}


BOXES = [[0.0, 0, 20, 20], [30.0, 30, 60, 50], [5.0, 5, 9, 9]]
SCORES = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.3]]


@pytest.mark.parametrize(
    ("boxes", "scores", "unmatched"),
    [
        (BOXES, SCORES, 0),
        ([BOXES[1], BOXES[0], BOXES[2]], [SCORES[1], SCORES[0], SCORES[2]], 0),  # another order
        (BOXES, [[0.9004, 0.1], *SCORES[1:]], 0),
        (BOXES, [[0.902, 0.1], *SCORES[1:]], 2),
        (BOXES, [[0.1, 0.9], *SCORES[1:]], 4),  # another class
        ([[0.0, 0, 20, 20.1], *BOXES[1:]], SCORES, 0),
        ([*BOXES[:2], [5.0, 5, 9, 9.1]], SCORES, 4),  # the same shift of a small box
    ],
)
def test_sets_of_detections(boxes: Any, scores: Any, unmatched: int) -> None:
    network = ExportableDetector(light_detector())
    found = network.agreement(detections(BOXES, SCORES), detections(boxes, scores), tolerance=1e-3)
    assert found.metrics["unmatched_detections"] == unmatched
    assert found.metrics["compared_detections"] == 12
    assert bool(found.failures) == bool(unmatched)


def test_detections_at_the_limit_need_no_counterpart() -> None:
    network = ExportableDetector(light_detector())
    one, other = (detections([BOXES[0]], [[0.9, score]]) for score in (0.0011, 0.0009))
    found = network.agreement(one, other, tolerance=1e-3)
    assert (found.metrics["compared_detections"], found.failures) == (2, ())


def test_classes_of_points() -> None:
    network = ExportableSegmenter(light_segmenter())
    logits = torch.tensor([[2.0, 1.0], [1.0, 1.0005], [0.0, 0.0]]).view(1, 3, 1, 2)
    same = network.agreement({"logits": logits}, {"logits": logits + 1e-4}, tolerance=1e-3)
    assert (same.failures, same.metrics["clear_points"]) == ((), 1)
    swapped = network.agreement({"logits": logits}, {"logits": logits[:, [1, 0, 2]]}, tolerance=1e-3)
    assert swapped.metrics["point_agreement"] == 0
    assert swapped.failures
