"""Mask R-CNN and Faster R-CNN as ONNX artifacts: the same detections and masks, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.api.evaluate import evaluate
from iformer.cli.main import main
from iformer.data.images import read_image
from iformer.data.transforms import Normalize
from iformer.deploy.export import export_artifact
from iformer.deploy.exportable import named
from iformer.deploy.runner import open_artifact
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import UserError
from iformer.models.weights.checkpoint import save
from iformer.tasks.detection.inference import LetterboxDetector
from iformer.tasks.export import exportable
from tiny.dense import SIZE, rcnn

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, photographs: list[Path]) -> Path:
    """A Mask R-CNN."""
    path = tmp_path_factory.mktemp("rcnn") / "mask.onnx"
    export_artifact(exportable(rcnn()), path, "onnx", size=SIZE, images=photographs)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_detections_and_masks_are_the_networks(artifact: Path, photographs: list[Path]) -> None:
    record = json.loads(Path(f"{artifact}.json").read_text())
    parity = record["parity"]
    assert parity["compared_detections"] > 40
    assert parity["unmatched_detections"] == 0
    assert parity["min_iou"] > 0.999
    assert parity["max_score_error"] < 1e-4
    assert parity["max_mask_error"] < 1e-3
    assert record["batch"] == 1
    assert record["output_shapes"] == {"boxes": [100, 4], "scores": [100, 2], "masks": [100, 28, 28]}
    assert record["class_names"] == ["disc", "square"]

    network, runner = exportable(rcnn()), open_artifact(artifact)
    info = runner.info
    normalize = Normalize(info.preprocessing)

    def forward(images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return named(network.outputs, network.model(normalize(images)))

    theirs = LetterboxDetector.of_artifact(runner)
    ours = LetterboxDetector(
        forward,
        theirs._rule,
        size=SIZE,
        fill=info.preprocessing.letterbox or (0, 0, 0),
        num_classes=2,
        has_masks=True,
    )
    found = 0
    for path in photographs:
        image = pil_to_tensor(read_image(path))
        (one,), (other,) = ours.detect([image], min_score=0.5), theirs.detect([image], min_score=0.5)
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=1e-3)
        assert one["masks"].size == image.shape[1:]
        for mask, their_mask in zip(one["masks"], other["masks"], strict=True):
            torch.testing.assert_close(mask, their_mask, atol=1e-2, rtol=0)
        found += len(one["labels"])
    assert found > 10


def test_the_artifact_is_evaluated_and_draws_masks(artifact: Path, shapes_data: Path, tmp_path: Path) -> None:
    metrics = evaluate(str(artifact), str(shapes_data), workers=0).metrics
    assert {"box_ap", "mask_ap"} <= metrics.keys()
    picture = shapes_data / "images" / "val" / "0.png"
    arguments = ["predict", str(picture), "--weights", str(artifact), "--out", str(tmp_path)]
    assert main([*arguments, "--min-score", "0.3"]) == 0
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert coco["annotations"]
    assert all(annotation["segmentation"]["size"] == [96, 96] for annotation in coco["annotations"])
    with Image.open(tmp_path / "0.png") as drawn, Image.open(picture) as plain:
        assert np.abs(np.asarray(drawn.convert("RGB"), int) - np.asarray(plain.convert("RGB"), int)).sum() > 0


@pytest.mark.sweep
def test_faster_rcnn_has_no_masks(tmp_path: Path, photographs: list[Path]) -> None:
    path = tmp_path / "faster.onnx"
    info = export_artifact(exportable(rcnn(masks=False)), path, "onnx", size=SIZE, images=photographs, opset=18)
    assert set(info.shapes) == {"boxes", "scores"}
    assert info.parity["unmatched_detections"] == 0
    assert not LetterboxDetector.of_artifact(open_artifact(path)).has_masks


def test_other_heads_are_caught(artifact: Path, photographs: list[Path]) -> None:
    from iformer.deploy.parity import compare

    network = rcnn()
    with torch.no_grad():
        network.rcnn.roi_heads.box_predictor.cls_score.bias += torch.tensor([0.0, 0.3, -0.3])
    failures = compare(exportable(network), open_artifact(artifact), photographs).failures
    assert any("detections have no counterpart" in failure for failure in failures)
    with torch.no_grad():
        changed = rcnn()
        changed.rcnn.roi_heads.mask_predictor.mask_fcn_logits.bias += 0.3
    failures = compare(exportable(changed), open_artifact(artifact), photographs).failures
    assert any("masks differ by" in failure for failure in failures)


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "onnx"])
def test_other_runtimes_say_why_they_do_not_take_it(runtime: str, tmp_path: Path) -> None:
    network = exportable(rcnn())
    with pytest.raises(UserError, match=r"cannot be exported to .*: the number of regions .* \(--detector light"):
        export_artifact(network, tmp_path / f"a{RUNTIMES[runtime].suffix}", runtime)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "2"], "batch is 2; this network takes 1 image"),
        (["--raw"], "without its normalisation"),
        (["--precision", "fp16"], "precision is 'fp16'"),
        (["--size", "100x96"], "multiples of 32"),
    ],
)
def test_options_that_it_does_not_take(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(rcnn(masks=False), tmp_path / "net.safetensors")
    out = tmp_path / "out"
    arguments = ["export", str(tmp_path / "net.safetensors"), "--to", "onnx", "--out", str(out)]
    assert main([*arguments, *options]) == 1
    assert words in capsys.readouterr().err
    assert not list(out.glob("*"))


def test_int8_and_a_network_that_finds_nothing_are_refused(shapes_data: Path, tmp_path: Path) -> None:
    from iformer.tasks.detection.export import quantization

    network = rcnn(masks=False)
    with pytest.raises(UserError, match="exported in fp32 only"):
        quantization(network, str(shapes_data), images=4, max_drop=1.0)
    with torch.no_grad():
        network.rcnn.roi_heads.box_predictor.cls_score.bias[0] = 1e4
    with pytest.raises(UserError, match="nothing was compared; give --images that show objects"):
        export_artifact(exportable(network), tmp_path / "a.onnx", "onnx", size=SIZE)
    assert not list(tmp_path.iterdir())
