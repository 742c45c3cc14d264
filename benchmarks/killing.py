"""`kill -9` at random points of a training run, many times: it must end with the weights of the undisturbed run.

Two runs of the same small recipe on the CPU in fp32: one is left alone, the other is killed at random moments (in
its steps, while it saves, while it evaluates, while it starts) and started again with --resume. At the end every
tensor of both runs is compared bit for bit.

    python benchmarks/killing.py --kills 20 --out benchmarks/results/killing.json
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from iformer.bench.record import write_record
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import last_good_step

FILES = ("last.safetensors", "best.safetensors", "resume.safetensors")


def make_images(folder: Path) -> Path:
    """Noise in three colours, which a network can tell apart."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 64), ("val", 8)):
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 200, (48, 48, 3), dtype=np.uint8)
                pixels[..., channel] //= 4
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def command(data: Path, out: Path, epochs: int) -> list[str]:
    """A run with everything random switched on, and a state every other step."""
    fields = {
        "size": 32,
        "batch_size": 16,
        "lr_batch": 16,
        "mixup_alpha": 0.2,
        "cutmix_alpha": 0.5,
        "random_erasing": 0.3,
        "drop_path_rate": 0.1,
        "ema_decay": 0.9,
        "weights": "none",
        "workers": 1,
        "checkpoint_steps": 2,
        "precision": "fp32",
    }
    sets = [argument for name, value in fields.items() for argument in ("--set", f"{name}={value}")]
    return [
        *(
            sys.executable,
            "-m",
            "iformer",
            "train",
            "--data",
            str(data),
            "--out",
            str(out),
            "--epochs",
            str(epochs),
        ),
        *("--model", "iformer_t", "--device", "cpu", "--no-tensorboard", "--resume", *sets),
    ]


def killed_run(data: Path, out: Path, *, epochs: int, kills: int, seed: int) -> list[int]:
    """Run to the end through so many kills; the steps that were behind the run at each of them."""
    draw = random.Random(seed)
    steps: list[int] = []
    while len(steps) < kills:
        before = last_good_step(RunFolder(out)) or 0
        process = subprocess.Popen(
            command(data, out, epochs), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wanted = before + draw.randint(0, 3)
        while process.poll() is None and (last_good_step(RunFolder(out)) or 0) < wanted:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.5)  # anywhere between two states, or while one is written
        if process.poll() is not None:
            raise SystemExit(f"the run ended after {len(steps)} kills; more epochs are needed")
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps.append(last_good_step(RunFolder(out)) or 0)
        print(f"kill {len(steps)}: step {steps[-1]}", flush=True)
    subprocess.run(command(data, out, epochs), check=True, stdout=subprocess.DEVNULL)
    return steps


def differences(one: Path, other: Path) -> dict[str, list[str]]:
    """Tensors that are not the same bits, by file."""
    found: dict[str, list[str]] = {}
    for file in FILES:
        tensors, others = load_file(one / file), load_file(other / file)
        different = [name for name in tensors if not torch.equal(tensors[name], others[name])]
        found[file] = different + sorted(tensors.keys() ^ others.keys())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both, compare, print; with --out write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="iformer-killing-"))
    try:
        data = make_images(folder / "images")
        subprocess.run(command(data, folder / "whole", options.epochs), check=True, stdout=subprocess.DEVNULL)
        steps = killed_run(data, folder / "killed", epochs=options.epochs, kills=options.kills, seed=options.seed)
        different = differences(folder / "whole", folder / "killed")
    finally:
        shutil.rmtree(folder)
    figures: dict[str, Any] = {"kills": options.kills, "saved steps at the kills": steps, "different": different}
    same = not any(different.values())
    print(f"{options.kills} kills; {'the same weights, bit for bit' if same else f'different: {different}'}")
    if options.out:
        write_record(options.out, figures)
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
