"""Images on which the outputs of a detector or segmenter overflow: an error of `predict` and `eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import iformer
from iformer.cli.main import main
from iformer.deploy.runtimes.onnx import OnnxRunner
from iformer.errors import DataError
from iformer.models.finite import NOT_FINITE
from iformer.tasks.detection.inference import NetworkDetector
from tiny.dense import copy_of_export, light_detector, light_segmenter, rcnn, semantic_fpn

NETWORKS: dict[str, Callable[[], Any]] = {
    "light detector": light_detector,
    "Mask R-CNN": rcnn,
    "light segmenter": light_segmenter,
    "Semantic FPN": semantic_fpn,
}


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """A dark image, one that is white on the right, and a dark one."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, value in zip(paths, (20, 255, 60), strict=True):
        pixels = np.full((90, 160, 3), 20, np.uint8)
        pixels[:, 120:] = value
        Image.fromarray(pixels).save(path)
    return paths


def overflow_on_white(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Multiply the white pixels of normalised images by a large number, which stays finite at first."""
    return (torch.where(inputs[0] > 2, inputs[0] * 1e38, inputs[0]),)


@pytest.mark.parametrize("tile", [None, 64])
@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_image_that_overflows_fails(name: str, tile: int | None, images: list[Path]) -> None:
    network = NETWORKS[name]()
    network.pyramid.register_forward_pre_hook(overflow_on_white)
    first, second, third = iformer.predict(network, images, device="cpu", tile=tile)
    assert second.error == NOT_FINITE
    assert first.error is None
    assert third.error is None
    assert first.record.keys() > second.record.keys() - {"error"}


@pytest.mark.parametrize(
    "layer",
    [
        "rpn.head.cls_logits",
        "rpn.head.bbox_pred",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    ],
)
def test_each_head_of_an_rcnn_is_checked(layer: str) -> None:
    network = rcnn()
    torch.nn.init.constant_(network.rcnn.get_submodule(layer).weight, 3e38)  # type: ignore[arg-type]
    image = torch.randint(0, 255, (3, 70, 90), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    detector = NetworkDetector(network)
    assert len(detector.detect([image])) == 1  # as evaluation during training does
    detector.require_finite = True
    with pytest.raises(DataError, match="overflow on this image"):
        detector.detect([image])
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_names_the_image_that_overflows(name: str, shapes_data: Path) -> None:
    network = NETWORKS[name]()
    assert iformer.evaluate(network, str(shapes_data)).metrics["images"] > 1
    network.pyramid.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 1e38,))
    with pytest.raises(DataError, match=r"\.(png|jpg): the network's outputs overflow on this image"):
        iformer.evaluate(network, str(shapes_data))


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_an_artifact_that_overflows_on_an_image(
    kind: str,
    images: list[Path],
    shared_exports: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = copy_of_export(kind, "onnx", shared_exports, tmp_path)
    run = OnnxRunner.run

    def overflows(self: Any, fed: Tensor) -> Any:
        values = [np.array(value) for value in run(self, fed)]
        if (fed == 255).any():
            values[-1][0, 0, 0] = np.nan
        return values

    monkeypatch.setattr(OnnxRunner, "run", overflows)
    command = ["predict", *map(str, images), "--weights", str(artifact), "--json"]
    assert main(command) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer.get("error") for answer in answers] == [None, NOT_FINITE, None]
