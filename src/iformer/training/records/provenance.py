"""Provenance of a trained network: command, versions, device, data, recipe."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from iformer import _version
from iformer._version import __version__
from iformer.config.checking import plain_defaults
from iformer.config.network import NetworkConfig
from iformer.config.recipe import Recipe
from iformer.errors import counted
from iformer.training.distributed import check_ranks_agree
from iformer.training.job import TrainJob
from iformer.training.state import PATH_FIELDS, flat

_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy")


_FREE_TO_CHANGE = (
    "workers",
    "cache",
    "eval_batch_size",
    "checkpoint_minutes",
    "checkpoint_steps",
    "log_every",
    "compile",
    "cuda_graphs",
    "parallel",
)
"""Recipe fields that a resumed run may change, because they affect the weights by rounding at most."""


_FREE_ON_RANKS = ("workers", "cache", "checkpoint_minutes", "compile", "cuda_graphs")
"""Recipe fields that may differ between the ranks of a run, because they fit one machine or are exchanged."""


def run_identity(job: TrainJob, precision: str) -> dict[str, Any]:
    """Return the settings and data that a resumed run must share with the original run, as nested plain values.

    Args:
        job: the run.
        precision: the resolved precision: `fp32`, `bf16` or `fp16`, not `auto`, which depends on the machine.
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


def agreed_identity(job: TrainJob, precision: str) -> dict[str, Any]:
    """Return `run_identity`, once all ranks have the same settings and data. Every rank must call it.

    Raises:
        UserError: two ranks differ; see `check_ranks_agree`.
    """
    identity = run_identity(job, precision)
    check_ranks_agree(rank_values(job, identity))
    return identity


def rank_values(job: TrainJob, identity: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the settings and data that all ranks of a run must share, for `check_ranks_agree`.

    Args:
        job: the run.
        identity: see `run_identity`.
    """
    recipe = {name: value for name, value in job.recipe.to_plain().items() if name not in _FREE_ON_RANKS}
    splits = {
        name: f"{counted(len(images), 'image')} ({identity['data'][f'{name}_fingerprint'][:8]})"
        for name, images in (("train", job.data.train), ("val", job.data.val))
    }
    values = {
        "task": job.recipe.task,
        "data": {"classes": identity["data"]["classes"], **splits},
        **{name: value for name, value in identity.items() if name != "data"},
        "recipe": {**recipe, "precision": identity["recipe"]["precision"]},
        "resume": job.resume,
    }
    texts = {name: (_rank_text(name, value),) for name, value in flat(values).items()}
    # machines may mount the folder at one path and resolve it to several, or resolve several paths to one
    return {**texts, "out": (os.path.abspath(job.folder), os.path.realpath(job.folder))}


def _rank_text(name: str, value: Any) -> str:
    """Return a value as a short text; a long value is cut, and its hash is added."""
    text = str(value)
    if name in PATH_FIELDS and os.path.exists(text):  # machines may keep copies in different folders
        return Path(text).name
    return text if len(text) <= 60 else f"{text[:40]}… ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def identity_defaults(recipe: Recipe) -> dict[str, Any]:
    """Return default values for the fields of `run_identity` that a state of an older version may lack."""
    defaults = plain_defaults(type(recipe))
    return {"recipe": {name: value for name, value in defaults.items() if name not in _FREE_TO_CHANGE}}


def run_config(
    job: TrainJob, *, device: torch.device, precision: str, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Return all settings of a run as plain values for `config.yaml`; `provenance` is that of `run_provenance`."""
    return {
        "task": job.task.name,
        "data": job.data_name,
        "model": job.model_name,
        "recipe_name": job.recipe_name,
        **job.data_options,
        "recipe": job.recipe.to_plain(),
        "preprocessing": job.preprocessing.to_plain(),
        "class_names": list(job.task.class_names),
        "working_directory": _working_directory(),
        "precision": precision,
        "device": describe_device(device),
        **{name: provenance[name] for name in (*_ORIGIN, "resumed") if name in provenance},
    }


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was removed; absolute paths still work
        return None


def run_provenance(
    job: TrainJob, identity: dict[str, Any], starts: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the provenance stored in checkpoints: `origin`, the data with its fingerprints, and the recipe.

    Args:
        job: the run.
        identity: see `run_identity`.
        starts: records of the earlier starts of a resumed run; see `iformer.training.records.history.read_starts`.
            The origin is that of the first one. `resumed` lists those of the others and of this process, with
            `versions` only if they differ.
    """
    origins = [{name: record.get(name) for name in _ORIGIN} for record in starts] + [origin()]
    for later in origins[1:]:
        if later["versions"] == origins[0]["versions"]:
            del later["versions"]
    return {
        **origins[0],
        **({"resumed": origins[1:]} if starts else {}),
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


_ORIGIN = ("command", "commit", "versions", "created")


def origin() -> dict[str, Any]:
    """Return command, commit (None outside a git checkout of this package), versions and time (UTC)."""
    is_ours = Path(sys.argv[0]).stem in ("iformer", "__main__")
    return {
        "command": shlex.join(["iformer" if is_ours else sys.argv[0], *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {"iformer": __version__, "python": platform.python_version(), **_versions()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_device(device: torch.device) -> str:
    """Return a description of a device, such as `CPU (AMD EPYC …, 2 threads)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"CPU ({cpu_name()}, {threads} thread{'' if threads == 1 else 's'})"


def cpu_name() -> str:
    """Return the processor's name from /proc/cpuinfo, or else from Python's `platform`."""
    lines = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
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
    package = Path(_version.__file__).parent
    try:
        git = ["git", "-C", str(package)]
        root = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=10)
        # the package may be installed in a virtual environment inside another project's checkout
        if root.returncode or Path(root.stdout.strip()) / "src" / "iformer" != package:
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() if head.returncode == 0 else None
