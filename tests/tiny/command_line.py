"""Run a command line in this process."""

from __future__ import annotations

import pytest

from iformer.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command line."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def only_line(text: str) -> str:
    """Return the only line of the text."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]
