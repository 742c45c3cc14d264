"""The shipped network's artifacts under ARM instructions beside this machine's: logits, classes and accuracy.

`setup` makes an arm64 user space in a folder: Debian's Python for arm64 through apt (with the sources that this
machine has), and arm64 wheels of this environment's runtimes through pip. Nothing of it is installed on this
machine. `run` exports the network, runs the artifacts on ELPV's test photographs under qemu-user and here, and
compares. The result of each artifact is kept in the folder, so an interrupted run goes on. No time is measured: an
emulator's says nothing about a phone.

    apt-get install qemu-user          # on Debian
    python benchmarks/arm.py setup /tmp/arm64
    python benchmarks/arm.py run /tmp/arm64 --out benchmarks/results/arm.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import iformer
from iformer.bench.record import write_record
from iformer.data.images import read_image
from iformer.data.sources import load_data
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.artifact import is_artifact, read_record
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.models.weights.resolve import load_classifier

RUNNER = Path(__file__).with_name("arm_runner.py")
PACKAGES = ("onnxruntime", "ai-edge-litert", "ncnn", "numpy")

ROWS = (("litert", "int8"), ("litert", "fp32"), ("onnx", "int8"), ("onnx", "fp32"), ("ncnn", "fp32"))
"""The artifacts, and in which order they run; ncnn's Python package has no INT8."""
PHOTOGRAPHS = {"litert int8": 656, "ncnn fp32": 8}
"""Photographs of an artifact, at most; `FEW` for the others."""
FEW = 40

CPU = "cortex-a76"
"""A phone's core of 2018 with the dot products of all newer ones; qemu knows it."""

CPUINFO = """\
processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""
"""The file /proc/cpuinfo of that core. Without it the runtimes read that of the host, and ONNX Runtime crashes."""


def setup(folder: Path) -> None:
    """Make the user space: Debian's Python for arm64, and arm64 wheels of the installed versions."""
    root, apt = folder / "root", folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": str(apt),
        "Dir::State::status": str(apt / "status"),
        "Dir::Cache": str(apt),
    }
    command = ["apt-get", "--quiet", "--yes", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*command, "update"], check=True)
    wanted = ["python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1"]
    subprocess.run([*command, "install", "--download-only", "--no-install-recommends", *wanted], check=True)
    for package in sorted((apt / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(CPUINFO)
    version = guest_python(folder).name.removeprefix("python")
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)] + ["manylinux2014_aarch64"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--only-binary=:all:"]
        + ["--target", str(folder / "site"), "--python-version", version, "--implementation", "cp"]
        + [f"--platform={name}" for name in platforms]
        + [f"{package}=={importlib.metadata.version(package)}" for package in PACKAGES],
        check=True,
    )
    shutil.rmtree(apt)


def guest_python(folder: Path) -> Path:
    """Return the user space's Python, such as `root/usr/bin/python3.11`."""
    found = sorted((folder / "root" / "usr" / "bin").glob("python3.[0-9]*[0-9]"))
    if not found:
        raise SystemExit(f"{folder} has no arm64 Python; run: python benchmarks/arm.py setup {folder}")
    return found[0]


def answers(
    folder: Path, artifact: Path, runtime: str, images: np.ndarray, cpu: str | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return an artifact's logits and what ran it: `cpu` under qemu, or None for this machine."""
    key = f"{read_record(artifact).sha256[:12]}-{cpu or 'host'}-{len(images)}"
    logits, facts, pixels = (folder / "answers" / f"{key}{end}" for end in (".npy", ".json", "-images.npy"))
    if not facts.is_file():
        logits.parent.mkdir(exist_ok=True)
        np.save(pixels, images)
        command: list[Any] = [sys.executable]
        environment = dict(os.environ)
        if cpu is not None:
            qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
            if qemu is None:
                raise SystemExit("qemu-aarch64 is not installed; on Debian: apt-get install qemu-user")
            command = [qemu, "-cpu", cpu, "-L", folder / "root", guest_python(folder)]
            environment = {"PYTHONPATH": str(folder / "site"), "PATH": os.environ["PATH"]}
        command += [RUNNER, runtime, artifact, pixels, logits]
        done = subprocess.run(
            [str(word) for word in command], env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        facts.write_text(done.stdout.strip().splitlines()[-1])
        pixels.unlink()
    return np.load(logits), json.loads(facts.read_text())


def export(folder: Path, runtime: str, precision: str) -> Path:
    """Return the shipped network's artifact, which is exported once."""
    path = folder / "artifacts" / f"elpv_{precision}{RUNTIMES[runtime].suffix}"
    if not is_artifact(path):
        calibration = "elpv" if precision == "int8" else None
        iformer.export("elpv", runtime, out=path, precision=precision, calibration=calibration)
    return path


def compared(arm: np.ndarray, here: np.ndarray, network: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return errors, agreement and accuracy of N x K logits from ARM, from this machine and from PyTorch."""

    def error(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
        largest = float(np.abs(found - expected).max())
        return {"max abs error": largest, "max relative error": largest / float(np.abs(expected).max())}

    first = {"arm": arm.argmax(1), "x86": here.argmax(1), "network": network.argmax(1)}
    return {
        "photographs": len(arm),
        "arm to x86": error(arm, here) | {"top-1 agreement": float((first["arm"] == first["x86"]).mean())},
        "arm to network": error(arm, network),
        "x86 to network": error(here, network),
        "top-1": {name: 100 * float((classes == labels).mean()) for name, classes in first.items()},
    }


def run(folder: Path, cpu: str, most: int, rows: Sequence[str]) -> dict[str, Any]:
    """Run every artifact under ARM instructions and here; print a line for each."""
    model = load_classifier("elpv")
    split = load_data("elpv").val
    decode = eval_transform(model.metadata.preprocessing)
    pixels = torch.stack([decode(read_image(path)) for path in split.files])
    # every 20th first, so that few photographs are of both classes and of all modules
    order = [index for start in range(20) for index in range(start, len(pixels), 20)]
    pixels = pixels[order]
    labels = np.array([sample.label for sample in split.samples])[order]
    normalize = Normalize(model.metadata.preprocessing)
    with torch.inference_mode():
        network = torch.cat([model(normalize(chunk)) for chunk in torch.split(pixels, 16)]).numpy()
    images = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    figures: dict[str, Any] = {"cpu": cpu, "qemu": qemu_version(), "rows": {}}
    for runtime, precision in ROWS:
        name = f"{runtime} {precision}"
        if name not in rows:
            continue
        count = min(PHOTOGRAPHS.get(name, FEW), most, len(images))
        artifact = export(folder, runtime, precision)
        arm, facts = answers(folder, artifact, runtime, images[:count], cpu)
        here, _ = answers(folder, artifact, runtime, images[:count], None)
        row = compared(arm, here, network[:count], labels[:count]) | {"guest": facts}
        figures["rows"][name] = row
        print(f"{name:12} {row['arm to x86']} {row['top-1']}", flush=True)
    return figures


def qemu_version() -> str:
    """Return the first line of `qemu-aarch64 --version`."""
    program = shutil.which("qemu-aarch64") or "qemu-aarch64-static"
    done = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[0]


def main() -> None:
    """Set up the user space, or run the artifacts and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [f"{runtime} {precision}" for runtime, precision in ROWS]
    parser.add_argument("command", choices=("setup", "run"))
    parser.add_argument("folder", type=Path, help="the user space and the results")
    parser.add_argument("--cpu", default=CPU, help="a core that qemu-aarch64 knows: -cpu help lists them")
    parser.add_argument("--photographs", type=int, default=656, help="of each artifact, at most")
    parser.add_argument("--rows", nargs="+", default=names, choices=names)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.command == "setup":
        setup(options.folder.resolve())
        return
    figures = run(options.folder.resolve(), options.cpu, options.photographs, options.rows)
    if options.out:
        write_record(options.out, figures)


if __name__ == "__main__":
    main()
