"""`iformer doctor`: what is installed, what each optional part needs, and what this machine can run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from iformer._version import __version__
from iformer.cli.output import DebugOption, JsonOption, console, note, print_json, print_table
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import one_line, printable

CORE = (
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "huggingface_hub",
    "typer",
    "rich",
    "numpy",
    "Pillow",
    "PyYAML",
)

PARTS: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "train": (
        tuple((name, name) for name in ("accelerate", "tensorboard", "torchmetrics", "matplotlib")),
        "train, eval, pictures of predict",
    ),
    "detect": ((("faster_coco_eval", "faster-coco-eval"),), "detectors: train --task detect, eval"),
    "video": ((("av", "av"),), "predict on videos"),
    "track": ((("trackers", "trackers"), ("supervision", "supervision"), ("av", "av")), "predict --track"),
    "heic": ((("pillow_heif", "pillow-heif"),), "HEIC photographs"),
    "elpv": ((("elpv_dataset", "elpv-dataset"),), "the solar-cell photographs, quickstart"),
    "data": ((("datasets", "datasets"),), "train --data hfds/NAME (Hugging Face)"),
    **{row.name: (row.needs("int8"), f"export --to {row.name}") for row in RUNTIMES.values()},
    "bench": ((("matplotlib", "matplotlib"), ("psutil", "psutil")), "bench, figures of the paper"),
    "web": ((("segno", "segno"), ("trustme", "trustme")), "demo --lan"),
}
"""Packages (name to import, name to install) and purpose of each extra, by the extra's name."""

HUB_TIMEOUT_SECONDS = 5.0


def doctor(
    online: Annotated[bool, typer.Option("--online", help="Also ask the Hugging Face hub.")] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what is installed and what this machine can run.

    For each missing extra, prints the command that installs it.
    """
    findings = {
        "iformer": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in CORE},
        "machine": _machine(),
        "parts": [_part(name) for name in PARTS],
        "hub": _hub_answers() if online else None,
    }
    if json:
        print_json(findings)
    else:
        _print(findings)


def _print(findings: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.text import Text

    out, machine = console(), findings["machine"]

    def line(text: str, head: str = "") -> None:
        out.print(f"{head and f'[bold]{head}[/bold]'}{escape(printable(text))}")

    line(f", Python {findings['python']}, {findings['platform']}", f"iformer {findings['iformer']}")
    out.print()
    line(", ".join(f"{name} {version or 'MISSING'}" for name, version in findings["versions"].items()))
    out.print()
    line(
        f"   {machine['cpu']}, {machine['cores']} usable cores, {machine['threads']} torch threads",
        "CPU",
    )
    line(f"      {_cpu_advice(machine)}")
    for gpu in machine["cuda"]:
        line(f"   {gpu['name']}, {gpu['memory_gib']:.0f} GiB, bf16 {'yes' if gpu['bf16'] else 'no'}", "GPU")
    if not machine["cuda"]:
        line(f"   none that torch can use (torch is built for {machine['built_for']})", "GPU")
    if machine["mps"]:
        line("   available", "MPS")
    rows: list[list[str | Text]] = []
    for part in findings["parts"]:
        versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items() if version)
        state = Text("missing", "yellow") if part["missing"] else Text("ready", "green")
        rows.append([part["name"], state, part["install"] or versions, part["use"]])
    out.print()
    print_table("Optional parts", ["part", "state", "what", "for"], rows, left=4)
    if findings["hub"] is not None:
        hub = findings["hub"]
        out.print()
        line(
            f"Hugging Face hub at {hub['url']}: "
            + ("answers" if hub["reachable"] else f"does not answer ({hub['reason']})")
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _part(name: str) -> dict[str, Any]:
    packages, use = PARTS[name]
    missing = [package for module, package in packages if importlib.util.find_spec(module) is None]
    return {
        "name": name,
        "use": use,
        "versions": {package: _version(package) for _, package in packages},
        "missing": missing,
        "install": f"pip install 'iformer[{name}]'" if missing else None,
    }


def _machine() -> dict[str, Any]:
    import torch

    from iformer.training.records.provenance import cpu_name

    flags = _cpu_flags()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16", "svebf16"}),
        "amx": "amx_tile" in flags,
        "cuda": [
            {"name": gpu.name, "memory_gib": gpu.total_memory / 2**30, "bf16": gpu.major >= 8} for gpu in gpus
        ],
        "built_for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only",
        "mps": torch.backends.mps.is_available(),
    }


def _cpu_advice(machine: dict[str, Any]) -> str:
    instructions = f"vector instructions: {machine['capability']}{', AMX' if machine['amx'] else ''}"
    if machine["amx"] or machine["bf16"]:
        return f"{instructions}; bf16 in hardware: train with --precision bf16"
    return f"{instructions}; no bf16 in hardware: train in fp32"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # only Linux has this file
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}


def _hub_answers() -> dict[str, Any]:
    import http.client
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT

    note(f"asking {ENDPOINT} …")
    try:
        with urllib.request.urlopen(f"{ENDPOINT}/api/models/timm/iformer_t.in1k", timeout=HUB_TIMEOUT_SECONDS):
            return {"url": ENDPOINT, "reachable": True, "reason": None}
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return {"url": ENDPOINT, "reachable": False, "reason": one_line(reason)}
