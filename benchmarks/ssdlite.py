"""iFormer-T with torchvision's SSDLite head, trained and evaluated exactly as the light detector.

Data, augmentation, optimizer, schedule, evaluation and suppression are those of the recipe, such as
`examples/composed/detect-light.yaml`; only the neck, the head and its losses differ. The head sees maps of strides
8, 16 and 32 from the backbone and three more from depthwise blocks (MobileNetV2, Sandler et al. 2018, arXiv
1801.04381, section 6.2), with default boxes of 0.1 to 0.95 of the input.

    python benchmarks/ssdlite.py --data COMPOSED --recipe examples/composed/detect-light.yaml --run runs/ssdlite \\
        --out benchmarks/results/ssdlite.json
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from iformer.bench.record import write_record
from iformer.config.preprocessing import Preprocessing
from iformer.data.sources.detection import load_detection
from iformer.models.backbone import Backbone
from iformer.models.detections import SelectionRule
from iformer.models.factory import create_model
from iformer.tasks.detection.config import DetectionRecipe
from iformer.tasks.detection.dataset import DetectionCanvases
from iformer.tasks.detection.evaluate import DetectionEvaluation, evaluate
from iformer.tasks.detection.inference import BOXES, SCORES, LetterboxDetector
from iformer.tasks.detection.loss import Detection
from iformer.tasks.detection.training import DetectionWorkload
from iformer.tasks.registry import load_recipe
from iformer.training.job import TrainJob
from iformer.training.loop import train
from iformer.training.network.precision import Precision
from iformer.training.protocol import Batch
from iformer.training.records.results import TrainResult

FILL = (114, 114, 114)
EXTRA_CHANNELS = (512, 256, 128)


def extra_block(before: int, after: int) -> nn.Sequential:
    """Return a block that halves the sides of a map: 1x1, depthwise 3x3 of stride 2, 1x1."""
    middle = after // 2
    return nn.Sequential(
        Conv2dNormActivation(before, middle, kernel_size=1, activation_layer=nn.ReLU6),
        Conv2dNormActivation(middle, middle, stride=2, groups=middle, activation_layer=nn.ReLU6),
        Conv2dNormActivation(middle, after, kernel_size=1, activation_layer=nn.ReLU6),
    )


class Features(nn.Module):
    """Maps of strides 8, 16 and 32 of a backbone, and of three extra blocks, by name."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        widths = [stage.channels for stage in body.config.stages][1:]
        self.channels = [*widths, *EXTRA_CHANNELS]
        self.body = body
        self.extra = nn.ModuleList(
            extra_block(before, after) for before, after in itertools.pairwise(self.channels[2:])
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map B x 3 x H x W to the maps, finest first."""
        maps = self.body.feature_maps(x)[1:]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return {str(index): values for index, values in enumerate(maps)}


class SSDLite(SSD):  # type: ignore[misc]
    """torchvision's SSD on an iFormer; class 0 is the background."""

    def __init__(self, body: Backbone, size: int, classes: int, normalisation: Preprocessing) -> None:
        features = Features(body)
        boxes = DefaultBoxGenerator([[2, 3]] * len(features.channels), min_ratio=0.1, max_ratio=0.95)
        head = SSDLiteHead(features.channels, boxes.num_anchors_per_location(), classes + 1, nn.BatchNorm2d)
        mean, std = list(normalisation.mean), list(normalisation.std)
        super().__init__(features, boxes, (size, size), classes + 1, mean, std, head=head)

    def dense(self, images: Tensor) -> dict[str, Tensor]:
        """Return boxes (B x A x 4, pixels) and scores (B x A x K) of uint8 images of the network's size."""
        listed, _ = self.transform([image.float() / 255 for image in images])
        maps = list(self.backbone(listed.tensors).values())
        raw = self.head(maps)
        anchors = self.anchor_generator(ImageList(listed.tensors, listed.image_sizes), maps)
        pairs = zip(raw["bbox_regression"].float(), anchors, strict=True)
        boxes = torch.stack([self.box_coder.decode_single(offsets, anchor) for offsets, anchor in pairs])
        return {BOXES: boxes, SCORES: raw["cls_logits"].float().softmax(-1)[..., 1:]}


class SSDLiteLoss(Detection):
    """torchvision's SSD losses on batches of canvases."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and torchvision's two losses."""
        targets = [{**target, "labels": target["labels"] + 1} for target in batch["targets"]]
        return super().loss(model, {**batch, "targets": targets})


class SSDLiteWorkload(DetectionWorkload):
    """The light detector's images, with the detections of an `SSDLite`."""

    def train_dataset(self) -> DetectionCanvases:
        """Return augmented canvases."""
        return DetectionCanvases(self.job.data.train, self.recipe, fill=FILL)

    def evaluate(self, network: nn.Module, *, precision: Precision) -> DetectionEvaluation:
        """Evaluate on the validation images with the light detector's selection rule."""
        assert isinstance(network, SSDLite)
        names = self.job.data.train.class_names
        detector = LetterboxDetector(
            network.dense,
            SelectionRule(score_threshold=0.001, detections=100, nms_iou=0.65),
            size=(self.recipe.size, self.recipe.size),
            fill=FILL,
            num_classes=len(names),
            class_names=names,
        )
        return evaluate(detector, self.val_loader(), device=self.context.device, precision=precision)

    def write_report(self, result: TrainResult) -> Path:
        """Write no report; training asks for none."""
        raise NotImplementedError


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or resume an interrupted run, print the metrics and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="composed photographs, or any data for detection")
    parser.add_argument("--recipe", default="detection-light")
    parser.add_argument("--model", default="iformer_t")
    parser.add_argument("--epochs", type=int, help="those of the recipe by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, default=Path("runs/ssdlite"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    overrides = {"seed": options.seed} | ({} if options.epochs is None else {"epochs": options.epochs})
    recipe = load_recipe(options.recipe, overrides)
    assert isinstance(recipe, DetectionRecipe)
    torch.manual_seed(recipe.seed)
    body = create_model(options.model, num_classes=0)
    data = load_detection(options.data)
    preprocessing = Preprocessing(size=(recipe.size, recipe.size))
    network = SSDLite(body, recipe.size, len(data.train.class_names), preprocessing)
    job = TrainJob(
        data_name=options.data,
        recipe=recipe,
        recipe_name=options.recipe,
        folder=options.run,
        resume=True,
        trackers=(),
        report=False,
        task=SSDLiteLoss(data.train.class_names),
        workload=SSDLiteWorkload,
        model=network,
        model_name=f"{options.model} with SSDLite",
        data=data,
        preprocessing=preprocessing,
    )
    started = time.process_time()
    result = train(job)
    figures = {
        "recipe": options.recipe,
        "epochs": recipe.epochs,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "cpu_minutes": (time.process_time() - started) / 60,
        "metrics": {name: value for name, value in result.evaluation.metrics.items() if name != "per_class"},
    }
    print(figures, flush=True)
    if options.out:
        write_record(options.out, figures)


if __name__ == "__main__":
    main()
