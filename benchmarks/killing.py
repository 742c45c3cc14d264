"""Kill training, exporting and packing at random moments: what they leave is whole, a resumed run is the same.

Each task is trained on tiny data on the CPU in fp32, by one process with a data worker and by two ranks. One run
is left alone; another is ended again and again (SIGKILL, SIGTERM, two quick SIGINT; of the parent, its worker, one
of the ranks) and started again with --resume. A run that comes to its end before its next kill is compared and
replaced by a new one, so every kill hits a run in progress. Each kill must end all processes within 30 seconds,
with the exit code of its kind and without a traceback. At the end of each run every tensor is compared bit for
bit, and no temporary file is left.

An export is killed while it replaces an artifact, which must stay whole; packing is killed while it writes shards,
which must not be taken for a data set.

    PYTHONPATH=tests python benchmarks/killing.py --kills 20 --out benchmarks/results/killing.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from iformer.bench.record import write_record
from iformer.data.sources import load_data
from iformer.data.sources.shards.packing import verify
from iformer.deploy.artifact import read_record
from iformer.errors import DataError
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

PARENT: dict[str, tuple[int, set[int]]] = {
    "SIGKILL of the parent": (1, {-signal.SIGKILL}),
    "SIGTERM of the parent": (1, {75}),
    "two SIGINT of the group": (1, {130, -signal.SIGINT}),
}
KINDS: dict[str, tuple[int, set[int]]] = {
    **PARENT,
    "SIGKILL of a worker": (1, {1}),
    "SIGTERM of one of two ranks": (2, {75}),
    "SIGKILL of one of two ranks": (2, {1, -signal.SIGKILL}),
}
"""For each kind of kill of a training the number of ranks and the exit codes that the processes may end with."""


class Started:
    """The processes of one command, each in its own process group."""

    def __init__(self, arguments: Sequence[str], log: Path, *, ranks: int = 1) -> None:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
        self.logs = [log.with_name(f"{log.name}-{rank}.txt") for rank in range(ranks)]
        self.processes = []
        command = [sys.executable, "-m", "iformer", *arguments]
        for rank, file in enumerate(self.logs):
            variables = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
            with file.open("wb") as errors:
                options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": errors, "env": env}
                self.processes.append(subprocess.Popen(command, start_new_session=True, **options))

    @property
    def running(self) -> bool:
        """Whether no process has ended."""
        return all(process.poll() is None for process in self.processes)

    @property
    def works(self) -> bool:
        """Return whether the first process has loaded torch, so that its verb has begun."""
        try:
            return "libtorch_cpu" in Path(f"/proc/{self.processes[0].pid}/maps").read_text()
        except OSError:
            return False

    def finish(self) -> None:
        """Wait for the end, which must be a success."""
        if any(process.wait() for process in self.processes):
            raise SystemExit("\n".join(file.read_text() for file in self.logs))

    def kill(self, kind: str, codes: set[int], draw: random.Random) -> dict[str, Any] | None:
        """Send what a kind of kill sends, and report how all ended; None if they came to their end before it."""
        workers = [child for process in self.processes for child in children(process.pid)]
        while self.running and not send(kind, self.processes, draw):
            time.sleep(0.01)
        began, problems = time.monotonic(), []
        for process in self.processes:
            try:
                process.wait(max(0.1, began + LIMIT - time.monotonic()))
            except subprocess.TimeoutExpired:
                problems.append(f"not ended after {LIMIT:.0f} s")
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - began
        while any(map(is_alive, workers)) and time.monotonic() < began + LIMIT:
            time.sleep(0.05)
        problems += [f"worker {pid} is left" for pid in workers if is_alive(pid)]
        found = {process.returncode for process in self.processes}
        if found == {0}:
            return None
        if not found <= codes:
            problems.append(f"exit codes {sorted(found)}")
        for file in self.logs:
            text = file.read_text()
            if "Traceback" in text or "internal error" in text:
                problems.append(text[-2000:])
        return {"kind": kind, "seconds": seconds, "problems": problems}


def free_port() -> str:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended; one that nobody has waited for has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def send(kind: str, processes: list[subprocess.Popen[bytes]], draw: random.Random) -> bool:
    """Send what a kind of kill sends; False if there is nothing to send it to yet."""
    victim = draw.choice(processes)
    if kind.startswith("two SIGINT"):
        for _ in range(2):
            if victim.poll() is None:
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


def hidden(folder: Path) -> list[str]:
    """Names of hidden files and folders."""
    return sorted(file.name for file in folder.iterdir() if file.name.startswith("."))


# --------------------------------------------------------------------------------------------- training


def train(task: str, root: Path, out: Path, epochs: int, ranks: int) -> Started:
    """Start all ranks of a run, or resume it."""
    fields = {**COMMON, **FIELDS[task], "lr_batch": FIELDS[task]["batch_size"]}
    fields |= {"workers": 2 - ranks, "epochs": epochs}
    if ranks == 2 and task == "classify":
        fields["mixup_alpha"] = 0.0
    arguments = ["train", "--task", task, "--data", str(root / ("images" if task == "classify" else "shapes"))]
    arguments += ["--model", str(root / "tiny.safetensors"), "--out", str(out), "--resume", "--device", "cpu"]
    arguments += [argument for name, value in fields.items() for argument in ("--set", f"{name}={value}")]
    return Started([*arguments, "--no-tensorboard"], out, ranks=ranks)


def wait_for_moment(started: Started, out: Path, draw: random.Random, *, ranks: int) -> str:
    """Wait for a random moment of a run: while it starts, or after up to three more steps; returns which."""
    before = last_good_step(RunFolder(out)) or 0
    if ranks == 1 and draw.random() < 0.25:  # a rank that has not met the other one yet waits for it
        while started.running and not started.works:
            time.sleep(0.01)
        time.sleep(draw.random() * 4)
        return "starting"
    wanted = before + draw.randint(1, 3)
    while started.running and (last_good_step(RunFolder(out)) or 0) < wanted:
        time.sleep(0.005)
    time.sleep(draw.random() * draw.choice((0.02, 0.3)))
    return "training"


def differences(one: Path, other: Path) -> list[str]:
    """Tensors that are not the same bits."""
    found = []
    for name in ("last.safetensors", "best.safetensors", "resume.safetensors"):
        tensors, others = load_file(one / name), load_file(other / name)
        different = [key for key in tensors if key not in others or not torch.equal(tensors[key], others[key])]
        found += [f"{name}: {key}" for key in [*different, *(others.keys() - tensors.keys())]]
    return found


def kill_training(task: str, root: Path, kills: int, epochs: int, draw: random.Random) -> dict[str, Any]:
    """Kill runs of a task, compare each run that came to its end with the undisturbed one, and report."""
    found: list[dict[str, Any]] = []
    different: list[str] = []
    runs = 0
    kinds = [kind for kind, _ in zip(itertools.cycle(KINDS), range(kills), strict=False)]
    for ranks in (1, 2):
        whole, killed = root / f"{task}-{ranks}-whole", root / f"{task}-{ranks}-killed"
        train(task, root, whole, epochs, ranks).finish()
        remaining = [kind for kind in kinds if KINDS[kind][0] == ranks]
        draw.shuffle(remaining)
        while True:
            before = hidden(killed) if killed.is_dir() else []  # SIGKILL leaves a lock, which is free at once
            started = train(task, root, killed, epochs, ranks)
            outcome = None
            if remaining:
                moment = wait_for_moment(started, killed, draw, ranks=ranks)
                outcome = started.kill(remaining[0], KINDS[remaining[0]][1], draw)
            else:
                started.finish()
            if outcome is None:  # the run has come to its end
                runs += 1
                different += differences(whole, killed) + [f"{name} is left" for name in hidden(killed)]
                shutil.rmtree(killed)
                if not remaining:
                    break
                continue
            if not remaining[0].startswith(("SIGKILL of the parent", "SIGKILL of one")) and killed.is_dir():
                outcome["problems"] += [
                    f"{name} is left" for name in hidden(killed) if moment != "starting" or name not in before
                ]
            found.append(outcome | {"while": moment, "step": last_good_step(RunFolder(killed))})
            print(f"{task}: {found[-1]}", flush=True)
            del remaining[0]
    return {**summary(found), "runs compared": runs, "different": different}


# -------------------------------------------------------------------------------- exporting and packing


def kill_verb(
    kills: int,
    arguments: Sequence[str],
    log: Path,
    draw: random.Random,
    *,
    wait: Callable[[Started], None],
    check: Callable[[str], list[str]],
) -> dict[str, Any]:
    """Kill a verb that is not a training; `check` says what is wrong with what a kind of kill left."""
    codes = {"SIGTERM of the parent": {143, -signal.SIGTERM}}  # a shell's 143 too, while Python itself starts
    kinds = [kind for kind, _ in zip(itertools.cycle(PARENT), range(kills), strict=False)]
    found: list[dict[str, Any]] = []
    while len(found) < kills:
        kind = kinds[len(found)]
        started = Started(arguments, log)
        wait(started)
        outcome = started.kill(kind, codes.get(kind, PARENT[kind][1]), draw)
        problems = check(kind)
        if outcome is not None:
            outcome["problems"] += problems
            found.append(outcome)
            print(f"{arguments[0]}: {found[-1]}", flush=True)
    return summary(found)


def kill_export(root: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill exports that replace an artifact: the old one or the new one is there and opens."""
    artifact = root / "exports" / "tiny.onnx"
    arguments = ["export", str(root / "tiny.safetensors"), "--to", "onnx", "--out", str(artifact)]
    Started(arguments, root / "export").finish()
    content = artifact.read_bytes()

    def wait(started: Started) -> None:
        while started.running and not started.works:
            time.sleep(0.01)
        time.sleep(draw.random() * 6)

    def check(kind: str) -> list[str]:
        read_record(artifact)  # raises if it is not whole
        names = hidden(artifact.parent)
        if kind.startswith("SIGKILL"):  # the next export removes what this one left
            left_by_sigkill.update(names)
        return [f"{name} is left" for name in names if name not in left_by_sigkill]

    left_by_sigkill: set[str] = set()

    figures = kill_verb(kills, arguments, root / "export", draw, wait=wait, check=check)
    Started(arguments, root / "export").finish()
    left = [f"{name} is left" for name in hidden(artifact.parent)]
    return {**figures, "different": left + ([] if artifact.read_bytes() == content else ["the artifact"])}


def kill_packing(root: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill packing while it writes shards: what it leaves is no data set, or nothing."""
    generator = np.random.default_rng(0)
    for number in range(200):
        folder = root / "many" / ("val" if number % 4 == 0 else "train") / f"class{number // 4 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    shards = root / "shards"

    def arguments(out: Path) -> list[str]:
        return ["convert", str(root / "many"), str(out), "--to", "shards"]

    def wait(started: Started) -> None:
        while started.running and not any(shards.glob("*.tar")):
            time.sleep(0.001)
        time.sleep(draw.random() * 0.2)

    def check(kind: str) -> list[str]:
        problems = []
        try:
            load_data(shards)
            if not (shards / "index.safetensors").is_file():
                problems.append("unfinished shards are read as a data set")
        except DataError:
            if not kind.startswith("SIGKILL") and shards.exists():
                problems.append("files are left")
        shutil.rmtree(shards, ignore_errors=True)
        return problems

    figures = kill_verb(kills, arguments(shards), root / "pack", draw, wait=wait, check=check)
    for out in (shards, root / "whole"):
        Started(arguments(out), root / "pack").finish()
    verify(shards)
    names = sorted(file.name for file in (root / "whole").glob("*.tar"))
    different = [name for name in names if (shards / name).read_bytes() != (root / "whole" / name).read_bytes()]
    return {**figures, "different": different}


def summary(kills: list[dict[str, Any]]) -> dict[str, Any]:
    """What is recorded of kills."""
    return {
        "kills": len(kills),
        "by kind": dict(Counter(kill["kind"] for kill in kills)),
        "longest seconds to end": round(max((kill["seconds"] for kill in kills), default=0), 2),
        "problems": [kill for kill in kills if kill["problems"]],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything, compare, print; with --out write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills for each task")
    parser.add_argument("--deploy-kills", type=int, default=6, help="kills of exports, and as many of packing")
    parser.add_argument("--tasks", nargs="*", default=list(FIELDS), choices=list(FIELDS))
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with SIGINT ignored
    root = Path(tempfile.mkdtemp(prefix="iformer-killing-"))
    draw = random.Random(options.seed)
    figures: dict[str, Any] = {}
    try:
        make_images(root / "images")
        make_shapes(root / "shapes", train=12, val=2)
        torch.manual_seed(0)
        save(build(tiny_config()), root / "tiny.safetensors")
        for task in options.tasks:
            figures[task] = kill_training(task, root, options.kills, options.epochs, draw)
            print(f"{task}: {figures[task]}", flush=True)
        for name, kill in (("export", kill_export), ("pack", kill_packing)):
            figures[name] = kill(root, options.deploy_kills, draw)
            print(f"{name}: {figures[name]}", flush=True)
    finally:
        shutil.rmtree(root)
    if options.out:
        write_record(options.out, figures)
    if any(figure["problems"] or figure["different"] for figure in figures.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
