"""Tables for the terminal, Markdown and CSV: no cell is markup, a control code or a formula."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console
from rich.text import Text

from iformer.tables import Markdown, csv_text, markdown_code, markdown_table, printable, terminal_table

HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "[click](javascript:alert(1))",
    "![picture](https://example.org/pixel.png)",
    "a | b",
    "line\nbreak\u2028and\x85more",
    "*bold* `code`",
    "back\\slash",
    "\x1b[2Jcleared\x07",
    "\u202eright to left",
    "\udcff not UTF-8",
]


def on_terminal(*args: object, width: int = 200, **options: object) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(
        terminal_table(*args, width=width, **options)  # type: ignore[arg-type]
    )
    return out.getvalue()


def test_a_terminal_shows_markup_and_escape_codes_as_text() -> None:
    shown = on_terminal("[red]title", ["[b]name", "n"], [["[link=x]cat[/link]\x1b[2J\x07", "1"]])
    for text in ("[red]title", "[b]name", r"[link=x]cat[/link]\x1b[2J\x07"):
        assert text in shown
    assert "\x1b[2J" not in shown
    assert "ready" in on_terminal("", ["", ""], [["a", Text("ready", "green")]])


LATENCIES = [
    ["light_t at 320 x 320", "fp32", "25.31", "24.90", "27.12", "1.00x", "38", "12.3"],
    [
        "light_t at 320 x 320, postprocessed",
        "int8-dynamic",
        "1225.37",
        "1224.90",
        "1227.12",
        "0.02x",
        "38",
        "12.3",
    ],
]
HEADINGS = ["network", "precision", "ms", "p10", "p90", "speed", "load ms", "MB"]


@pytest.mark.parametrize(("width", "left_out"), [(80, 0), (60, 3), (40, 4)])
def test_a_narrow_terminal_breaks_no_word(width: int, left_out: int) -> None:
    optional = ["load ms", "MB", "p90", "p10"]
    shown = on_terminal("", HEADINGS, LATENCIES, width=width, left=2, optional=optional)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    words = {word for row in LATENCIES for cell in row[:3] + row[5:6] for word in cell.split()}
    assert words <= set(shown.split())
    caption = " ".join(shown.partition("not shown for lack of room: ")[2].split())
    assert caption == (f"{', '.join(optional[:left_out])} (see --json)" if left_out else "")


def test_long_names_are_broken_last() -> None:
    path = "runs/" + 60 * "z"
    shown = on_terminal("", ["file", "class", "top-1 %"], [[path, "functional", "84.91"]], width=40, left=2)
    assert max(map(len, shown.splitlines())) <= 40
    assert {"functional", "84.91"} <= set(shown.split())
    assert shown.count("z") == 60


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_cells_are_text_on_one_line(name: str) -> None:
    lines = markdown_table(["class", "n"], [[name, "1"]]).splitlines()
    assert len(lines) == 3
    assert lines[1] == "| --- | ---: |"
    row = lines[2]
    assert row.isprintable()
    assert "<" not in row
    assert row.replace("\\|", "").count("|") == 3
    for char in "[`*":
        assert row.count(char) == row.count("\\" + char)


def test_markdown_that_was_made_as_markdown_stays() -> None:
    table = markdown_table(["", ""], [[Markdown("**mean**"), markdown_code("a|`b`")]], left=2)
    assert table.splitlines()[1:] == ["| --- | --- |", "| **mean** | `` a\\|`b` `` |"]
    assert markdown_code("two\nlines") == "`two lines`"


def test_csv_cells_are_never_formulas() -> None:
    formulas = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx"]
    cells = [*formulas, "-1.5", "+3.4", "plain", 'a,"b"\nc', -1.5, None]
    (header, row) = list(csv.reader(io.StringIO(csv_text(["=name", *"abcdefghij"], [cells]), newline="")))
    assert header[0] == "'=name"
    assert row == [*(f"'{cell}" for cell in formulas), "-1.5", "+3.4", "plain", 'a,"b"\nc', "-1.5", ""]


def test_printable_keeps_letters_of_every_script() -> None:
    assert printable("naïve 猫 🐈") == "naïve 猫 🐈"
    assert printable("\x1b]0;x\x07\u202e\udcff") == r"\x1b]0;x\x07\u202e\udcff"
