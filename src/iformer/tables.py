"""Tables for the terminal, for Markdown and for CSV. Every cell is escaped for its format.

Names of files, classes and devices come from outside the program, so no cell is trusted: terminal tables show
control characters as escape sequences and ignore rich's markup, Markdown tables show HTML, links and pipes as
text, and CSV cells are never formulas.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from iformer.errors import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_MARKDOWN = re.compile(r"([\\`*|\[])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LONG_WORD = 32


class Markdown(str):
    """Text that is already Markdown, so that `markdown_table` does not escape it."""

    __slots__ = ()


def terminal_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    width: int,
    left: int = 1,
    optional: Sequence[str] = (),
) -> Table:
    """Return a rich table. Strings are shown without markup; styled cells are passed as `rich.text.Text`.

    Words stay whole: text wraps between them, and `optional` columns that do not fit are left out. Only where that
    is not enough, gaps are narrowed and long words of the left-aligned columns, such as paths, are broken.

    Args:
        title: title of the table.
        columns: headings.
        rows: cells by row.
        width: columns of the terminal.
        left: number of left-aligned columns; the others, which hold numbers, are right-aligned.
        optional: headings of columns that may be left out, the least important first; the caption names them.
    """
    from rich.table import Table
    from rich.text import Text

    texts = [
        [Text(printable(heading)), *(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells)]
        for heading, *cells in zip(columns, *rows, strict=True)
    ]
    dropped: list[str] = []
    shown, gap, longest = list(range(len(columns))), 2, _LONG_WORD if optional else width
    while (widths := _widths([texts[index] for index in shown], width, gap, left, longest)) is None:
        if len(dropped) < len(optional):
            dropped.append(optional[len(dropped)])
            shown = [index for index in shown if columns[index] not in dropped]
        elif gap > 1:
            gap = 1
        elif longest > 1:
            longest = _LONG_WORD if longest > _LONG_WORD else longest // 2
        else:
            break
    table = Table(
        title=Text(printable(title)),
        title_justify="left",
        title_style="bold",
        caption=Text(f"not shown for lack of room: {', '.join(dropped)} (see --json)") if dropped else None,
        caption_justify="left",
        header_style="bold",
        box=None,
        padding=(0, gap, 0, 0),
        pad_edge=False,
    )
    for place, index in enumerate(shown):
        table.add_column(
            texts[index][0],
            justify="left" if index < left else "right",
            overflow="fold",
            width=None if widths is None else widths[place],
        )
    for cells in zip(*(texts[index][1:] for index in shown), strict=True):
        table.add_row(*cells)
    return table


def _widths(columns: Sequence[Sequence[Text]], width: int, gap: int, left: int, longest: int) -> list[int] | None:
    """Return the widths of columns, the widest ones narrowed to fit; None if words do not fit beside each other.

    Words of the first `left` columns count as `longest` characters at most.
    """
    from rich.cells import cell_len

    widths = [max(text.cell_len for text in texts) for texts in columns]
    words = [
        max((cell_len(word) for text in texts for word in text.plain.split()), default=0) for texts in columns
    ]
    least = [max(1, min(word, longest) if place < left else word) for place, word in enumerate(words)]
    excess = sum(widths) - (room := width - gap * (len(columns) - 1))
    if sum(least) > room:
        return None
    for _ in range(excess):
        widths[max(range(len(widths)), key=lambda place: (widths[place] > least[place], widths[place]))] -= 1
    return widths


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table without a final newline.

    Args:
        columns: headings.
        rows: cells by row.
        left: number of left-aligned columns; the others, which hold numbers, are right-aligned.
    """
    align = ["---" if index < left else "---:" for index in range(len(columns))]
    lines = [[markdown_text(cell) for cell in columns], align]
    lines += [[markdown_text(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV with a header line. Cells that look like formulas are marked as text; see `csv_cell`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([csv_cell(column) for column in columns])
    writer.writerows([csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def markdown_text(text: str) -> str:
    """Return text as one line of Markdown in which HTML, links, code, asterisks and pipes are shown literally."""
    if isinstance(text, Markdown):
        return text
    line = html.escape(" ".join(text.split()), quote=False)
    return printable(_MARKDOWN.sub(r"\\\1", line))


def markdown_code(text: str) -> Markdown:
    """Return text as inline code in Markdown, on one line; it is also valid in a table cell."""
    line = printable(" ".join(text.split())).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{fence}{pad}{line}{pad}{fence}")


def csv_cell(value: Any) -> Any:
    """Return a CSV cell. Text that looks like a formula gets an apostrophe, so that spreadsheets do not run it."""
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and text.strip() == text and "_" not in text
