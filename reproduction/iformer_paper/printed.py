"""Read the numbers printed in the paper from data files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

SOURCE = "arXiv 2501.15369 v2"

TABLE_FILES: dict[int, tuple[str, ...]] = {
    1: ("table_01_mha_vs_sha",),
    2: ("table_02_kernel_size",),
    3: ("table_03_imagenet",),
    4: ("table_04_imagenet_distilled",),
    5: ("table_05_dense_tasks",),
    6: ("table_06_activation",),
    7: ("table_07_vit_ratio",),
    8: ("table_08_scaling",),
    9: ("table_09_training",),
    10: ("table_10_reducing_latency",),
    11: ("table_11_dwconv_in_ffn",),
    12: ("table_12_imagenet_450_epochs",),
    13: ("table_13_dense_tasks_450_epochs",),
    14: ("table_14_towards_shvit",),
    15: ("table_15_totals", "table_15_architecture", "table_15_stem"),
    16: ("table_16_attention_designs",),
    17: ("table_17_attention_latency",),
    18: ("table_18_imagenet_all",),
}
"""Data files by table number. A table has several files if its sections have different columns."""

PrintedRow = dict[str, str]
"""Cells of a row by column, as printed in the paper; empty where the paper prints nothing."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The reason why a count differs from the printed value by more than 1 %."""

    tables: tuple[int, ...]
    row: str
    column: str
    reason: str


def read_rows(name: str) -> list[PrintedRow]:
    """Return the rows of a data file, such as "table_07_vit_ratio"."""
    text = _data(f"{name}.csv")
    return [dict(row) for row in csv.DictReader(text.splitlines())]


def figure_2_rows() -> list[PrintedRow]:
    """Return the values of Figure 2, one row per bar."""
    return read_rows("figure_02_ladder")


def table_title(number: int) -> str:
    """Return the title of a table by its number."""
    return str(_notes()["tables"][number]["title"])


def table_notes(number: int) -> Sequence[str]:
    """Return notes on a table: contradictions in the paper, and how ambiguous rows are read."""
    return tuple(_notes()["tables"][number]["notes"])


def figure_notes(number: int) -> Sequence[str]:
    """Return notes on a figure: contradictions in the paper, and how ambiguous labels are read."""
    return tuple(_notes()["figures"][number]["notes"])


@cache
def differences() -> tuple[Difference, ...]:
    """Return the reason for every count that differs from the printed value by more than 1 %."""
    return tuple(Difference(**(entry | {"tables": tuple(entry["tables"])})) for entry in _notes()["differences"])


@cache
def _notes() -> dict[str, Any]:
    notes: dict[str, Any] = yaml.safe_load(_data("notes.yaml"))
    return notes


def _data(name: str) -> str:
    return (files("iformer_paper") / "data" / name).read_text(encoding="utf-8")
