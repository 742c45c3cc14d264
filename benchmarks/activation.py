"""SiLU and sigmoid in the modulation (Table 6 of the paper) at small scale: does SiLU with post-BN diverge?

The paper trains iFormer-M on ImageNet. There, SiLU diverges with batch norm after the convolutions and does not
diverge with layer norm before them. This script trains the same three forms of a smaller network on the ELPV
photographs from random weights, without gradient clipping and without EMA, at several learning rates. A run has
diverged if its loss is not finite or ends above ln 2, the loss of guessing. The largest absolute output of the
attention blocks is recorded too: it rises before a run diverges.

    python benchmarks/activation.py --runs runs/activation --out benchmarks/results/activation.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from iformer import create_model
from iformer.bench.record import write_record
from iformer.data.sources import load_data
from iformer.errors import UserError
from iformer.layers.attention import AttentionBlock
from iformer.tasks.classification.training import classification_job
from iformer.tasks.registry import load_recipe
from iformer.training.job import RunSettings
from iformer.training.loop import train

FORMS: dict[str, dict[str, Any]] = {
    "SiLU + post-BN": {"activation": "silu"},
    "SiLU + pre-LN": {"activation": "silu", "norm_placement": "pre_ln"},
    "sigmoid + post-BN": {},
}


class Peak:
    """Records the largest absolute output of all attention blocks of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.value = 0.0
        self._hooks = [
            module.register_forward_hook(self._look)
            for module in network.modules()
            if isinstance(module, AttentionBlock)
        ]
        if not self._hooks:
            raise SystemExit("the network has no attention block")

    def _look(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        largest = output.detach().abs().max().item()
        self.value = max(self.value, largest) if math.isfinite(largest) else math.inf

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def run(folder: Path, form: str, lr: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and return its outcome; a finished run is read from its folder."""
    stored = folder / "outcome.json"
    if stored.is_file():
        return cast(dict[str, Any], json.loads(stored.read_text()))
    torch.manual_seed(seed)
    network = create_model(options.model, num_classes=2, **FORMS[form])
    recipe = load_recipe(
        "elpv",
        {
            "epochs": options.epochs,
            "seed": seed,
            "optimizer": "adamw",  # as in the paper; the recipe has another one
            "lr": lr,
            "lr_batch": 64,
            "batch_size": 64,
            "size": options.size,
            "size_schedule": [],
            "clip_grad": None,
            "ema_decay": None,
            "mixup_alpha": 0.0,
            "eval_every": options.epochs,
            "log_every": 5,
            "precision": options.precision,
        },
    )
    job = classification_job(
        load_data("elpv"),
        RunSettings(
            data_name="elpv",
            recipe=recipe,
            recipe_name="elpv",
            folder=folder / "run",
            overwrite=(folder / "run").exists(),
            tensorboard=False,
            report=False,
        ),
        model=network,
        model_name=f"{options.model} {form}",
    )
    peak = Peak(network)
    outcome: dict[str, Any] = {"form": form, "lr": lr, "seed": seed, "stopped": None}
    try:
        outcome["top1"] = train(job).metrics["top1"]
    except UserError as error:
        if "not finite" not in str(error):
            raise
        outcome["stopped"] = str(error).partition(";")[0]
    peak.remove()
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if record["event"] == "step"]
    outcome["losses"] = losses
    last = sum(losses[-5:]) / len(losses[-5:]) if losses else math.inf
    outcome["last loss"] = last
    outcome["peak"] = peak.value
    outcome["diverged"] = outcome["stopped"] is not None or last > math.log(2)
    stored.write_text(json.dumps(outcome))
    return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished, print the outcomes and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="iformer_t")
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 4e-3, 1.6e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/activation"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    outcomes = []
    for lr in options.lrs:
        for form in FORMS:
            for seed in options.seeds:
                name = form.replace(" + ", "-").lower()
                outcome = run(options.runs / f"{name}-lr{lr:g}-seed{seed}", form, lr, seed, options)
                outcomes.append(outcome)
                how = "diverged" if outcome["diverged"] else f"loss {outcome['last loss']:.3f}"
                print(
                    f"{form:18} lr {lr:<7g} seed {seed}: {how}, largest output {outcome['peak']:.3g}", flush=True
                )
    if options.out:
        write_record(options.out, {"model": options.model, "size": options.size, "runs": outcomes})


if __name__ == "__main__":
    main()
