"""Tables as data and as text: each count is near the printed one, or the difference is explained."""

from __future__ import annotations

import csv
import io
import json

import pytest

from iformer.errors import UserError
from iformer_paper import printed
from iformer_paper.ablations import ABLATIONS
from iformer_paper.ladder import LADDER
from iformer_paper.tables import (
    BUILT,
    TIMM,
    TOLERANCE_PCT,
    flat_rows,
    paper_table,
    row_name,
    to_csv,
    to_markdown,
)

TABLES = list(printed.TABLE_FILES)
SECTION_ROWS = {
    number: [rows] for number, rows in enumerate((2, 2, 33, 13, 17, 3, 10, 4, 28, 4, 2, 3, 12, 4, 4, 12, 4, 62), 1)
} | {15: [4, 16, 12]}
"""Rows of each table, section by section."""


@pytest.mark.parametrize("number", TABLES)
def test_every_row_is_there(number: int) -> None:
    table = paper_table(number)
    assert [len(section.rows) for section in table.sections] == SECTION_ROWS[number]
    for section in table.sections:
        assert all(tuple(row.printed) == section.columns for row in section.rows)
    if number != 9:
        assert table.notes


@pytest.mark.parametrize("number", list(ABLATIONS))
def test_every_network_of_a_table_has_a_row(number: int) -> None:
    rows = [row for section in paper_table(number).sections for row in section.rows if row.network]
    assert {row.name for row in rows} == set(ABLATIONS[number])
    assert all(row.count and row.count.by == BUILT for row in rows)
    ours = [row for row in rows if row.printed.get("ours") == "0"]
    assert not ours


def test_counts_are_within_one_percent_or_have_a_reason() -> None:
    """And a reason that is no longer needed is an error too."""
    far, explained = set(), set()
    for number in ABLATIONS:
        for section in paper_table(number).sections:
            for row in section.rows:
                if row.network is None:
                    continue
                far |= {
                    (number, row.name, column)
                    for column, percent in row.difference_pct.items()
                    if abs(percent) > TOLERANCE_PCT
                }
    for difference in printed.differences():
        assert len(difference.reason) > 20
        explained |= {(number, difference.row, difference.column) for number in difference.tables}
    assert far == explained


def test_the_rows_with_printed_counts_were_really_compared() -> None:
    compared = {
        number: sum(len(row.difference_pct) for section in paper_table(number).sections for row in section.rows)
        for number in (6, 7, 8, 10, 11, 14, 15)
    }
    assert compared == {6: 6, 7: 20, 8: 2, 10: 8, 11: 4, 14: 8, 15: 8}


def test_figure_2s_steps_are_the_ladders() -> None:
    assert [row["step"] for row in printed.figure_2_rows()] == [step.label for step in LADDER]


def test_table_15_is_the_architecture_that_is_built() -> None:
    _, architecture, stem = paper_table(15).sections
    assert {row.agreement for row in (*architecture.rows, *stem.rows)} == {"same"}


def test_table_16_contradicts_table_15_in_stage_4() -> None:
    (section,) = paper_table(16).sections
    different = [row.agreement for row in section.rows if row.agreement != "same"]
    in_windows = "attention_window_size 16"
    assert different == ["head_dim 96, ffn_ratio 3", in_windows, "head_dim 96", in_windows, "head_dim 96"]
    counted = {row.printed["design"]: row.count.gmacs for row in section.rows if row.count}
    assert len(counted) == 3
    assert counted["Hybrid SHMA"] == counted["Chunk Hybrid SHMA"] < counted["SHMA"]


def test_peers_have_the_counts_of_timm() -> None:
    (section,) = paper_table(18).sections
    by_name = {row.name: row for row in section.rows}
    shvit, cmt = by_name["SHViT-S4"], by_name["CMT-Ti"]
    assert shvit.count is not None
    assert (shvit.count.by, shvit.count.gmacs) == (TIMM, 0.783)
    assert cmt.count is None
    counted = [row for row in section.rows if row.count and row.count.by == TIMM]
    assert len(counted) == 37


def test_table_17_counts_each_design_at_its_resolution() -> None:
    (section,) = paper_table(17).sections
    at_224, at_512, hybrid, chunked = section.rows
    assert at_224.count is not None
    assert at_512.count is not None
    assert f"{at_224.count.gmacs:.4f}" == "1.6399"
    # 49 and 196 tokens become 256 and 1024: convolutions grow with the pixels, products with their square
    assert at_512.count.gmacs > (512 / 224) ** 2 * at_224.count.gmacs
    # what windows spare: 3 of 4 blocks see 256 keys and not 1024; stage 4 at 512 is one window
    assert hybrid.count is not None
    assert hybrid.count == chunked.count
    spared = 3 * 1024 * (1024 - 256) * (96 + 192)
    assert at_512.count.gmacs - hybrid.count.gmacs == pytest.approx(spared / 1e9)


@pytest.mark.parametrize("number", [3, 7, 9, 15])
def test_the_three_forms_hold_the_same(number: int) -> None:
    table = paper_table(number)
    plain = json.loads(json.dumps(table.to_plain()))
    assert [len(section["rows"]) for section in plain["sections"]] == SECTION_ROWS[number]
    assert "arXiv 2501.15369" in plain["source"]
    blocks = to_csv(table).split("\n\n")
    markdown = to_markdown(table)
    for section, block in zip(table.sections, blocks, strict=True):
        columns, rows = flat_rows(section)
        assert list(csv.reader(io.StringIO(block.strip() + "\n"))) == [columns, *rows]
        for row in rows:
            assert "| " + " | ".join(row) + " |" in markdown
    assert all(note in markdown for note in table.notes)


def test_the_flat_form_says_how_far_the_count_is() -> None:
    (section,) = paper_table(7).sections
    columns, rows = flat_rows(section)
    last = dict(zip(columns, rows[-1], strict=True))
    assert last["counted_params_m"] == "10.342"
    assert last["params_diff_pct"] == "+3.4"
    assert last["gmacs_diff_pct"] == "0.0"


def test_a_row_of_table_14_is_called_by_its_change() -> None:
    assert row_name(printed.read_rows("table_14_towards_shvit")[1]) == "split"


@pytest.mark.parametrize("number", [0, 19, -1])
def test_a_table_that_is_not_there(number: int) -> None:
    with pytest.raises(UserError, match=f"no table {number}; its tables are 1 to 18"):
        paper_table(number)
