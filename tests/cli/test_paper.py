"""`iformer paper`: the formats of a table, a figure, and invalid requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iformer.cli.main import main
from iformer_paper.tables import flat_rows, paper_table


def test_a_table_on_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["paper", "table", "10"]) == 0
    out = capsys.readouterr().out
    assert "Table 10" in out
    assert "arXiv 2501.15369" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("FFN Width"))
    assert row == ["FFN", "Width", "8.6", "8.569", "-0.4", "1.62", "1.6183", "-0.1", "1.07", "79.8"]
    assert "more than 1 % from the print, Baseline" in out


def test_no_number_is_lost_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["paper", "table", "7"]) == 0
    out = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert all(number in out for number in ("10.342", "1.7917", "+3.4", "80.4"))


@pytest.mark.parametrize("number", [5, 9, 17, 18])
def test_words_are_whole_in_80_columns(
    number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["paper", "table", str(number)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    shown = paper_table(number)
    models = [cell for section in shown.sections for row in flat_rows(section)[1] for cell in row[0].split()]
    assert models
    assert set(models) <= set(out.split())


def test_json_csv_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "table", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["network"] for row in shown["sections"][0]["rows"]] == ["mha", "SHA"]
    assert main(["paper", "table", "1", "--csv"]) == 0
    assert capsys.readouterr().out.startswith("model,latency_ms,speedup_x,top1_pct,counted_params_m")
    assert main(["paper", "table", "1", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("## Table 1. ")


def test_a_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["paper", "figure", "1", "--out", str(tmp_path / "new"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["file"] == str(tmp_path / "new" / "figure_1.png")
    assert Path(shown["file"]).read_bytes().startswith(b"\x89PNG")
    assert any(value["model"] == "iFormer-M" for value in shown["values"])


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["table", "19"], 1, "the paper has no table 19"),
        (["figure", "7"], 1, "figure 7 is not drawn here"),
        (["table", "1", "--csv", "--json"], 1, "give one of --json, --csv and --markdown"),
        (["figure", "1", "--csv"], 1, "are for tables"),
        (["page", "1"], 2, "page"),
    ],
)
def test_what_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["paper", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
