"""`iformer bench`: latency of networks and artifacts on this machine, side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import DeviceOption, EntryOption, parse_size
from iformer.cli.output import DebugOption, JsonOption, console, note, print_json
from iformer.deploy.runtimes.registry import RUNTIMES, find_runtime
from iformer.errors import UserError
from iformer.files import output_folder, write_text
from iformer.tables import csv_text, terminal_table

if TYPE_CHECKING:
    from iformer.bench.latency import Latency
    from iformer.bench.subjects import Subject
    from iformer.deploy.runtimes.registry import Runtime


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Networks (iformer_m), checkpoints, artifacts and timm's networks (timm/repvit_m1_0). "
            "Speeds are relative to the first one.",
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(help=f"Runtimes, separated by commas: {', '.join(RUNTIMES)}."),
    ] = "onnx",
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Add the networks of the paper's Table 3, iFormers and peers, at its sizes."),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            help="Input sizes in pixels, separated by commas: 224, or height x width. [default: the network's; "
            "detectors and segmenters 320, 416, 512, 640]"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples per network, taken in turns.")] = 20,
    calls: Annotated[int, typer.Option(min=1, help="Timed calls per sample, which is their median.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before them that are not timed.")] = 2,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for bench.json, bench.csv and, with --peers at batch 1, pareto.png."),
    ] = None,
    device: DeviceOption = "cpu",
    iphone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Time on this connected iPhone, or on any; needs a Mac with Xcode and --on coreml.",
        ),
    ] = None,
    team: Annotated[
        str | None, typer.Option(metavar="ID", help="Apple developer team that signs for --iphone.")
    ] = None,
    entry: EntryOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare the latency of networks and artifacts.

    They run in the same runtime and take turns, each in its own process. The latency on a computer does not
    predict the latency on a phone; compare ratios. Networks are exported in fp32 (Core ML: fp16)
    with normalised input, timm's networks after fuse(). The runtimes run on the CPU.
    """
    runtimes = [find_runtime(name) for name in dict.fromkeys(name.strip() for name in on.split(","))]
    sizes = [] if size is None else [parse_size(one) for one in dict.fromkeys(size.split(","))]
    if not models and not peers:
        raise UserError("nothing to time; name networks or artifacts, or give --peers")
    if device not in ("auto", "cpu"):
        raise UserError(f"--device is '{device}'; the runtimes of bench run on the CPU")
    if iphone is not None and on != "coreml":
        raise UserError(f"--iphone needs --on coreml; got --on {on}")
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
    measured: dict[str, list[Latency]] = {}
    with tempfile.TemporaryDirectory(prefix="iformer-bench-") as folder:
        for runtime in runtimes:
            subjects = _subjects(models or [], peers, runtime, Path(folder), sizes, batch, entry)
            if runtime.name == "coreml":
                subjects = [subject for subject in subjects if not subject.postprocess]
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
    sizes: list[tuple[int, int]],
    batch: int,
    entry: str | None,
) -> list[Subject]:
    from iformer.bench.subjects import prepare, prepare_all
    from iformer_paper.pareto import published

    stems = [Path(name).stem for name in models]
    # a name that does not tell two networks apart, such as best, is replaced by the whole path
    labels = [stem if stems.count(stem) == 1 else name for stem, name in zip(stems, models, strict=True)]
    subjects = [
        subject
        for name, label in zip(models, labels, strict=True)
        for subject in prepare_all(name, runtime, folder, sizes=sizes, batch=batch, label=label, entry=entry)
    ]
    for row in published() if peers else ():
        try:
            subjects.append(prepare(row.name, runtime, folder, size=row.size, batch=batch, label=row.label))
        except UserError as error:
            note(f"{row.label} is left out: {error}")
    note(f"ready for {runtime.title}: {', '.join(subject.label for subject in subjects)}")
    return subjects


def _draw(measured: Mapping[str, list[Latency]], path: Path, machine: str) -> Path:
    from iformer_paper.pareto import draw_pareto

    times = {RUNTIMES[name].title: {row.label: row.median_ms for row in rows} for name, rows in measured.items()}
    return draw_pareto(times, path, machine=machine)


def _write_csv(path: Path, rows: Sequence[Latency]) -> None:
    plain = [row.to_plain() | {"size": f"{row.size[0]}x{row.size[1]}"} for row in rows]
    columns = list(dict.fromkeys(name for row in plain for name in row))
    write_text(path, csv_text(columns, ([row.get(name) for name in columns] for row in plain)))


def _table(title: str, rows: Sequence[Latency]) -> Any:
    def text(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    columns: dict[str, Callable[[Latency], str]] = {
        "network": lambda row: row.label,
        "device": lambda row: row.device,
        "precision": lambda row: row.precision,
        "ms": lambda row: text(row.median_ms, 2),
        "p10": lambda row: text(row.p10_ms, 2),
        "p90": lambda row: text(row.p90_ms, 2),
        "speed": lambda row: f"{row.times_as_fast:.2f}x",
        "GFLOP/s": lambda row: text(row.gflops, 0),
        "share": lambda row: text(row.matrix_product_share, 2),
        "load ms": lambda row: text(row.load_ms, 0),
        "MB": lambda row: text(row.file_mb, 1),
        "not on the Neural Engine": lambda row: ", ".join(
            f"{count} {kind}" for kind, count in row.elsewhere.items()
        ),
    }
    if all(row.units for row in rows):
        del columns["GFLOP/s"], columns["share"], columns["MB"]
    else:
        del columns["device"], columns["not on the Neural Engine"]
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return terminal_table(title, list(columns), cells, left=3 if "device" in columns else 2)
