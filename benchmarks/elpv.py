"""iFormer-T and two peers from scratch on the ELPV photographs: the same recipe, three seeds each.

Each run is resumable: started again, the script continues where it was stopped and skips what is finished.
The figure is the test accuracy of the last averaged weights, on the 656 photographs of the fixed 25 % split;
no weights are chosen by it.

    python benchmarks/elpv.py --runs runs/elpv --out benchmarks/results/elpv.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import timm
import torch

from iformer.bench.record import write_record
from iformer.config.recipe import load_recipe
from iformer.data.sources import load_data
from iformer.models.complexity import count_macs, count_parameters
from iformer.training.classification import classification_job
from iformer.training.loop import train

MODELS = ("iformer_t", "timm:mobilenetv3_large_100", "timm:mobilenetv4_conv_medium")


def run(model: str, seed: int, folder: Path, epochs: int | None) -> dict[str, Any]:
    """One training run, or what is kept of it if it is finished already: its metrics."""
    finished = folder / "metrics.json"
    if finished.is_file():
        return json.loads(finished.read_text())
    overrides: dict[str, Any] = {"seed": seed} | ({} if epochs is None else {"epochs": epochs})
    data = load_data("elpv")
    torch.manual_seed(seed)
    is_peer = model.startswith("timm:")
    job = classification_job(
        data,
        data_name="elpv",
        recipe=load_recipe("elpv", overrides),
        recipe_name="elpv",
        folder=folder,
        model=timm.create_model(model.removeprefix("timm:"), num_classes=2) if is_peer else model,
        model_name=model,
        resume=True,
    )
    train(job)
    return json.loads(finished.read_text())


def main() -> None:
    """Train what is missing, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="for a trial; the recipe's own otherwise")
    parser.add_argument("--runs", type=Path, default=Path("runs/elpv"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    figures = {}
    for model in options.models:
        folders = [options.runs / f"{model.removeprefix('timm:')}-seed{seed}" for seed in options.seeds]
        results = [
            run(model, seed, folder, options.epochs) for seed, folder in zip(options.seeds, folders, strict=True)
        ]
        accuracies = [result["metrics"]["top1"] for result in results]
        network = timm.create_model(model.removeprefix("timm:"), num_classes=2)
        figures[model] = {
            "top1": accuracies,
            "mean": statistics.mean(accuracies),
            "spread": max(accuracies) - min(accuracies),
            "macro_f1": [result["metrics"]["macro"]["f1"] for result in results],
            "parameters": count_parameters(network),
            "macs": count_macs(network, (224, 224)),
            "minutes": [result["seconds"] / 60 for result in results],
        }
        listed = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        print(f"{model:32} {figures[model]['mean']:.2f} % mean of {len(accuracies)} ({listed})", flush=True)
    if options.out:
        write_record(options.out, figures)


if __name__ == "__main__":
    main()
