"""Accuracy on the ELPV photographs of networks trained from scratch: mean and range over several seeds.

`peers`: iFormer-T and two mobile networks of timm, with the recipe `elpv`. `ablations`: iFormer-T with one
change at a time, as in Tables 1, 6, 7 and 14 of the paper, with the recipe `quickstart`. The figure is the test
accuracy of the last EMA weights on the 656 photographs of the fixed 25 % split. It is not used to select
weights. An interrupted script can be started again: it resumes the current run and skips finished ones.

    python benchmarks/elpv.py peers --runs runs/elpv --out benchmarks/results/elpv.json
    python benchmarks/elpv.py ablations --runs runs/ablations --out benchmarks/results/ablations.json

`--finished` trains nothing and writes the record of the finished runs.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from iformer.bench.record import write_record
from iformer.config.network import NetworkConfig
from iformer.config.recipe import Recipe
from iformer.data.sources import load_data
from iformer.models.complexity import count_macs, count_parameters
from iformer.models.factory import build
from iformer.tasks.classification.training import classification_job
from iformer.tasks.registry import load_recipe
from iformer.training.job import RunSettings
from iformer.training.loop import train
from iformer_paper.ablations import TRAINED

Networks = dict[str, Callable[[], nn.Module]]
FINISHED = "metrics.json"
"""Only a finished run has this file."""

PEERS = ("mobilenetv3_large_100", "mobilenetv4_conv_medium")


def of_config(config: NetworkConfig, drop_path_rate: float) -> nn.Module:
    """Create an iFormer for two classes, with random weights."""
    return build(config.with_options(num_classes=2, drop_path_rate=drop_path_rate))


def of_timm(name: str, drop_path_rate: float) -> nn.Module:
    """Create a timm network for two classes, with random weights."""
    return timm.create_model(name, num_classes=2, drop_path_rate=drop_path_rate)


def suite(name: str, recipe: Recipe) -> Networks:
    """Return the networks of a suite by their label."""
    rate = recipe.drop_path_rate
    if name == "ablations":
        return {label: partial(of_config, config, rate) for label, config in TRAINED.items()}
    ours: Networks = {"iformer_t": partial(of_config, TRAINED["SHMA (iFormer-T)"], rate)}
    return ours | {f"timm:{peer}": partial(of_timm, peer, rate) for peer in PEERS}


def run(
    label: str, create: Callable[[], nn.Module], recipe: Recipe, recipe_name: str, folder: Path
) -> dict[str, Any]:
    """Train one network and return its metrics; those of a finished run are read from its folder."""
    finished = folder / FINISHED
    if not finished.is_file():
        torch.manual_seed(recipe.seed)
        job = classification_job(
            load_data("elpv"),
            RunSettings(
                data_name="elpv",
                recipe=recipe,
                recipe_name=recipe_name,
                folder=folder,
                resume=True,
            ),
            model=create(),
            model_name=label,
        )
        train(job)
    metrics: dict[str, Any] = json.loads(finished.read_text())
    return metrics


def main() -> None:
    """Run what is not finished, print the accuracies and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=("peers", "ablations"))
    parser.add_argument("--only", nargs="+", help="labels of the networks to run; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="those of the recipe by default")
    parser.add_argument(
        "--finished", action="store_true", help="train nothing; write the record of the finished runs"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    recipe_name = "elpv" if options.suite == "peers" else "quickstart"
    overrides = {} if options.epochs is None else {"epochs": options.epochs}
    networks = suite(options.suite, load_recipe(recipe_name, overrides))
    figures = {}
    for label in options.only or networks:
        create = networks[label]
        results = []
        for seed in options.seeds:
            recipe = load_recipe(recipe_name, {**overrides, "seed": seed})
            folder = options.runs / f"{re.sub(r'[^a-z0-9]+', '_', label.lower()).strip('_')}-seed{seed}"
            if not options.finished or (folder / FINISHED).is_file():
                results.append(run(label, create, recipe, recipe_name, folder))
        if not results:
            continue
        accuracies = [result["metrics"]["top1"] for result in results]
        network = create().eval()
        figures[label] = {
            "top1": accuracies,
            "mean": statistics.mean(accuracies),
            "spread": max(accuracies) - min(accuracies),
            "macro_f1": [result["metrics"]["macro"]["f1"] for result in results],
            "parameters": count_parameters(network),
            "macs": count_macs(network, (224, 224)),
            "minutes": [result["seconds"] / 60 for result in results],
        }
        listed = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        print(f"{label:32} {figures[label]['mean']:.2f} % mean of {len(accuracies)} ({listed})", flush=True)
    if options.out:
        write_record(options.out, figures)


if __name__ == "__main__":
    main()
