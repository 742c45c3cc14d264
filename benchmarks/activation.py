"""SiLU against sigmoid in the modulation (Table 6 of the paper), at small scale: does SiLU with post-BN diverge?

The paper trains iFormer-M on ImageNet, where SiLU with batch norm after the convolutions diverges and with layer
norm before them does not. Here the same three forms of a smaller network train on the ELPV photographs from random
weights, without clipping and without an average of the weights, at rising learning rates. A run counts as diverged
where its loss is not finite, or ends above that of guessing. The largest absolute value that any attention block
gives out is kept beside the loss: it shows a run that is on its way.

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
    """The largest absolute output of any attention block since it was made."""

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
        """Look no more."""
        for hook in self._hooks:
            hook.remove()


def run(folder: Path, form: str, lr: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training run, or what is kept of it if it is finished already."""
    kept = folder / "outcome.json"
    if kept.is_file():
        return cast(dict[str, Any], json.loads(kept.read_text()))
    torch.manual_seed(seed)
    network = create_model(options.model, num_classes=2, **FORMS[form])
    recipe = load_recipe(
        "elpv",
        {
            "epochs": options.epochs,
            "seed": seed,
            "optimizer": "adamw",  # the paper's, and not that of the recipe
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
    kept.write_text(json.dumps(outcome))
    return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, print the table, write the record."""
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
