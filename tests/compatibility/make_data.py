"""Make `data/` with a version of the package from before the layout changed (commit 672a9eb); see data/README.md.

PYTHONPATH=OLD/src:tests python tests/compatibility/make_data.py FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from iformer import save
from iformer.cli.main import main
from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig
from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.transforms import Normalize, eval_transform
from iformer.models.factory import build
from iformer.tasks.registry import load_recipe
from iformer.training import loop
from tiny.digests import digest
from tiny.networks import randomize
from tiny.shapes import COLOURS, make_shapes

CLASSES = ("blue", "green", "red")
QUICK = ["--device", "cpu", "--no-tensorboard", "--precision", "fp32", "--seed", "3"]
SETTINGS: dict[str, Any] = {
    "workers": 0,
    "warmup_epochs": 1,
    "lr_batch": 4,
    "log_every": 1,
    "eval_every": 3,
    "clip_grad": 1.0,
    "ema_decay": 0.9,
}
NAMED_RECIPES = ("finetune", "imagenet-300", "coco-1x", "ade20k-40k")
FLAT_RECIPE = {
    "epochs": 7,
    "batch_size": 12,
    "optimizer": "muon",
    "lr": 1e-3,
    "lr_batch": 12,
    "schedule": "step",
    "milestones": [3, 5],
    "clip_grad": 2.5,
    "drop_path_rate": 0.1,
    "size": 64,
    "size_schedule": [[0, 32], [4, 64]],
    "crop_pct": 0.95,
    "scale": [0.3, 0.9],
    "ratio": [0.8, 1.25],
    "interpolation": "bilinear",
    "hflip": 0.25,
    "vflip": 0.125,
    "rot90": True,
    "rand_augment": "rand-m5-n1",
    "color_jitter": 0.3,
    "random_erasing": 0.2,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 0.6,
    "mixup_prob": 0.75,
    "mixup_switch_prob": 0.25,
    "label_smoothing": 0.05,
}
DETECTION_RECIPE = {
    "task": "detect",
    "epochs": 3,
    "batch_size": 2,
    "lr": 1e-3,
    "size": 64,
    "max_size": 96,
    "freeze": "weights",
    "fpn_channels": 8,
    "hflip": 0.0,
    "masks": False,
    "box_head_channels": 24,
    "rois": 16,
    "proposals": 32,
}


def image(channel: int, generator: np.random.Generator) -> Image.Image:
    """A picture of 32 x 32 pixels in which the colour `channel` is dark; a few hundred bytes as PNG."""
    pixels = generator.integers(0, 200, (4, 4, 3), dtype=np.uint8)
    pixels[..., channel] //= 4
    return Image.fromarray(pixels.repeat(8, 0).repeat(8, 1))


def classification_data(folder: Path) -> None:
    """12 training and 6 validation images of three classes."""
    generator = np.random.default_rng(1)
    for split, count in (("train", 4), ("val", 2)):
        for channel, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image(channel, generator).save(folder / split / name / f"{number}.png", optimize=True)


def pyramid_data(folder: Path) -> None:
    """4 training and 2 validation images with discs and squares on grey, which PNG makes small."""
    make_shapes(folder, train=4, val=2, size=64)
    for file in (folder / "images").rglob("*.png"):
        pixels = np.array(Image.open(file))
        pixels[~np.isin(pixels[..., 0], [colour[0] for colour in COLOURS])] = 115
        Image.fromarray(pixels).save(file, optimize=True)


def smallest_config() -> NetworkConfig:
    """One convolution block in the stages 1 to 3, one attention block in the stages 3 and 4."""
    attention = AttentionConfig(reduction=2, ffn_expansion_ratio=2)
    patterns = ([("conv", 1)], [("conv", 1)], [("conv", 1), ("attention", 1)], [("attention", 1)])
    stages = tuple(
        StageConfig(channels=channels, pattern=tuple(pattern), conv_expansion_ratio=2, attention=attention)
        for channels, pattern in zip((4, 4, 8, 8), patterns, strict=True)
    )
    return NetworkConfig(name="smallest", stages=stages, num_classes=len(CLASSES))


def run(*arguments: object) -> None:
    """Call the command line as a user does."""
    sys.argv = ["iformer", *map(str, arguments)]
    code = main(sys.argv[1:])
    if code:
        raise SystemExit(f"{sys.argv}: exit code {code}")


def train(name: str, stop_at: int, *arguments: object, **settings: Any) -> None:
    """Train `stopped/NAME` to the end, keep what it reached in `expected/`, then train it again and stop it."""
    fields = [text for field, value in {**SETTINGS, **settings}.items() for text in ("--set", f"{field}={value}")]
    command = ["train", "--out", f"stopped/{name}", *map(str, arguments), *QUICK, *fields]
    run(*command)
    whole = Path("stopped") / name
    metrics = json.loads((whole / "metrics.json").read_text())["metrics"]
    reached = {
        "weights": digest(load_file(whole / "last.safetensors")),
        "metrics": {metric: value for metric, value in metrics.items() if isinstance(value, int | float)},
    }
    Path(f"expected/{name}.json").write_text(json.dumps(reached, indent=0))
    shutil.rmtree(whole)
    seed_everything = loop.seed_everything

    def stop(seed: int, step: int, rank: int) -> None:
        seed_everything(seed, step, rank)
        if step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.seed_everything = stop
    code = main(command)
    loop.seed_everything = seed_everything
    if code != 75:
        raise SystemExit(f"{name}: exit code {code}")
    for file in ("resume.before", *(["last"] if name in ("classify", "distill") else [])):
        (whole / f"{file}.safetensors").unlink(missing_ok=True)


def make(folder: Path) -> None:
    """Write everything into `folder`."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    os.chdir(folder)
    for name in ("networks", "expected", "stopped", "recipes", "artifacts"):
        Path(name).mkdir()
    classification_data(Path("images"))
    pyramid_data(Path("shapes"))
    torch.manual_seed(0)
    network = build(smallest_config())
    randomize(network)
    network.eval()
    preprocessing = Preprocessing(size=(32, 32), crop_pct=1.0)
    save(network, "networks/classify.safetensors", class_names=CLASSES, preprocessing=preprocessing)

    Path("recipes/classification.yaml").write_text(yaml.safe_dump(FLAT_RECIPE, sort_keys=False))
    Path("recipes/detection.yaml").write_text(yaml.safe_dump(DETECTION_RECIPE, sort_keys=False))
    for path in ("recipes/classification.yaml", "recipes/detection.yaml", *NAMED_RECIPES):
        plain = load_recipe(path, {}).to_plain()
        Path(f"expected/recipe-{Path(path).stem}.json").write_text(json.dumps(plain, indent=1))

    run("convert", "images", "shards", "--to", "shards")
    common = ["--model", "networks/classify.safetensors", "--epochs", 3]
    classify = [*common, "--recipe", "finetune", "--size", 32, "--batch-size", 4, "--lr", "2e-3"]
    plain = {"crop_pct": 1.0, "weights": "none"}
    no_average = {"ema_decay": "null"}  # keeps the states small
    train("classify", 5, "--data", "images", *classify, **plain, drop_path_rate=0.2, mixup_alpha=0.2)
    teacher = ["--teacher", "networks/classify.safetensors", "--distillation", "soft"]
    train("distill", 4, "--data", "shards", *classify, *teacher, **plain, **no_average, optimizer="muon")
    pyramid = ["--data", "shapes", *common, "--size", 64, "--batch-size", 2, "--lr", "1e-3"]
    shared = {"max_size": 64, "fpn_channels": 4, "freeze": "none", "weights": "none", "lr_batch": 2}
    heads = {"box_head_channels": 8, "mask_head_channels": 4, "mask_head_depth": 1, "rois": 16, "proposals": 32}
    train("detect", 4, "--task", "detect", *pyramid, **shared, **heads, **no_average)
    head = {"head_channels": 32, "resize": "[1.0, 1.5]", "optimizer": "muon"}
    train("segment", 4, "--task", "segment", *pyramid, **shared, **head, **no_average)

    for runtime in ("onnx", "litert"):
        run("export", "networks/classify.safetensors", "--to", runtime, "--out", "artifacts")
    files = sorted(Path("images/val").rglob("*.png"))
    pixels = torch.stack([eval_transform(preprocessing)(read_image(file)) for file in files])
    with torch.inference_mode():
        logits = network(Normalize(preprocessing)(pixels))
    rows = {file.as_posix(): row.tolist() for file, row in zip(files, logits, strict=True)}
    Path("expected/logits.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
