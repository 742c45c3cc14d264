"""`iformer doctor`: what is installed, what each missing part needs, what this machine can run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.text import Text

from iformer._version import __version__
from iformer.cli.output import DebugOption, JsonOption, console, note, print_json
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.tables import terminal_table

CORE = (
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "huggingface_hub",
    "typer",
    "rich",
    "PyYAML",
    "numpy",
    "Pillow",
)

HUB_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something optional: the packages it needs (name to import, name to install) and what it is for."""

    name: str
    packages: tuple[tuple[str, str], ...]
    use: str

    @property
    def install(self) -> str:
        """The line that installs it."""
        return f"pip install 'iformer[{self.name}]'"


PARTS = (
    Part(
        name="train",
        packages=(
            ("accelerate", "accelerate"),
            ("tensorboard", "tensorboard"),
            ("torchmetrics", "torchmetrics"),
            ("matplotlib", "matplotlib"),
        ),
        use="train, eval, pictures of predict",
    ),
    Part(
        name="detect",
        packages=(("faster_coco_eval", "faster-coco-eval"),),
        use="train, eval, predict --task detect",
    ),
    Part(name="video", packages=(("av", "av"),), use="predict on videos"),
    Part(
        name="elpv",
        packages=(("elpv_dataset", "elpv-dataset"),),
        use="the solar-cell photographs, quickstart",
    ),
    Part(
        name="data",
        packages=(("datasets", "datasets"),),
        use="train --data hfds/NAME (Hugging Face)",
    ),
    *(
        Part(name=runtime.name, packages=runtime.needs("int8"), use=f"export --to {runtime.name}")
        for runtime in RUNTIMES.values()
    ),
    Part(
        name="bench",
        packages=(("matplotlib", "matplotlib"), ("psutil", "psutil")),
        use="bench, figures of the paper",
    ),
)


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also see whether the Hugging Face hub answers.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """What is installed, what each missing part needs, what this machine can run."""
    findings = {
        "iformer": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in CORE},
        "machine": _machine(),
        "parts": [_part(part) for part in PARTS],
        "hub": _hub_answers() if online else None,
    }
    if json:
        print_json(findings)
    else:
        _print(findings)


def _print(findings: dict[str, Any]) -> None:
    out = console()
    machine = findings["machine"]
    out.print(f"[bold]iformer {findings['iformer']}[/bold], Python {findings['python']}, {findings['platform']}")
    out.print("\n" + ", ".join(f"{name} {version or 'MISSING'}" for name, version in findings["versions"].items()))
    out.print(
        f"\n[bold]CPU[/bold]   {machine['cpu']}, {machine['cores']} cores for this process, "
        f"{machine['threads']} threads in torch"
    )
    out.print(f"      {_cpu_advice(machine)}")
    for gpu in machine["cuda"]:
        out.print(
            f"[bold]GPU[/bold]   {gpu['name']}, {gpu['memory_gib']:.0f} GiB, bf16 {'yes' if gpu['bf16'] else 'no'}"
        )
    if not machine["cuda"]:
        out.print(f"[bold]GPU[/bold]   none that torch can use (torch is built for {machine['built_for']})")
    if machine["mps"]:
        out.print("[bold]MPS[/bold]   available")
    rows: list[list[str | Text]] = []
    for part in findings["parts"]:
        versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items() if version)
        missing = part["install"]
        rows.append(
            [
                part["name"],
                Text("missing", "yellow") if missing else Text("ready", "green"),
                missing or versions,
                part["use"],
            ]
        )
    out.print()
    out.print(terminal_table("Optional parts", ["part", "state", "what", "for"], rows, left=4))
    if findings["hub"] is not None:
        hub = findings["hub"]
        state = "answers" if hub["reachable"] else f"does not answer ({hub['reason']})"
        out.print(f"\nHugging Face hub at {hub['url']}: {state}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _part(part: Part) -> dict[str, Any]:
    missing = [name for module, name in part.packages if importlib.util.find_spec(module) is None]
    return {
        "name": part.name,
        "use": part.use,
        "versions": {name: _version(name) for _, name in part.packages},
        "missing": missing,
        "install": part.install if missing else None,
    }


def _machine() -> dict[str, Any]:
    import torch

    cuda = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            cuda.append(
                {
                    "name": properties.name,
                    "memory_gib": properties.total_memory / 2**30,
                    "bf16": properties.major >= 8,
                }
            )
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"} != set(),
        "amx": "amx_tile" in _cpu_flags(),
        "cuda": cuda,
        "built_for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only",
        "mps": torch.backends.mps.is_available(),
    }


def _cpu_advice(machine: dict[str, Any]) -> str:
    instructions = f"vector instructions: {machine['capability']}"
    if machine["amx"]:
        return f"{instructions}, AMX; bf16 in hardware: training with --precision bf16 pays"
    if machine["bf16"]:
        return f"{instructions}; bf16 in hardware: training with --precision bf16 pays"
    return f"{instructions}; no bf16 in hardware: fp32 is the precision for this CPU"


def _cpu_name() -> str:
    for key in ("model name", "Model"):
        for line in _cpuinfo():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return {flag for line in _cpuinfo() if line.startswith(("flags", "Features")) for flag in line.split()}


def _cpuinfo() -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


def _hub_answers() -> dict[str, Any]:
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT

    note(f"asking {ENDPOINT} …")
    try:
        with urllib.request.urlopen(f"{ENDPOINT}/api/models/timm/iformer_t.in1k", timeout=HUB_TIMEOUT_SECONDS):
            return {"url": ENDPOINT, "reachable": True, "reason": None}
    except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return {"url": ENDPOINT, "reachable": False, "reason": str(reason)}
