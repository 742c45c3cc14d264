"""Networks from scratch on the ELPV photographs, several seeds each, by one recipe: mean and spread.

`peers`: iFormer-T beside two mobile networks of timm, by the recipe elpv. `ablations`: iFormer-T with one thing
changed at a time, as in the paper's Tables 1, 6, 7 and 14, by the recipe quickstart. Each run is resumable:
started again, the script continues where it was stopped and skips what is finished. The figure is the test
accuracy of the last averaged weights, on the 656 photographs of the fixed 25 % split; no weights are chosen by it.

    python benchmarks/elpv.py peers --runs runs/elpv --out benchmarks/results/elpv.json
    python benchmarks/elpv.py ablations --runs runs/ablations --out benchmarks/results/ablations.json

`--finished` trains nothing and writes the record of the runs that are there.
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
"""Only a run that came to its end has this file."""

PEERS = ("mobilenetv3_large_100", "mobilenetv4_conv_medium")


def of_config(config: NetworkConfig, drop_path_rate: float) -> nn.Module:
    """A network of ours for two classes, with random weights."""
    return build(config.with_options(num_classes=2, drop_path_rate=drop_path_rate))


def of_timm(name: str, drop_path_rate: float) -> nn.Module:
    """A network of timm for two classes, with random weights."""
    return timm.create_model(name, num_classes=2, drop_path_rate=drop_path_rate)


def suite(name: str, recipe: Recipe) -> Networks:
    """The networks of a suite by the names that the table has."""
    rate = recipe.drop_path_rate
    if name == "ablations":
        return {label: partial(of_config, config, rate) for label, config in TRAINED.items()}
    ours: Networks = {"iformer_t": partial(of_config, TRAINED["SHMA (iFormer-T)"], rate)}
    return ours | {f"timm:{peer}": partial(of_timm, peer, rate) for peer in PEERS}


def run(
    label: str, create: Callable[[], nn.Module], recipe: Recipe, recipe_name: str, folder: Path
) -> dict[str, Any]:
    """One training run, or what is kept of it if it is finished already: its metrics."""
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
    """Train what is missing, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=("peers", "ablations"))
    parser.add_argument("--only", nargs="+", help="names of the suite's networks; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="for a trial; the recipe's own otherwise")
    parser.add_argument("--finished", action="store_true", help="train nothing: report the finished runs")
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
