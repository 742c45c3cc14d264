"""Processes whose standard streams are closed, as those of services."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from iformer.standard_streams import open_closed_streams
open_closed_streams()
with open(sys.argv[1], "w") as file:
    file.write("own ")
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.write(2, b"from C")
    file.write(repr(sys.stdin.read()) + " " + str(file.fileno() > 2))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of Unix")
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_files_do_not_take_the_place_of_closed_streams(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "file.txt"
    shell = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", SCRIPT, str(path)]
    done = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert path.read_text() == "own '' True"
    assert done.stdout == ("" if ">&- 2" in closed else "to stdout\n")
