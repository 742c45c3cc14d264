"""The paper's tables as printed, with parameters and operations counted in networks built here or in timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch

from iformer.config.network import STRIDES, NetworkConfig
from iformer.config.variants import network_config
from iformer.errors import UserError
from iformer.models.complexity import count_macs, count_parameters
from iformer.models.factory import build
from iformer.models.folding import fold
from iformer.tables import csv_text, markdown_table
from iformer_paper import printed
from iformer_paper.ablations import ABLATIONS, DESIGNS
from iformer_paper.printed import SOURCE, TABLE_FILES, PrintedRow

TOLERANCE_PCT = 1.0
"""Tolerated difference from the printed count, in percent. Larger ones are explained in `data/notes.yaml`."""

_AT_512 = (5, 13)
"""Tables of backbones at 512 pixels. Operations are not counted: the windows differ from the classifier's."""
BUILT, TIMM = "built here", "timm 1.0.31"
"""Names of the sources of counts: networks of this package, and networks of timm."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Counted parameters and operations of a network; None where they are not counted."""

    params_m: float | None
    """Number of parameters in millions, with batch norms folded."""
    gmacs: float | None
    """Multiply-accumulates of convolutions, classifier and attention's two matrix products, in billions."""
    by: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table, with the count of its network."""

    printed: PrintedRow
    network: str | None = None
    """Name of the network's config; None if the row is not an iFormer."""
    count: Count | None = None
    difference_pct: dict[str, float] = field(default_factory=dict)
    """Difference between count and printed value, in percent of the printed value, by column."""
    agreement: str | None = None
    """For rows that describe a network's layers: "same", or the values of the config that differ; else None."""
    reasons: tuple[str, ...] = ()
    """Reasons for differences of more than 1 %."""
    measured_ms: float | None = None
    """Latency on this machine in milliseconds, from `iformer_paper.latency`; None if not measured."""

    @property
    def name(self) -> str:
        """Name of the row; see `row_name`."""
        return row_name(self.printed)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Section of a table: rows with the same columns."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of the paper with counts."""

    number: int
    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return the table as nested dicts and lists for JSON."""
        return {
            "table": self.number,
            "title": self.title,
            "source": SOURCE,
            "sections": [
                {"columns": list(section.columns), "rows": [_plain_row(row) for row in section.rows]}
                for section in self.sections
            ],
            "notes": list(self.notes),
        }


def row_name(row: PrintedRow) -> str:
    """Return the name of a row: its modification in Table 14, its first cell in all other tables."""
    return row["modification"] if "modification" in row else next(iter(row.values()))


def paper_table(number: int) -> PaperTable:
    """Return a table of the paper, with the counts of its networks.
    Raises:
        UserError: the table does not exist.
    """
    if number not in TABLE_FILES:
        raise UserError(f"the paper has no table {number}; its tables are 1 to {max(TABLE_FILES)}")
    return PaperTable(
        number=number,
        title=printed.table_title(number),
        sections=tuple(_section(number, name) for name in TABLE_FILES[number]),
        notes=tuple(printed.table_notes(number)),
    )


@cache
def count(network: NetworkConfig, size: int = 224) -> Count:
    """Fold a network, and count parameters and operations at a square input with `size` pixels per side."""
    with torch.device("meta"):  # builds shapes only; no memory is allocated
        folded = fold(build(network).eval())
    return Count(
        params_m=count_parameters(folded) / 1e6,
        gmacs=count_macs(folded, (size, size), in_chans=network.in_chans) / 1e9,
        by=BUILT,
    )


def flat_rows(section: Section) -> tuple[list[str], list[list[str]]]:
    """Return a section as a header and rows of text. Count columns without any value are left out."""
    extra: dict[str, Callable[[Row], str]] = {
        "counted_params_m": lambda row: _decimals(row.count.params_m if row.count else None, 3),
        "counted_gmacs": lambda row: _decimals(row.count.gmacs if row.count else None, 4),
        "params_diff_pct": lambda row: _decimals(row.difference_pct.get("params_m"), 1, sign=True),
        "gmacs_diff_pct": lambda row: _decimals(row.difference_pct.get("gmacs"), 1, sign=True),
        "measured_ms": lambda row: _decimals(row.measured_ms, 2),
        "counted": lambda row: row.count.by if row.count else "",
        "our_config": lambda row: row.agreement or "",
    }
    columns = list(section.columns)
    rows = [[row.printed[column] for column in columns] for row in section.rows]
    for name, cell in extra.items():
        cells = [cell(row) for row in section.rows]
        if any(cells):
            columns.append(name)
            rows = [[*row, value] for row, value in zip(rows, cells, strict=True)]
    return columns, rows


def to_csv(table: PaperTable) -> str:
    """Return a table as CSV, with a header line per section and an empty line between sections."""
    parts = []
    for section in table.sections:
        columns, rows = flat_rows(section)
        parts.append(csv_text(columns, rows))
    return "\n".join(parts)


def to_markdown(table: PaperTable) -> str:
    """Return a table as a Markdown section with the rows and, below them, the notes."""
    lines = [f"## Table {table.number}. {table.title}", "", f"As printed in {SOURCE}, beside our counts.", ""]
    for section in table.sections:
        columns, rows = flat_rows(section)
        lines += [markdown_table(columns, rows, left=len(columns)), ""]
    remarks = [*reasons(table), *table.notes]
    return "\n".join([*lines, *(f"- {remark}" for remark in remarks)]).rstrip() + "\n"


def reasons(table: PaperTable) -> list[str]:
    """Return the reasons for differences of more than 1 % in a table, one line per row."""
    return [
        f"{row.name}: {reason}" for section in table.sections for row in section.rows for reason in row.reasons
    ]


def _section(number: int, file: str) -> Section:
    rows = printed.read_rows(file)
    if file == "table_15_architecture":
        made = [Row(printed=row, agreement=_compare_stage(row)) for row in rows]
    elif file == "table_15_stem":
        made = [Row(printed=row, agreement=_compare_stem(row)) for row in rows]
    elif number == 16:
        made = [_design_row(row) for row in rows]
    elif number == 17:
        made = [_attention_latency_row(row) for row in rows]
    else:
        made = [_row(number, row) for row in rows]
    return Section(columns=tuple(rows[0]), rows=tuple(made))


def _row(number: int, row: PrintedRow) -> Row:
    networks = ABLATIONS.get(number, {})
    network = networks.get(row_name(row))
    if network is None or row.get("ours") == "0":
        counted = _peer_count(number, row)
        return Row(printed=row, count=counted, difference_pct=_differences(row, counted))
    counted = count(network)
    if number in _AT_512:
        counted = Count(params_m=counted.params_m, gmacs=None, by=counted.by)
    found = tuple(
        difference.reason
        for difference in printed.differences()
        if number in difference.tables and difference.row == row_name(row)
    )
    return Row(
        printed=row,
        network=network.name,
        count=counted,
        difference_pct=_differences(row, counted),
        reasons=found,
    )


def _attention_latency_row(row: PrintedRow) -> Row:
    """Return a row of Table 17, with the count of its attention design at the row's resolution."""
    network = DESIGNS[row["attention"]]
    return Row(printed=row, network=network.name, count=count(network, int(row["resolution"])))


def _differences(row: PrintedRow, counted: Count | None) -> dict[str, float]:
    found = {}
    for column in ("params_m", "gmacs"):
        value = getattr(counted, column, None)
        if value is not None and row.get(column):
            found[column] = 100 * (value / float(row[column]) - 1)
    return found


def _peer_count(number: int, row: PrintedRow) -> Count | None:
    """Return the recorded count of a peer network in timm; None if timm does not have the network."""
    for peer in printed.read_rows("peers"):
        same = (
            str(number) in peer["tables"].split(";")
            and _spelling(peer["paper_name"]) == _spelling(next(iter(row.values())))
            and peer["resolution"] == row["resolution"]
            and row.get("epochs", peer["epochs"]) == peer["epochs"]
        )
        if same and peer["timm_params_m"]:
            gmacs = float(peer["timm_gmacs"]) if peer["timm_gmacs"] else None
            return Count(params_m=float(peer["timm_params_m"]), gmacs=gmacs, by=TIMM)
    return None


def _spelling(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "")


def _compare_stage(row: PrintedRow) -> str:
    """Compare a stage in Table 15 with the config; return "same" or the differing values."""
    stride = STRIDES[int(row["stage"]) - 1]
    stage = network_config(_variant(row["variant"])).stages[int(row["stage"]) - 1]
    attends, convolves = "attention" in stage.blocks, "conv" in stage.blocks
    first = stage.blocks.index("attention") if attends else stage.depth
    blocks_after = stage.blocks[first:].count("conv")
    ours = {
        "output_size": f"{224 // stride}x{224 // stride}",
        "downsample": f"{stride}x",
        "channels": f"{stage.channels}",
        "conv_blocks_before": f"{first}",
        "conv_ratio": f"{stage.conv_expansion_ratio:g}" if convolves else "",
        "attn_blocks": f"{stage.blocks.count('attention')}",
        "head_dim": f"{stage.channels // stage.attention.reduction}" if attends else "",
        "ffn_ratio": f"{stage.attention.ffn_expansion_ratio:g}" if attends else "",
        "conv_blocks_after": f"{blocks_after}",
    }
    return _agreement(row, ours)


def _compare_stem(row: PrintedRow) -> str:
    """Compare a stem layer in Table 15 with the layer that is built; return "same" or the differing values."""
    config = network_config(_variant(row["variant"]))
    with torch.device("meta"):
        stem = build(config, features_only=True).stem
    layer = int(row["layer"])
    conv = stem.get_submodule(f"conv{layer}.conv")
    norm = stem.get_submodule(f"conv{layer}.norm")
    assert isinstance(conv, torch.nn.Conv2d)
    ours = {
        "kernel_size": f"{conv.kernel_size[0]}x{conv.kernel_size[1]}",
        "stride": f"{conv.stride[0]}",
        "out_channels": f"{conv.out_channels}",
        "norm": "BN" if isinstance(norm, torch.nn.BatchNorm2d) else type(norm).__name__,
    }
    return _agreement(row, ours)


def _design_row(row: PrintedRow) -> Row:
    """Return a row of Table 16. A design is counted at 512 pixels, and only in its first row."""
    network = DESIGNS[row["design"]]
    first = (row["stage"], row["order"]) == ("3", "1")
    return Row(
        printed=row,
        network=network.name,
        count=count(network, 512) if first else None,
        agreement=_compare_design(row, network),
    )


def _compare_design(row: PrintedRow, network: NetworkConfig) -> str:
    """Compare a run of equal attention blocks in Table 16 with the config; return "same" or the differences."""
    stage = network.stages[int(row["stage"]) - 1]
    order, blocks = int(row["order"]), stage.blocks.count("attention")
    size = f"{stage.windows.window_size}" if stage.windows else ""
    whole = min(stage.windows.global_blocks, blocks) if stage.windows else blocks
    # the block that splits into windows, the blocks in between, and the global blocks, as far as present
    runs = [(repeats, size) for repeats in (1, blocks - whole - 1) if repeats > 0 and stage.windows]
    runs.append((whole, ""))
    repeats, attention_size = runs[order - 1]
    ours = {
        "window_op_size": size if row["window_op"] else "",
        "head_dim": f"{stage.channels // stage.attention.reduction}",
        "attention_window_size": attention_size,
        "ffn_ratio": f"{stage.attention.ffn_expansion_ratio:g}",
        "repeats": f"{repeats}",
    }
    return _agreement(row, ours)


def _agreement(row: PrintedRow, ours: dict[str, str]) -> str:
    different = [f"{column} {value}" for column, value in ours.items() if row[column] != value]
    return ", ".join(different) or "same"


def _variant(paper_name: str) -> str:
    return paper_name.lower().replace("-", "_")


def _decimals(value: float | None, digits: int, *, sign: bool = False) -> str:
    if value is None:
        return ""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text if float(text) else text.lstrip("+-")


def _plain_row(row: Row) -> dict[str, Any]:
    counted = row.count
    return {
        "printed": row.printed,
        "network": row.network,
        "counted": None if counted is None else asdict(counted),
        "difference_pct": row.difference_pct,
        "our_config": row.agreement,
        "reasons": list(row.reasons),
        "measured_ms": row.measured_ms,
    }
