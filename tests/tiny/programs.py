"""Run the modules of this package as programs: in a new Python, or forked from a process that has imported them.

Importing torch, timm and torchvision takes longer than training a tiny network. `Forked` programs are therefore
forked from `multiprocessing`'s fork server, which imports `PRELOADED` once and computes nothing.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).parent.parent
PRELOADED = [
    "accelerate",
    "torchmetrics.classification",
    "iformer.tasks.detection.evaluate",
    "iformer.tasks.segmentation.evaluate",
    "iformer.tasks.classification.evaluate",
    "iformer.deploy.export",
    "iformer.training.loop",
    "timm.data",
    "tiny.classification",
    "tiny.pyramid",
]
_CONTEXT = multiprocessing.get_context("forkserver") if sys.platform != "win32" else None


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a program: this one's, one thread, no GPU, the tests on the path."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}


def ranks(world_size: int = 2) -> list[dict[str, str]]:
    """Return the variables of each process of a run, as a launcher sets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [
        {**address, "WORLD_SIZE": str(world_size), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(world_size)
    ]


def start(module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start `python -m module` in its own process group, with stderr captured."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment(**variables),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


class Forked:
    """A module or file that runs as a program in its own process group.

    It has the methods of `subprocess.Popen` that the tests use.
    """

    def __init__(self, module: str, *arguments: str, **variables: str) -> None:
        assert _CONTEXT is not None
        with mock.patch.dict(os.environ, environment()):
            _CONTEXT.set_forkserver_preload(PRELOADED)
            forkserver.ensure_running()
        self._stderr = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self._process = _CONTEXT.Process(
            target=_run_module, args=(module, arguments, variables, self._stderr.name)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while the program runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code; None while the program runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[None, bytes]:
        """Wait for the end and return what the program has written to stderr.

        Raises:
            TimeoutError: it still runs; the message has what it has written, and the stacks of its threads.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.send_signal(signal.SIGUSR2)
            self._process.join(2)
            raise TimeoutError(f"still running after {timeout} s:\n{Path(self._stderr.name).read_text()}")
        return None, Path(self._stderr.name).read_bytes()


def _run_module(module: str, arguments: tuple[str, ...], variables: dict[str, str], stderr: str) -> None:
    os.setsid()
    os.environ.update(variables)
    sys.stderr.flush()
    descriptor = os.open(stderr, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 2)
    faulthandler.register(signal.SIGUSR2, file=2)
    sys.argv = [module, *arguments]
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_on_two_processes(module: str, *arguments: str) -> None:
    """Run `module` on two gloo processes and wait until both have ended well."""
    processes = [Forked(module, *arguments, **variables) for variables in ranks()]
    errors = [process.communicate(timeout=400)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


def torchrun_on_two_processes(module: str, *arguments: str) -> None:
    """`run_on_two_processes` with torchrun, in new Pythons."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", module, *arguments]
    finished = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0, finished.stderr
