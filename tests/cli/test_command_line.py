"""The command line itself: help, completion, exit codes, and errors of one line."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from iformer.cli import doctor as doctor_verb
from iformer.cli import output
from iformer.cli.main import VERBS, build_app, main
from iformer.errors import UserError
from tiny.command_line import only_line, run


def test_help_and_info_list_without_importing_torch() -> None:
    code = (
        "import sys; from iformer.cli.main import main; main(['--help']); main(['info']); "
        "print([m for m in ('torch', 'timm', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_json_and_debug(verb: str) -> None:
    result = CliRunner().invoke(build_app(), [verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert "--json" in result.output
    assert "--debug" in result.output


@pytest.mark.parametrize(
    ("words", "completed"), [("iformer pre", ["pretrain", "predict"]), ("iformer train --ep", ["--epochs"])]
)
def test_the_shell_completes_verbs_and_options(
    words: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_IFORMER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == completed


def test_completion_installs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["--install-completion"])
    assert not stop.value.code
    assert str(tmp_path / ".bash_completions" / "iformer.sh") in (tmp_path / ".bashrc").read_text()
    assert "complete" in (tmp_path / ".bash_completions" / "iformer.sh").read_text()
    monkeypatch.setenv("HOME", str(tmp_path / ".bashrc" / "none"))
    capsys.readouterr()
    assert main(["--install-completion"]) == 1
    assert only_line(capsys.readouterr().err).startswith("error: ")


@pytest.mark.parametrize(
    ("verb", "common", "rare"), [("train", "--epochs", "--seed"), ("export", "--to", "--opset")]
)
def test_help_all_shows_the_rare_options_too(verb: str, common: str, rare: str) -> None:
    app, wide = build_app(), {"COLUMNS": "100", "TERM": "dumb"}
    short, whole, again = (
        CliRunner().invoke(app, [verb, flag], env=wide).output for flag in ("--help", "--help-all", "--help")
    )
    assert common in short
    assert rare not in short
    assert "--help-all shows" in short
    assert len(short.splitlines()) <= 66
    assert common in whole
    assert rare in whole
    assert again == short


def test_python_m_iformer() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iformer", "info", "iformer_q"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "did you mean" in only_line(done.stderr)


def test_ctrl_c_while_the_program_ends_prints_no_traceback() -> None:
    code = """
import atexit, os, signal, sys, time
from iformer.cli.main import main
sys.argv = ["iformer", "--version"]
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1)))
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_and_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("iformer ")
    code, out, _ = run(capsys)
    assert code == 0
    assert "predict" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predct"], "predict"),
        (["info", "--sise", "3"], "--sise"),
        (["predict"], "IMAGES"),
        (["predict", "x.png", "--top-k", "0"], "--top-k"),
        (["predict", "x.png", "--top-k", "many"], "--top-k"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in only_line(err)
    assert "--help" in err


@pytest.mark.parametrize("spelling", [["--part", "all"], ["--part=all"]])
def test_an_old_spelling_of_an_option_is_taken_with_a_note(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, spelling: list[str]
) -> None:
    code, _, err = run(capsys, "eval", checkpoint, "--data", "nowhere", *spelling)
    assert code == 1
    note, error = err.splitlines()
    assert note == "note: --part is now --split"
    assert "nowhere" in error
    code, _, err = run(capsys, "info", *spelling)
    assert code == 2, "a verb without --split has no --part either"
    assert "--part" in only_line(err)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("two\nlines"), "error: two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "error: No space left on device: out/x"),
        (MemoryError(), "error: out of memory"),
        (
            RuntimeError("what"),
            "internal error: RuntimeError: what; run again with --debug for the traceback",
        ),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], error: Exception, line: str) -> None:
    assert output.report_error(error) == 1
    assert only_line(capsys.readouterr().err) == line


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"batch_size": None, "size": None}, "; a smaller --batch-size or --size needs less"),
        ({"batch": None, "json": False}, "; a smaller --batch needs less"),
        ({"half": False}, ""),
    ],
)
def test_a_lack_of_memory_names_options_that_the_verb_has(
    capsys: pytest.CaptureFixture[str], options: dict[str, Any], hint: str
) -> None:
    def verb(**options: Any) -> None:
        raise MemoryError

    with pytest.raises(typer.Exit):
        output.with_clear_errors(verb)(**options)
    assert only_line(capsys.readouterr().err) == f"error: out of memory{hint}"


def test_debug_shows_the_traceback_and_ctrl_c_is_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(capsys, "info", "nothing", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("error: unknown model 'nothing'")

    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor_verb, "_machine", interrupted)
    code, _, err = run(capsys, "doctor")
    assert code == 130
    assert only_line(err) == "interrupted"
