"""Output is escaped for every encoding of the terminal; exit codes of a process."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.text import Text
from typer.main import get_command

from iformer.cli import output
from iformer.cli.arguments import RENAMED_OPTIONS
from iformer.cli.main import VERBS, build_app, main
from iformer.config.reference import recipe_fields
from iformer.errors import UserError
from iformer.tasks.registry import TASKS

SOURCE = Path(output.__file__).parents[1]
EVIL = "a\x1b]0;owned\x07\x1b[2Jb\r\u202ec\udce9"
SHOWN = r"a\x1b]0;owned\x07\x1b[2Jb\r\u202ec\udce9"


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"{EVIL}\nsecond line")
    output.note(EVIL)
    output.report_error(UserError(f"unknown file {EVIL}"))
    output.console().print(Text(EVIL), soft_wrap=True)
    output.print_json({"file": EVIL})
    out, err = capsys.readouterr()
    by_rich = SHOWN.replace(r"\x07", "").replace(r"\r", "")  # rich leaves these two out
    assert out.splitlines()[:3] == [SHOWN, "second line", by_rich]
    on_one_line = SHOWN.replace(r"\r", " ")
    assert err.splitlines() == [SHOWN, f"error: unknown file {on_one_line}"]
    assert json.loads("\n".join(out.splitlines()[3:])) == {"file": EVIL}


def test_no_verb_prints_past_the_escaping() -> None:
    for path in sorted((SOURCE / "cli").glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        bare = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        allowed = {"output.py": 3, "main.py": 1}  # the functions that escape, and typer's own help
        assert len(bare) <= allowed.get(path.name, 0), (path.name, bare)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_characters_that_the_terminal_lacks_are_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    with output.process_settings():
        output.say("犬")
        output.console().print("☃ 🐱")
        output.note("caf\udce9")
    texts = [stream.buffer.getvalue().decode(encoding) for stream in (stdout, stderr)]  # type: ignore[attr-defined]
    if encoding == "utf-8":
        assert texts == ["犬\n☃ 🐱\n", "caf\\udce9\n"]
    else:
        assert texts[0].splitlines()[0] == r"\u72ac"
        assert texts[0].isascii()
        assert texts[1] == "caf\\udce9\n"


def test_messages_name_only_options_that_exist() -> None:
    """Every `--option` in a text of the package is an option of some verb, or of another program that it names."""
    known = {"--help", "--help-all", "--version"}
    commands = get_command(build_app()).commands  # type: ignore[attr-defined]
    for verb in VERBS:
        for parameter in commands[verb].params:
            known |= set(parameter.opts) | set(parameter.secondary_opts)
    others = {"--show-toplevel", "--force-reinstall", *RENAMED_OPTIONS}  # of git and of pip; old spellings
    others |= {
        "--headless",
        "--no-first-run",
        "--enable-unsafe-webgpu",
        "--no-sandbox",
        "--user-data-dir",
    }  # Chromium
    others |= {"--disable-background-networking", "--disable-component-update", "--disable-sync"}
    others |= {"--directory"}  # of `python -m http.server`
    unknown = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", node.value):
                    if option not in known | others:
                        unknown.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {option}")
    assert unknown == []


def test_messages_set_only_fields_that_exist() -> None:
    """Every `--set FIELD=…` in a text of the package sets a field of some recipe."""
    known = {field.name for row in TASKS.values() for field in recipe_fields(row.recipe_class)}
    known |= {name.rpartition(".")[2] for name in known}  # a section's name may be left out
    found = {
        name for path in SOURCE.rglob("*.py") for name in re.findall(r"--set ([a-z][a-z_.]*)=", path.read_text())
    }
    assert found
    assert found <= known


TERMINATED = r"""
import os, sys, time
from pathlib import Path
from iformer.cli import doctor, main, output
from iformer.files import replacing

def slow():
    with replacing(Path(sys.argv[1])) as file:
        file.write(b"half")
        os.fork()  # a worker of the process
        os.write(1, b"ready\n")
        time.sleep(60)

doctor._machine = slow
sys.exit(main.main(["doctor"]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_sigterm_ends_a_verb_with_143_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, str(tmp_path / "file")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "terminated\n")
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # the worker ends too
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")


DURING_AN_IMPORT = r"""
import os, sys

def send(event, arguments):
    if event == "import" and arguments[0] == "numpy.linalg" and not sent:
        sent.append(True)
        os.kill(os.getpid(), int(sys.argv[1]))

sent = []
sys.addaudithook(send)
from iformer.cli.main import main
assert "numpy" not in sys.modules
sys.exit(main(["predict", "nothing.png", "--weights", "nothing.safetensors"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_numpy_is_imported(number: signal.Signals, code: int) -> None:
    """PyTorch, where it imports numpy itself, drops the exception and goes on with half of numpy."""
    command = [sys.executable, "-c", DURING_AN_IMPORT, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, {130: "interrupted", 143: "terminated"}[code])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_sigterm_ends_the_verb_and_a_later_one_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []

    class Lost:
        def __del__(self) -> None:  # Python drops exceptions of destructors
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    @output.with_clear_errors
    def verb(later: bool) -> None:
        Lost()
        os.kill(os.getpid(), signal.SIGTERM)  # ignored: the clean-up goes on
        events.append("went on")
        if later:
            monkeypatch.setattr(output.time, "monotonic", lambda: time.perf_counter() + 1e9)
            os.kill(os.getpid(), signal.SIGTERM)
            events.append("too far")

    for later in (False, True):
        with pytest.raises(output.Terminated), output.process_settings():
            verb(later)
    assert events == ["went on", "went on"]


def test_sigterm_s_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("columns", ["0", "1", "-1", "abc", "10000000000"])
def test_a_terminal_without_columns_loses_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    with monkeypatch.context() as changed:  # pytest's own lines are as long as COLUMNS says
        changed.setenv("COLUMNS", columns)
        output.console().print("top-1 82.50 %")
    assert capsys.readouterr().out == "top-1 82.50 %\n"


def test_a_converter_that_catches_everything_does_not_hide_sigterm() -> None:
    @output.with_clear_errors
    def export() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except BaseException:
            raise ValueError("the conversion failed") from None

    with pytest.raises(output.Terminated), output.process_settings():
        export()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
