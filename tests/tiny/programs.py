"""Start the modules of this package as programs, in one process or in two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a program: this one's, one thread, no GPU, the tests on the path."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}


def start(module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start `python -m module` in its own process group, with stderr captured."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment(**variables),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run_on_two_processes(module: str, *arguments: str) -> None:
    """Run `module` on two gloo processes and wait until both have ended well."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", module, *arguments]
    finished = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0, finished.stderr
