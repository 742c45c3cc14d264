"""Kill training runs at random moments and resume them: they must end with the weights of the undisturbed run.

Each task is trained on tiny data on the CPU in fp32, by one process with a data worker and by two ranks. One run
is left alone; another is ended again and again (SIGKILL, SIGTERM, two quick SIGINT; of the parent, its worker, one
of the ranks) and started again with --resume. Each kill must end all processes within 30 seconds, with the exit
code of its kind and without a traceback. At the end every tensor is compared bit for bit, and no temporary file is
left.

    PYTHONPATH=tests python benchmarks/killing.py --kills 20 --out benchmarks/results/killing.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from iformer.bench.record import write_record
from iformer.models.factory import build
from iformer.models.weights.checkpoint import save
from iformer.training.records.run_folder import RunFolder
from iformer.training.state import last_good_step
from tiny.classification import make_images, tiny_config
from tiny.shapes import make_shapes

LIMIT = 30.0
"""Seconds in which all processes must have ended after a kill."""

PYRAMID = {"max_size": 64, "fpn_channels": 4, "freeze": "none", "hflip": 0.5}
FIELDS: dict[str, dict[str, Any]] = {
    "classify": {"size": 32, "batch_size": 8, "mixup_alpha": 0.2, "random_erasing": 0.3, "ema_decay": 0.9},
    "detect": {
        **PYRAMID,
        "size": 64,
        "batch_size": 2,
        "box_head_channels": 8,
        "mask_head_channels": 4,
        "mask_head_depth": 1,
        "rois": 16,
        "proposals": 32,
    },
    "segment": {**PYRAMID, "size": 64, "batch_size": 2, "head_channels": 32},
}
COMMON = {"weights": "none", "checkpoint_steps": 1, "precision": "fp32", "warmup_epochs": 1, "eval_every": 4}

KINDS: dict[str, tuple[int, set[int]]] = {
    "SIGKILL of the parent": (1, {-signal.SIGKILL}),
    "SIGTERM of the parent": (1, {75}),
    "two SIGINT of the group": (1, {130}),
    "SIGKILL of a worker": (1, {1}),
    "SIGTERM of one of two ranks": (2, {75}),
    "SIGKILL of one of two ranks": (2, {1, -signal.SIGKILL}),
}
"""For each kind of kill the number of ranks and the exit codes that the processes may end with."""


def start(task: str, root: Path, out: Path, epochs: int, ranks: int, port: int) -> list[subprocess.Popen[bytes]]:
    """Start all ranks of a run, each in its own process group."""
    fields = {
        **COMMON,
        **FIELDS[task],
        "lr_batch": FIELDS[task]["batch_size"],
        "workers": 2 - ranks,
        "epochs": epochs,
    }
    if ranks == 2:
        fields |= {"mixup_alpha": 0.0} if task == "classify" else {}
    sets = [argument for name, value in fields.items() for argument in ("--set", f"{name}={value}")]
    arguments = ["--task", task, "--data", str(root / ("images" if task == "classify" else "shapes"))]
    arguments += ["--model", str(root / "tiny.safetensors"), "--out", str(out), "--resume"]
    processes = []
    for rank in range(ranks):
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        variables = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        with (out.parent / f"{out.name}-{rank}.txt").open("wb") as errors:
            processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "iformer",
                        "train",
                        *arguments,
                        "--device",
                        "cpu",
                        "--no-tensorboard",
                        *sets,
                    ],
                    env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables},
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            )
    return processes


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill(kind: str, processes: list[subprocess.Popen[bytes]], draw: random.Random) -> bool:
    """Send what a kind of kill sends; False if there is nothing to send it to yet."""
    victim = draw.choice(processes)
    if kind == "two SIGINT of the group":
        for _ in range(2):
            os.killpg(victim.pid, signal.SIGINT)
            time.sleep(draw.random() * 0.1)
    elif kind == "SIGKILL of a worker":
        workers = children(victim.pid)
        if not workers:
            return False
        os.kill(draw.choice(workers), signal.SIGKILL)
    else:
        victim.send_signal(signal.SIGKILL if kind.startswith("SIGKILL") else signal.SIGTERM)
    return True


def one_kill(
    kind: str, task: str, root: Path, out: Path, epochs: int, port: int, draw: random.Random
) -> dict[str, Any]:
    """Start or resume a run, kill it after up to three more steps, and report how it ended."""
    ranks, codes = KINDS[kind]
    before = last_good_step(RunFolder(out)) or 0
    processes = start(task, root, out, epochs, ranks, port)
    wanted = before + draw.randint(1, 3)
    while all(process.poll() is None for process in processes) and (last_good_step(RunFolder(out)) or 0) < wanted:
        time.sleep(0.01)
    time.sleep(draw.random() * 0.3)
    if any(process.poll() is not None for process in processes):
        raise SystemExit(f"{task}, {kind}: the run ended before it was killed; give more --epochs")
    workers = [child for process in processes for child in children(process.pid)]
    while not kill(kind, processes, draw):
        time.sleep(0.01)
    began, problems = time.monotonic(), []
    for process in processes:
        try:
            process.wait(max(0.1, began + LIMIT - time.monotonic()))
        except subprocess.TimeoutExpired:
            problems.append(f"not ended after {LIMIT:.0f} s")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - began
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < began + LIMIT:
        time.sleep(0.05)
    problems += [f"worker {pid} is left" for pid in workers if Path(f"/proc/{pid}").exists()]
    found = {process.returncode for process in processes}
    if not found <= codes:
        problems.append(f"exit codes {sorted(found)}")
    for rank in range(ranks):
        text = (out.parent / f"{out.name}-{rank}.txt").read_text()
        if "Traceback" in text or "internal error" in text:
            problems.append(text[-300:])
    if kind != "SIGKILL of the parent" and "SIGKILL of one" not in kind:
        problems += [f"{file.name} is left" for file in out.iterdir() if file.name.startswith(".")]
    return {"kind": kind, "step": last_good_step(RunFolder(out)), "seconds": seconds, "problems": problems}


def differences(one: Path, other: Path) -> list[str]:
    """Tensors that are not the same bits."""
    found = []
    for name in ("last.safetensors", "best.safetensors", "resume.safetensors"):
        tensors, others = load_file(one / name), load_file(other / name)
        different = [key for key in tensors if key not in others or not torch.equal(tensors[key], others[key])]
        found += [f"{name}: {key}" for key in [*different, *(others.keys() - tensors.keys())]]
    return found


def finish(task: str, root: Path, out: Path, epochs: int, ranks: int, port: int) -> None:
    """Run to the end."""
    if any(process.wait() for process in start(task, root, out, epochs, ranks, port)):
        raise SystemExit((out.parent / f"{out.name}-0.txt").read_text())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all tasks, compare, print; with --out write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills for each task")
    parser.add_argument("--tasks", nargs="+", default=list(FIELDS), choices=list(FIELDS))
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="iformer-killing-"))
    draw, ports = random.Random(options.seed), itertools.count(29100 + os.getpid() % 500)
    figures: dict[str, Any] = {}
    try:
        make_images(root / "images")
        make_shapes(root / "shapes", train=12, val=2)
        torch.manual_seed(0)
        save(build(tiny_config()), root / "tiny.safetensors")
        for task in options.tasks:
            kinds = [kind for kind, _ in zip(itertools.cycle(KINDS), range(options.kills), strict=False)]
            kills: list[dict[str, Any]] = []
            different: dict[str, list[str]] = {}
            for ranks in (1, 2):
                whole, killed = root / f"{task}-{ranks}-whole", root / f"{task}-{ranks}-killed"
                finish(task, root, whole, options.epochs, ranks, next(ports))
                of_ranks = [kind for kind in kinds if KINDS[kind][0] == ranks]
                for kind in draw.sample(of_ranks, len(of_ranks)):
                    kills.append(one_kill(kind, task, root, killed, options.epochs, next(ports), draw))
                    print(f"{task}: {kills[-1]}", flush=True)
                finish(task, root, killed, options.epochs, ranks, next(ports))
                different[f"{ranks} ranks"] = differences(whole, killed)
                stray = [file.name for file in killed.iterdir() if file.name.startswith(".")]
                different[f"{ranks} ranks, files left"] = stray
            figures[task] = {
                "kills": len(kills),
                "by kind": dict(Counter(kill["kind"] for kill in kills)),
                "longest seconds to end": max(kill["seconds"] for kill in kills),
                "problems": [kill for kill in kills if kill["problems"]],
                "different": {name: found for name, found in different.items() if found},
            }
            print(f"{task}: {figures[task]}", flush=True)
    finally:
        shutil.rmtree(root)
    if options.out:
        write_record(options.out, figures)
    if any(figure["problems"] or figure["different"] for figure in figures.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
