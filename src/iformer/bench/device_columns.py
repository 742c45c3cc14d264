"""Side-by-side comparison of devices, from the `bench.json` that `iformer bench --out` writes on each device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iformer.bench.subjects import MATRIX_PRODUCT
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import UserError, counted, printable
from iformer.files import read_at_most

_MAX_BYTES = 16_000_000
_TITLE = 120


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network at one precision and input size: one row of the table."""

    label: str
    precision: str
    size: tuple[int, int]
    """Height and width of the input in pixels."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Latencies of one device in one runtime, or in one backend of the device's browser."""

    device: str
    where: str
    """The runtime or browser backend; also the threads of a backend on the CPU, and a batch size above 1."""
    median_ms: dict[Network, float]

    @property
    def title(self) -> str:
        """Heading of the column: the runtime and the device."""
        return f"{self.where}: {self.device}"


def read_columns(paths: Sequence[Path]) -> list[Column]:
    """Read records of `iformer bench`; each runtime or browser backend becomes one column per batch size.

    Networks without a latency, because their answers were wrong or the backend failed, are left out of the column.

    Raises:
        UserError: a file cannot be read, or is not a record of `iformer bench`.
    """
    columns: list[Column] = []
    for path in paths:
        try:
            content = read_at_most(path, _MAX_BYTES)
            if content is None:
                raise UserError(f"{path} is not a record of iformer bench: more than {_MAX_BYTES:,} bytes")
            found = _columns(json.loads(content.decode()))
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(f"{path} is not a record of iformer bench; expected the bench.json of --out") from None
        known = {column.title for column in columns}
        columns += [
            Column(
                device=f"{column.device} ({printable(str(path))})", where=column.where, median_ms=column.median_ms
            )
            if column.title in known
            else column
            for column in found
        ]
    return columns


def networks(columns: Sequence[Column]) -> list[Network]:
    """Return the distinct networks of all columns, in the order of the records."""
    return list(dict.fromkeys(network for column in columns for network in column.median_ms))


def _columns(record: dict[str, Any]) -> list[Column]:
    here = _words(record["device"])
    found = []
    for name, rows in record["figures"].items():
        if name == "web":
            found += _browser_columns(rows)
        elif name in RUNTIMES:
            found += _grouped(here, RUNTIMES[name].title, rows)
    if not found:
        raise ValueError("no latency")
    return found


def _browser_columns(web: dict[str, Any]) -> list[Column]:
    about = web["device"]
    device = ", ".join(_words(about[part]) for part in ("model", "system", "browser") if about[part])
    backends: dict[str, list[dict[str, Any]]] = {}
    for row in web["rows"]:
        backend = _words(row["backend"])
        if "WebGPU" not in backend:
            backend += f", {counted(int(row['threads']), 'thread')}"
        backends.setdefault(backend, []).append(row)
    return [column for backend, rows in backends.items() for column in _grouped(device, backend, rows)]


def _grouped(device: str, where: str, rows: Sequence[dict[str, Any]]) -> list[Column]:
    """Return one column per batch size; rows without a latency and the matrix product are left out."""
    batches: dict[int, dict[Network, float]] = {}
    for row in rows:
        if row["label"] != MATRIX_PRODUCT and row["median_ms"] is not None:
            height, width = row["size"]
            network = Network(
                label=_words(row["label"]), precision=_words(row["precision"]), size=(int(height), int(width))
            )
            batches.setdefault(int(row.get("batch", 1)), {})[network] = float(row["median_ms"])
    return [
        Column(device=device, where=where if batch == 1 else f"{where}, batch {batch}", median_ms=times)
        for batch, times in batches.items()
    ]


def _words(value: Any) -> str:
    """Return text from a record with control characters escaped, because a record may come from a phone."""
    if not isinstance(value, str):
        raise TypeError("expected text")
    return printable(value, limit=_TITLE)
