"""Answers as files: JSON lines, or tables with one row for each answer."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from iformer.config.checking import short_repr
from iformer.dependencies import require
from iformer.errors import OutputError, UserError, printable
from iformer.files import json_text, write_bytes, write_text
from iformer.tables import csv_text
from iformer.tasks.interface import Record

AnswerFormat = Literal["jsonl", "csv", "parquet"]
FORMATS: tuple[AnswerFormat, ...] = ("jsonl", "csv", "parquet")

_COLUMNS = {
    "file": "string",
    "frame": "int64",
    "seconds": "float64",
    "frame_width": "int64",
    "frame_height": "int64",
    "rank": "int64",
    "name": "string",
    "score": "float64",
    "is_label": "bool",
    "left": "float64",
    "top": "float64",
    "width": "float64",
    "height": "float64",
    "track": "int64",
    "error": "string",
}
"""Names and types of the columns of a table of answers; see `answer_rows`."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One class or object that a network predicts for an image."""

    name: str
    """Name of the class."""
    score: float
    """0 to 1: the probability of the class, the score of the object, or the share of the image's pixels."""
    box: tuple[float, float, float, float] | None = None
    """Detectors: left, top, width and height of the object in pixels. None: the answer is not an object."""
    track: int | None = None
    """Detectors on videos, with `track`: number of the object, from 1, in all frames. None: no track yet."""

    def __repr__(self) -> str:
        return short_repr(self)


def answers_of(record: Record) -> Iterator[Answer]:
    """Yield the answers in a record, the highest score first."""
    # a task outside this package may use other keys: they stay in the record
    for item in record.get("detections") or record.get("classes") or ():
        score = next(item[key] for key in ("probability", "score", "share") if key in item)
        box = tuple(item["box"]) if "box" in item else None
        yield Answer(name=item["name"], score=score, box=box, track=item.get("track"))


def answers_file(folder: Path, format: AnswerFormat) -> Path:
    """Return the path of the file of answers in a folder: `predictions.jsonl`, `.csv` or `.parquet`."""
    return folder / f"predictions.{format}"


def holds_answers(folder: Path) -> bool:
    """Return whether a folder holds a file of answers, in any format."""
    return any(answers_file(folder, format).exists() for format in FORMATS)


def check_format(format: str) -> AnswerFormat:
    """Check the name of a file format and return it.

    Raises:
        UserError: the format is not one of `FORMATS`.
        MissingDependencyError: the format is Parquet, and pyarrow is not installed.
    """
    for known in FORMATS:
        if format == known:
            if format == "parquet":
                require("pyarrow.parquet", extra="data")
            return known
    raise UserError(f"--format is '{format}'; expected {', '.join(FORMATS)}")


def write_answers(folder: Path, records: Sequence[Record], format: AnswerFormat) -> Path:
    """Write the file of answers into a folder and return its path: a line per record, or a table of `answer_rows`.

    Files of answers in other formats are removed.

    Raises:
        OutputError: the file cannot be written.
        MissingDependencyError: the format is Parquet, and pyarrow is not installed.
    """
    path = _write(answers_file(folder, format), records, format)
    for other in FORMATS:
        if other != format:
            answers_file(folder, other).unlink(missing_ok=True)
    return path


def write_what_fits(
    folder: Path, records: Sequence[Record], format: AnswerFormat
) -> tuple[int, OutputError | None]:
    """Write as many of the first records as the disk takes; see `write_answers`.

    Returns:
        The number of records in the file (0: there is no new file), and the error of the first attempt if it
        failed.
    """
    count, failure = len(records), None
    while count:
        try:
            write_answers(folder, records[:count], format)
            break
        except OutputError as error:
            failure = failure or error
            count = count * 9 // 10
    return count, failure


class AnswersReserve:
    """Space on the disk for the answers of a running call: a hidden file that is as large as they will be."""

    def __init__(self, folder: Path, format: AnswerFormat) -> None:
        """Prepare the reserve in a folder; the file is created by the first record."""
        self._folder, self._path = folder, folder / ".predictions.part"
        self._format: Literal["jsonl", "csv"] = "jsonl" if format == "parquet" else format
        self._file: BinaryIO | None = None

    def add(self, record: Record) -> None:
        """Reserve space for one more record.

        Raises:
            OutputError: the disk has no space for it.
        """
        try:
            text = _text([record], self._format)
            if self._file is None:
                self._file = self._path.open("wb")
            elif self._format == "csv":
                text = text.partition("\n")[2]  # the header is there already
            self._file.write(text.encode(errors="backslashreplace"))
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write into {self._folder}: {error.strerror or error}") from error

    def release(self) -> None:
        """Remove the file; the space is free for the answers."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._path.unlink()
            self._file = None


def _text(records: Sequence[Record], format: Literal["jsonl", "csv"]) -> str:
    if format == "jsonl":
        return "".join(json_text(record, ascii_only=False) + "\n" for record in records)
    rows = [row for record in records for row in answer_rows(record)]
    return csv_text(list(_COLUMNS), [[_cell(row[name]) for name in _COLUMNS] for row in rows])


def _write(path: Path, records: Sequence[Record], format: AnswerFormat) -> Path:
    if format != "parquet":
        return write_text(path, _text(records, format))
    rows = [row for record in records for row in answer_rows(record)]
    rows = [{name: _valid(value) for name, value in row.items()} for row in rows]
    pyarrow = require("pyarrow", extra="data")
    schema = pyarrow.schema(
        [(name, getattr(pyarrow, _PYARROW.get(kind, kind))()) for name, kind in _COLUMNS.items()]
    )
    buffer = io.BytesIO()
    require("pyarrow.parquet", extra="data").write_table(pyarrow.Table.from_pylist(rows, schema=schema), buffer)
    return write_bytes(path, buffer.getvalue())


_PYARROW = {"bool": "bool_"}
"""Names in pyarrow of the types in `_COLUMNS` that have another name there."""


def answer_rows(record: Record) -> list[dict[str, Any]]:
    """Return one row for each answer of an image or frame; without an answer, one row with `file` and `error`.

    `rank` counts from 1. `is_label` says whether a class reaches the threshold of a multi-label classifier.
    `left`, `top`, `width` and `height` describe the box of an object, in pixels; `track` is its number.
    `frame_width` and `frame_height` are the size of a video's frame in pixels, which is shown at `seconds`.
    Values that a record does not have are None.
    """
    width, height = record.get("size") or (None, None)
    shared = {name: record.get(name) for name in ("file", "frame", "seconds", "error")}
    empty = dict.fromkeys(_COLUMNS) | shared | {"frame_width": width, "frame_height": height}
    rows = []
    for rank, answer in enumerate(answers_of(record), start=1):
        row = empty | {"rank": rank, "name": answer.name, "score": float(answer.score), "track": answer.track}
        if "labels" in record:
            row["is_label"] = answer.name in record["labels"]
        if answer.box is not None:
            row |= dict(zip(("left", "top", "width", "height"), map(float, answer.box), strict=True))
        rows.append(row)
    return rows or [empty]


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return printable(value)
    return "" if value is None else value


def _valid(value: Any) -> Any:
    """Escape the bytes of a text that are not UTF-8; return other values unchanged."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
