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


class Markdown(str):
    """Text that is already Markdown, so that `markdown_table` does not escape it."""

    __slots__ = ()


def terminal_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, left: int = 1
) -> Table:
    """Return a rich table. Strings are shown without markup; styled cells are passed as `rich.text.Text`.

    Args:
        title: title of the table.
        columns: headings.
        rows: cells by row.
        left: number of left-aligned columns; the others, which hold numbers, are right-aligned.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title)),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for index, column in enumerate(columns):
        table.add_column(Text(printable(column)), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
    return table


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
