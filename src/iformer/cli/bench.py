"""`iformer bench`: how fast networks and artifacts are on this machine, side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import output_folder, parse_size
from iformer.cli.output import DebugOption, JsonOption, console, note, print_json
from iformer.deploy.runtimes.registry import RUNTIMES, find_runtime
from iformer.errors import UserError
from iformer.files import write_text
from iformer.tables import csv_text, terminal_table

if TYPE_CHECKING:
    from iformer.bench.core_ml import CoreMLReport
    from iformer.bench.latency import Latency
    from iformer.bench.subjects import Subject
    from iformer.deploy.runtimes.registry import Runtime

_COLUMNS = ("ms", "p10", "p90", "times", "GFLOP/s", "share", "load", "MB")
_CORE_ML_COLUMNS = ("ms", "p10", "p90", "times", "load", "not on the Neural Engine")


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
    batch: Annotated[int, typer.Option(min=1, help="Images in one call.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each, taken in turns.")] = 20,
    calls: Annotated[int, typer.Option(min=1, help="Calls whose median is a sample.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before them that do not count.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for bench.json, bench.csv and, with --peers at batch 1, pareto.png."),
    ] = None,
    iphone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="On a Mac with Xcode, with --on coreml: time on this connected iPhone; or any."
        ),
    ] = None,
    team: Annotated[
        str | None, typer.Option(metavar="ID", help="The Apple developer team that signs for --iphone.")
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Time networks, artifacts and timm's networks in the same runtime, in turns, one process each.

    Times of this machine say nothing about a phone; compare ratios. Networks are exported in fp32 (for Core ML
    in fp16) with normalised input, timm's after their fuse().
    """
    runtimes = [find_runtime(name.strip()) for name in dict.fromkeys(on.split(","))]
    pixels = None if size is None else parse_size(size)
    if not models and not peers:
        raise UserError("nothing to time; name networks or artifacts, or give --peers")
    if iphone is not None and on != "coreml":
        raise UserError(f"--iphone is for --on coreml alone; got --on {on}")
    import torch

    from iformer.bench.core_ml import measure_core_ml, require_mac
    from iformer.bench.latency import measure
    from iformer.bench.record import record, write_json
    from iformer.bench.subjects import prepare_matrix_product, require_runtime

    torch.set_num_threads(threads)
    for runtime in runtimes:
        require_runtime(runtime)
        if runtime.name == "coreml":
            require_mac()
    if out is not None:
        output_folder(out)
    measured: dict[str, list[Latency] | list[CoreMLReport]] = {}
    with tempfile.TemporaryDirectory(prefix="iformer-bench-") as folder:
        for runtime in runtimes:
            subjects = _subjects(models or [], peers, runtime, Path(folder), pixels, batch)
            if runtime.name == "coreml":
                measured[runtime.name] = measure_core_ml(
                    subjects, iphone=iphone, team=team, rounds=rounds, calls=calls, report=note
                )
                continue
            subjects.append(prepare_matrix_product(runtime, Path(folder)))
            measured[runtime.name] = measure(
                subjects, rounds=rounds, calls=calls, warmup=warmup, threads=threads, report=note
            )
    result = record({name: [row.to_plain() for row in rows] for name, rows in measured.items()})
    if out is not None:
        write_json(out / "bench.json", result)
        _write_csv(out / "bench.csv", [row for rows in measured.values() for row in rows])
        if peers and batch == 1:
            note(f"picture: {_draw(measured, out / 'pareto.png', result['device'])}")
    if json:
        print_json(result)
        return
    for name, rows in measured.items():
        where = f"{RUNTIMES[name].title} on {result['device']}, batch {batch}"
        console().print(_table(where, rows))


def _subjects(
    models: list[str],
    peers: bool,
    runtime: Runtime,
    folder: Path,
    size: tuple[int, int] | None,
    batch: int,
) -> list[Subject]:
    from iformer.bench.subjects import prepare
    from iformer_paper.pareto import published

    wanted: list[tuple[str, tuple[int, int] | None, str | None]] = [(name, size, None) for name in models]
    if peers:
        wanted += [(row.name, row.size, row.label) for row in published()]
    subjects = []
    for name, pixels, label in wanted:
        try:
            subjects.append(prepare(name, runtime, folder, size=pixels, batch=batch, label=label))
        except UserError as error:
            if label is None:  # it was asked for by name
                raise
            note(f"{label} is left out: {error}")
            continue
        note(f"{subjects[-1].label} is ready for {runtime.title}")
    return subjects


def _draw(measured: Mapping[str, list[Latency] | list[CoreMLReport]], path: Path, machine: str) -> Path:
    from iformer_paper.pareto import draw_pareto

    times = {RUNTIMES[name].title: {row.label: row.median_ms for row in rows} for name, rows in measured.items()}
    return draw_pareto(times, path, machine=machine)


def _write_csv(path: Path, rows: Sequence[Latency | CoreMLReport]) -> None:
    plain = [row.to_plain() for row in rows]
    for row in plain:
        if "size" in row:
            row["size"] = f"{row['size'][0]}x{row['size'][1]}"
    columns = list(dict.fromkeys(name for row in plain for name in row))
    write_text(path, csv_text(columns, ([row.get(name) for name in columns] for row in plain)))


def _table(title: str, rows: Sequence[Latency | CoreMLReport]) -> Any:
    from iformer.bench.core_ml import CoreMLReport

    def text(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells = []
    for row in rows:
        times = [text(value, 2) for value in (row.median_ms, row.p10_ms, row.p90_ms, row.times_as_fast)]
        if isinstance(row, CoreMLReport):
            elsewhere = ", ".join(f"{count} {kind}" for kind, count in row.elsewhere.items())
            cells.append([row.label, row.device, *times, text(row.load_ms, 0), elsewhere or "nothing"])
            continue
        rates = [text(row.gflops, 0), text(row.matrix_product_share, 2)]
        cells.append([row.label, row.precision, *times, *rates, text(row.load_ms, 0), text(row.file_mb, 1)])
    columns = _CORE_ML_COLUMNS if isinstance(rows[0], CoreMLReport) else _COLUMNS
    return terminal_table(title, ["network", "", *columns], cells, left=2)
