"""`iformer paper`: the paper's tables with counts, and its figures."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iformer.cli.arguments import EntryOption
from iformer.cli.output import DebugOption, JsonOption, console, print_json, print_table, say
from iformer.errors import UserError
from iformer.files import output_folder

if TYPE_CHECKING:
    from iformer_paper.figures import DrawnFigure
    from iformer_paper.tables import PaperTable

_LEFT_OUT = (
    *("year", "epochs", "pretrain_epochs", "ours", "note", "stage3_replaced_pct", "stage4_replaced_pct"),
    *("ap_box50_pct", "ap_box75_pct", "ap_mask50_pct", "ap_mask75_pct", "output_size", "downsample", "cpe_kernel"),
    *("advanced_training", "strong_training", "counted", "order", "window_op_size", "attention_window_size"),
)

"""Columns left out on a terminal; --csv, --markdown and --json have all columns."""
_ORDER = ("params_m", "counted_params_m", "params_diff_pct", "gmacs", "counted_gmacs", "gmacs_diff_pct")
"""Columns of counts, which are shown side by side at the place of the first one."""
_HEADERS = {
    "params_m": "params M",
    "counted_params_m": "counted",
    "params_diff_pct": "diff %",
    "gmacs": "GMACs",
    "counted_gmacs": "counted",
    "gmacs_diff_pct": "diff %",
    "latency_ms": "ms",
    "measured_ms": "ms here",
    "top1_pct": "top-1 %",
    "ap_box_pct": "AP box",
    "ap_mask_pct": "AP mask",
    "miou_pct": "mIoU %",
    "resolution": "px",
}


class Kind(StrEnum):
    """Kind of content that `iformer paper` shows: a table or a figure."""

    TABLE = "table"
    FIGURE = "figure"


def paper(
    kind: Annotated[Kind, typer.Argument(help="table or figure")],
    number: Annotated[int, typer.Argument(help="Tables 1 to 18, figures 1 to 3.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print a table's rows as CSV on stdout.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table as Markdown on stdout.")] = False,
    out: Annotated[Path, typer.Option(help="The folder for a figure's PNG.")] = Path("."),
    weights: Annotated[
        Path | None,
        typer.Option(help="For figure 3: a checkpoint with multi-head attention, drawn beside random weights."),
    ] = None,
    entry: EntryOption = None,
    data: Annotated[str, typer.Option(help="The images that --weights sees: a folder, or elpv.")] = "elpv",
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Measure our networks of a table, or of figure 2, on this machine: minutes."
        ),
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show a table or draw a figure of the paper.

    A table shows the printed values next to the parameters and operations counted on the networks of this package.
    """
    if sum((csv, markdown, json)) > 1:
        raise UserError("give one of --json, --csv and --markdown")
    if kind == Kind.FIGURE:
        if csv or markdown:
            raise UserError(
                "--csv and --markdown are for tables; a figure is written as PNG, --json gives its values"
            )
        _figure(number, output_folder(out), weights, data, entry=entry, latency=latency, json=json)
        return
    if weights is not None or entry is not None:
        raise UserError("--weights and --entry are for figure 3; a table's networks are counted, not loaded")
    from iformer_paper.tables import paper_table, to_csv, to_markdown

    shown = paper_table(number)
    if latency:
        from iformer_paper.latency import with_latencies

        shown = with_latencies(shown)
    if json:
        print_json(shown.to_plain())
    elif csv:
        say(to_csv(shown), end="")
    elif markdown:
        say(to_markdown(shown), end="")
    else:
        _show(shown)


def _show(shown: PaperTable) -> None:
    from iformer_paper.printed import SOURCE
    from iformer_paper.tables import TIMM, flat_rows, reasons

    out = console()
    out.print(f"[bold]Table {shown.number}. {shown.title}[/bold] (print: {SOURCE}; ms on an iPhone 13)\n")
    for section in shown.sections:
        columns, rows = flat_rows(section)
        kept = [name for name in columns if name not in _LEFT_OUT and name not in _ORDER]
        counts = [name for name in _ORDER if name in columns]
        if counts:
            first = min(columns.index(name) for name in counts)
            place = sum(columns.index(name) < first for name in kept)
            kept[place:place] = counts
        print_table("", _header(kept), [[_cell(row[columns.index(name)], name) for name in kept] for row in rows])
        out.print()
    remarks = [f"more than 1 % from the print, {reason}" for reason in reasons(shown)] + list(shown.notes)
    if any(row.count and row.count.by == TIMM for section in shown.sections for row in section.rows):
        remarks.append(f"counts of other networks were taken from {TIMM}; 1000 classes, at the row's resolution")
    for remark in remarks:
        out.print(f"- {remark}", markup=False)


def _cell(text: str, column: str) -> str:
    return text.replace("_", " ") if column == "our_config" else text  # let field names break


def _header(columns: list[str]) -> list[str]:
    # a count without a printed column next to it is labelled as a count
    alone = {
        f"counted_{name}": f"{_HEADERS[name]} counted" for name in ("params_m", "gmacs") if name not in columns
    }
    return [alone.get(name, _HEADERS.get(name, name.replace("_", " "))) for name in columns]


def _figure(
    number: int,
    folder: Path,
    weights: Path | None,
    data: str,
    *,
    entry: str | None,
    latency: bool,
    json: bool,
) -> None:
    from iformer_paper.figures import draw_figure
    from iformer_paper.heads import trained_heads

    trained = trained_heads(weights, data, entry=entry) if weights is not None else None
    drawn: DrawnFigure = draw_figure(number, folder, trained=trained, latency=latency)
    if json:
        print_json({"figure": number, "file": drawn.path, "values": drawn.values, "notes": list(drawn.notes)})
        return
    out = console()
    out.print(f"wrote {drawn.path}", soft_wrap=True, markup=False)
    for remark in drawn.notes:
        out.print(f"- {remark}", markup=False)
