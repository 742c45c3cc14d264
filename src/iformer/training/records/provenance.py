"""Where a trained network comes from, and what it was trained on."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from iformer._version import __version__
from iformer.config.checking import plain_defaults
from iformer.config.network import NetworkConfig
from iformer.config.recipe import Recipe
from iformer.training.job import TrainJob

_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy")


_FREE_TO_CHANGE = (
    "workers",
    "cache",
    "eval_batch_size",
    "checkpoint_minutes",
    "checkpoint_steps",
    "log_every",
    "compile",
    "parallel",
)
"""Recipe fields that a resumed run may have otherwise: they change weights by rounding at most."""


def run_identity(job: TrainJob, precision: str) -> dict[str, Any]:
    """What has to be the same for a run to be resumed, as nested plain values.

    Args:
        job: the run.
        precision: as resolved; `auto` may mean something else on another machine.
    """
    recipe = {name: value for name, value in job.recipe.to_plain().items() if name not in _FREE_TO_CHANGE}
    config = getattr(job.model, "config", None)
    return {
        "model": job.model_name,
        "network": config.to_plain() if isinstance(config, NetworkConfig) else {},
        "recipe": {**recipe, "precision": precision},
        "preprocessing": job.preprocessing.to_plain(),
        "data": {
            "classes": list(job.data.train.class_names),
            "train_fingerprint": job.data.train.fingerprint(),
            "val_fingerprint": job.data.val.fingerprint(),
        },
        **job.identity,
    }


def identity_defaults(recipe: Recipe) -> dict[str, Any]:
    """The part of `run_identity` that a saved run may lack, because its version had not all of the fields."""
    defaults = plain_defaults(type(recipe))
    return {"recipe": {name: value for name, value in defaults.items() if name not in _FREE_TO_CHANGE}}


def run_config(job: TrainJob, *, device: torch.device, precision: str) -> dict[str, Any]:
    """A run's settings with nothing left open, as plain values for `config.yaml`."""
    return {
        "task": job.task.name,
        "data": job.data_name,
        "model": job.model_name,
        "recipe_name": job.recipe_name,
        **job.data_options,
        "recipe": job.recipe.to_plain(),
        "preprocessing": job.preprocessing.to_plain(),
        "class_names": list(job.task.class_names),
        "precision": precision,
        "device": describe_device(device),
        **origin(),
    }


def run_provenance(job: TrainJob, identity: dict[str, Any]) -> dict[str, Any]:
    """Where the network of a run comes from, as plain values for its checkpoints.

    `origin`, the data with its fingerprints (see `run_identity`) and the recipe.
    """
    return {
        **origin(),
        "model": job.model_name,
        "data": {
            "name": job.data_name,
            "train_images": len(job.data.train),
            "val_images": len(job.data.val),
            "train_fingerprint": identity["data"]["train_fingerprint"],
            "val_fingerprint": identity["data"]["val_fingerprint"],
            **job.data_options,
        },
        "recipe": {"name": job.recipe_name, **job.recipe.to_plain()},
        **job.identity,
    }


def origin() -> dict[str, Any]:
    """Command, commit of this package's source (None outside of a checkout), versions and time (UTC)."""
    is_ours = Path(sys.argv[0]).stem in ("iformer", "__main__")
    return {
        "command": shlex.join(["iformer" if is_ours else sys.argv[0], *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {"iformer": __version__, "python": platform.python_version(), **_versions()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_device(device: torch.device) -> str:
    """A device in words, with what decides its speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"CPU ({_cpu_name()}, {threads} thread{'' if threads == 1 else 's'})"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    folder = Path(__file__).parent
    try:
        git = ["git", "-C", str(folder)]
        root = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=10)
        # a package installed into a virtual environment inside of some other project's checkout is not of it
        if root.returncode or Path(root.stdout.strip()) / "src" / "iformer" != folder.parent:
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() if head.returncode == 0 else None
