"""Tiny images, networks and runs for the training tests; also a program that runs one in its own process."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig
from iformer.data.sources import load_data
from iformer.models.factory import build
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.classification.training import classification_job
from iformer.training.job import RunSettings, TrainJob
from tiny.programs import run_on_two_processes, torchrun_on_two_processes

CLASSES = ("blue", "green", "red")
TRAIN_IMAGES = 16
"""In each class; 12 more in all are for validation."""


def make_images(folder: Path, train_images: int = TRAIN_IMAGES) -> Path:
    """A folder of coloured noise that a network can tell apart: train/ and val/ with three classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train_images), ("val", 4)):
        for channel, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 200, (36, 40, 3), dtype=np.uint8)
                pixels[..., channel] //= 4
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def write_in_two_classes(folder: Path, images: Iterable[np.ndarray]) -> Path:
    """Write images, in turn in the class folders a and b."""
    for number, pixels in enumerate(images):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


class Linear(nn.Module):
    """A network without batch statistics, for which any cut of a batch gives the same gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.mean((2, 3)))
        return logits


PLAIN = {
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "random_erasing": 0.0,
    "clip_grad": None,
    "ema_decay": None,
}
"""ClassificationRecipe fields that switch off what differs between one process and several."""


SYNCHRONISED = {
    **PLAIN,
    "batch_size": 64,
    "lr_batch": 64,
    "epochs": 2,
    "log_every": 1,
    "scale": None,
    "hflip": 0.0,
    "color_jitter": 0.0,
    "clip_grad": 1.0,
    "sync_batch_norm": True,
}
"""No augmentation, and batch norms that see the batch of all processes."""


def tiny_config(*, num_classes: int = 3, **options: Any) -> NetworkConfig:
    """Every kind of block, a few thousand parameters."""
    stages = tuple(
        StageConfig(
            channels=channels,
            pattern=(("conv", 1), ("attention", 1)) if index >= 2 else (("conv", 1),),
            conv_expansion_ratio=2,
            attention=AttentionConfig(ffn_expansion_ratio=2),
        )
        for index, channels in enumerate((8, 16, 24, 32))
    )
    return NetworkConfig(name="tiny", stages=stages, num_classes=num_classes, **options)


def tiny_recipe(**fields: Any) -> ClassificationRecipe:
    """Six steps an epoch at 32 pixels, everything random switched on."""
    values: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 8,
        "lr": 2e-3,
        "lr_batch": 8,
        "warmup_epochs": 0.5,
        "ema_decay": 0.9,
        "clip_grad": 1.0,
        "size": 32,
        "crop_pct": 1.0,
        "scale": (0.5, 1.0),
        "color_jitter": 0.2,
        "random_erasing": 0.3,
        "mixup_alpha": 0.2,
        "cutmix_alpha": 0.5,
        "precision": "fp32",
        "workers": 0,
        "log_every": 2,
    }
    return ClassificationRecipe.from_plain({**values, **fields})


def tiny_job(
    data: Path, folder: Path, *, recipe: ClassificationRecipe, drop_path_rate: float = 0.2, **options: Any
) -> TrainJob:
    """A run of the tiny network, which drops paths at random too."""
    torch.manual_seed(recipe.seed)
    distillation = recipe.distillation.loss != "none"
    network = build(tiny_config(drop_path_rate=drop_path_rate, layer_scale_init=0.1, distillation=distillation))
    options = {"tensorboard": False, "report": False, "device": "cpu", **options}
    settings = RunSettings(data_name="tiny", recipe=recipe, recipe_name="tiny", folder=folder, **options)
    return classification_job(load_data(str(data), workers=1), settings, model=network, model_name="tiny")


def launch(images: Path, out: Path, fields: dict[str, Any], *options: str, torchrun: bool = False) -> None:
    """Run this program on two gloo processes."""
    run = torchrun_on_two_processes if torchrun else run_on_two_processes
    run("tiny.classification", str(images), str(out), json.dumps(fields), *options)


def step_losses(folder: Path) -> list[float]:
    """The loss of each logged step of a run."""
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["event"] == "step"]


def assert_same_tensors(one: Path, other: Path) -> None:
    """Check that two files hold the same tensors, bit for bit."""
    tensors, others = load_file(one), load_file(other)
    assert tensors.keys() == others.keys()
    assert tensors
    different = [name for name in tensors if not torch.equal(tensors[name], others[name])]
    assert not different


def main() -> None:
    """Run a tiny job: `python -m tiny.classification DATA OUT RECIPE-FIELDS-AS-JSON [OPTIONS]`."""
    from iformer.cli.output import report_error
    from iformer.errors import StoppedBySignalError, UserError
    from iformer.training.loop import train

    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("fields", type=json.loads)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--linear", action="store_true")
    parser.add_argument("--plain", action="store_true", help="no stochastic depth")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = tiny_recipe(**arguments.fields)
    drop_path_rate = 0.0 if arguments.plain else 0.2
    job = tiny_job(
        arguments.data, arguments.out, recipe=recipe, resume=arguments.resume, drop_path_rate=drop_path_rate
    )
    try:
        train(replace(job, model=Linear()) if arguments.linear else job)
    except (StoppedBySignalError, UserError, KeyboardInterrupt) as error:
        sys.exit(report_error(error))


if __name__ == "__main__":
    main()
