"""Run the benchmarks of speed on a CPU one after the other, and append their records for this machine.

Let nothing else run meanwhile. A script that fails, for example because its runtime is not installed, is named at
the end, and the others run all the same.

    python benchmarks/suite.py quick    # about ten minutes on two cores
    python benchmarks/suite.py full     # hours
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Step:
    """A script with its settings."""

    script: str
    quick: str
    full: str = ""
    result: str = ""
    """Name of its file of records without `.json`; empty for the script's name."""


STEPS = (
    Step(script="inference", quick="--rounds 15", full="--threads 1 2 --batches 1 8"),
    Step(
        script="runtimes",
        quick="--models iformer_m --runtimes onnx openvino --rounds 10",
        full="--models iformer_t iformer_s iformer_m iformer_l --precision int8",
    ),
    Step(
        script="predict_rate",
        result="predict_rate_iformer_m",
        quick="--model iformer_m --images 128 --rounds 3",
        full="--model iformer_m",
    ),
    Step(
        script="predict_rate",
        result="predict_rate_iformer_t",
        quick="--model iformer_t --images 128 --rounds 3",
        full="--model iformer_t",
    ),
    Step(script="training_step", quick="--rounds 5"),
    Step(
        script="training_loop",
        quick="--models iformer_t --rounds 3 --loop-rounds 2 --loop-steps 4 --images 192",
        full="--rounds 15 --loop-rounds 7",
    ),
    Step(script="light", quick="--sizes 320 --rounds 5"),
    Step(script="start_up", quick="--rounds 2"),
    Step(script="paper_ratios", quick="--rounds 10"),
    Step(
        script="high_resolution",
        quick="--runtimes onnxruntime --sizes 512 --rounds 5",
        full="--rounds 15 6 2",
    ),
    Step(script="depthwise", quick="--runtimes onnx --rounds 5"),
)


def run(steps: Sequence[Step], results: Path, *, quick: bool) -> list[str]:
    """Run every step in a process of its own; return the commands that failed."""
    failed = []
    for step in steps:
        out = results / f"{step.result or step.script}.json"
        words = shlex.split(step.quick if quick else step.full)
        command = [f"benchmarks/{step.script}.py", *words, "--out", str(out)]
        print(f"python {shlex.join(command)}", flush=True)
        start = time.perf_counter()
        status = subprocess.run([sys.executable, *command], cwd=HERE.parent, check=False).returncode
        print(f"{(time.perf_counter() - start) / 60:.1f} minutes", flush=True)
        if status:
            failed.append(shlex.join(command))
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", choices=("quick", "full"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the records")
    options = parser.parse_args(arguments)
    failed = run(STEPS, options.results, quick=options.settings == "quick")
    for command in failed:
        print(f"failed: {command}")
    print("python benchmarks/tables.py writes the new figures into the pages")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
