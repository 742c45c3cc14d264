"""`iformer bench`: how fast networks and artifacts are on this machine, side by side."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import output_folder, parse_size
from iformer.cli.output import DebugOption, JsonOption, console, note, print_json, table
from iformer.deploy.runtimes import RUNTIMES, find_runtime
from iformer.errors import UserError
from iformer.files import write_text

if TYPE_CHECKING:
    from iformer.bench.latency import Latency
    from iformer.bench.subjects import Subject
    from iformer.deploy.runtimes import Runtime

_COLUMNS = ("ms", "p10", "p90", "times", "GFLOP/s", "share", "load", "MB")


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Networks (iformer_m), checkpoints, artifacts, and networks of timm's (timm/repvit_m1_0). "
            "The first is what the others are compared with.",
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(help=f"One runtime or several with commas between: {', '.join(RUNTIMES)}."),
    ] = "onnx",
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Also the iFormers and the peers of the paper's Table 3, each at its own size."
        ),
    ] = False,
    size: Annotated[
        str | None, typer.Option(help="Input size of the networks: 224, or height x width. [default: their own]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each, taken in turns.")] = 20,
    calls: Annotated[int, typer.Option(min=1, help="Calls whose median is a sample.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before them that do not count.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for bench.json, bench.csv and, with --peers, pareto.png."),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Time networks, artifacts and timm's networks in the same runtime, in turns, one process each.

    Times of this machine say nothing about a phone; compare ratios. Networks are exported in fp32 with
    normalised input, timm's after their fuse(), batch 1.
    """
    runtimes = [find_runtime(name.strip()) for name in dict.fromkeys(on.split(","))]
    pixels = None if size is None else parse_size(size)
    if not models and not peers:
        raise UserError("nothing to time; name networks or artifacts, or give --peers")
    import torch

    from iformer.bench.latency import measure
    from iformer.bench.record import record, write_json
    from iformer.bench.subjects import prepare_matrix_product, require_runtime

    torch.set_num_threads(threads)
    for runtime in runtimes:
        require_runtime(runtime)
    if out is not None:
        output_folder(out)
    measured: dict[str, list[Latency]] = {}
    with tempfile.TemporaryDirectory(prefix="iformer-bench-") as folder:
        for runtime in runtimes:
            subjects = _subjects(models or [], peers, runtime, Path(folder), pixels)
            subjects.append(prepare_matrix_product(runtime, Path(folder)))
            measured[runtime.name] = measure(
                subjects, rounds=rounds, calls=calls, warmup=warmup, threads=threads, report=note
            )
    result = record({name: [row.to_plain() for row in rows] for name, rows in measured.items()})
    if out is not None:
        write_json(out / "bench.json", result)
        _write_csv(out / "bench.csv", [row for rows in measured.values() for row in rows])
        if peers:
            note(f"picture: {_draw(measured, out / 'pareto.png', result['device'])}")
    if json:
        print_json(result)
        return
    for name, rows in measured.items():
        console().print(_table(RUNTIMES[name], rows, result["device"]))


def _subjects(
    models: list[str], peers: bool, runtime: Runtime, folder: Path, size: tuple[int, int] | None
) -> list[Subject]:
    from iformer.bench.subjects import prepare
    from iformer.paper.pareto import published

    wanted: list[tuple[str, tuple[int, int] | None, str | None]] = [(name, size, None) for name in models]
    if peers:
        wanted += [(row.name, row.size, row.label) for row in published()]
    subjects = []
    for name, pixels, label in wanted:
        try:
            subjects.append(prepare(name, runtime, folder, size=pixels, label=label))
        except UserError as error:
            if label is None:  # it was asked for by name
                raise
            note(f"{label} is left out: {error}")
            continue
        note(f"{subjects[-1].label} is ready for {runtime.title}")
    return subjects


def _draw(measured: dict[str, list[Latency]], path: Path, machine: str) -> Path:
    from iformer.paper.pareto import draw_pareto

    times = {RUNTIMES[name].title: {row.label: row.median_ms for row in rows} for name, rows in measured.items()}
    return draw_pareto(times, path, machine=machine)


def _write_csv(path: Path, rows: list[Latency]) -> None:
    plain = [row.to_plain() | {"size": f"{row.size[0]}x{row.size[1]}"} for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(plain[0]))
    writer.writeheader()
    writer.writerows(plain)
    write_text(path, text.getvalue())


def _table(runtime: Runtime, rows: list[Latency], machine: str) -> Any:
    def text(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells = [
        [
            row.label,
            row.precision,
            text(row.median_ms, 2),
            text(row.p10_ms, 2),
            text(row.p90_ms, 2),
            text(row.times_as_fast, 2),
            text(row.gflops, 0),
            text(row.matrix_product_share, 2),
            text(row.load_ms, 0),
            text(row.file_mb, 1),
        ]
        for row in rows
    ]
    title = f"{runtime.title} on {machine}, batch 1"
    return table(title, ["network", "", *_COLUMNS], cells, left=2)
