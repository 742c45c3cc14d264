"""`iformer bench`: latency of networks and artifacts on this machine, side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import DeviceOption, EntryOption, parse_size
from iformer.cli.bench_tables import print_browser_latencies, print_devices, print_latencies
from iformer.cli.output import DebugOption, JsonOption, note, print_json
from iformer.cli.web_options import (
    AddressOption,
    AssetsOption,
    LanOption,
    PicturesOption,
    PortOption,
    show_page,
)
from iformer.deploy.runtimes.registry import RUNTIMES, find_runtime
from iformer.errors import UserError
from iformer.files import removed_on_failure, write_text
from iformer.tables import csv_text

WEB = {"web": "onnx", "web-litert": "litert"}
"""Runtime of the artifacts, by the value of `--on` that stands for a browser."""

if TYPE_CHECKING:
    from iformer.bench.latency import Latency
    from iformer.bench.subjects import BenchSubject
    from iformer.deploy.runtimes.registry import Runtime
    from iformer.web.bench import WebResult


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
        typer.Option(
            help=f"Runtimes, separated by commas: {', '.join(RUNTIMES)}; {' and '.join(WEB)}: ONNX Runtime and "
            "LiteRT in the browser of a phone, or of this machine with --browser."
        ),
    ] = "onnx",
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Add the iFormers of the paper's Table 3, and its peers that timm has, at the paper's sizes.",
        ),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            help="Input sizes in pixels, separated by commas: 224, or height x width. [default: the network's; "
            "detectors and segmenters 320, 416, 512, 640]"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="Threads of the runtime; in a browser 1 is measured too.")
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples per network, taken in turns.")] = 20,
    calls: Annotated[int, typer.Option(min=1, help="Timed calls per sample, which is their median.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before them that are not timed.")] = 2,
    records: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Measure nothing; show records (bench.json of --out) of several devices side by side. Can be "
            "repeated. --out gets their pareto.png and pareto_narrow.png.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for bench.json, bench.csv and, with --peers at batch 1, pareto.png and pareto_narrow.png."
        ),
    ] = None,
    energy: Annotated[
        bool,
        typer.Option(
            "--energy",
            help="Also measure millijoules per image of the processor, where this machine can tell (RAPL).",
        ),
    ] = False,
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
    browser: Annotated[
        str | None,
        typer.Option(
            metavar="auto|PATH",
            help="With --on web: measure in a Chromium-based browser of this machine, without a window. [default: "
            "show an address for the phone]",
        ),
    ] = None,
    lan: LanOption = False,
    address: AddressOption = None,
    port: PortOption = None,
    assets: AssetsOption = None,
    images: PicturesOption = None,
    entry: EntryOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare the latency of networks and artifacts.

    In each runtime, the networks take turns, each in its own process. The latency on a computer does not
    predict the latency on a phone; compare ratios. Networks are exported in fp32 (Core ML: fp16) with normalised
    input, timm's networks after fuse(). The runtimes run on the CPU.
    """
    if records:
        if models or peers:
            raise UserError("--records shows what was measured; it takes no networks and no --peers")
        _show_records(records, out, json=json)
        return
    names = list(dict.fromkeys(name.strip() for name in on.split(",")))
    runtimes = [find_runtime(name) for name in names if name not in WEB]
    in_browser = [find_runtime(WEB[name]) for name in names if name in WEB]
    sizes = [] if size is None else list(dict.fromkeys(map(parse_size, size.split(","))))
    if not models and not peers:
        raise UserError("nothing to time; name networks or artifacts, or give --peers")
    if twice := next((name for name in models or [] if (models or []).count(name) > 1), None):
        raise UserError(f"{twice} is named twice; name each network once")
    if device not in ("auto", "cpu"):
        raise UserError(f"--device is '{device}'; the runtimes of bench run on the CPU")
    if iphone is not None and on != "coreml":
        raise UserError(f"--iphone needs --on coreml; got --on {on}")
    if team is not None and iphone is None:
        raise UserError("--team is for --iphone; give both")
    _check_artifacts(models or [], [runtime.name for runtime in (*runtimes, *in_browser)])
    if in_browser and batch != 1:
        raise UserError(f"--batch is {batch}; in a browser a call takes one image")
    if not in_browser and (browser, lan, address, port, assets, images) != (None, False, None, None, None, None):
        raise UserError("--browser, --lan, --address, --port, --assets and --images are for --on web")
    import torch

    from iformer.bench.core_ml import measure_core_ml, require_mac
    from iformer.bench.energy import CANNOT_TELL, find_meter
    from iformer.bench.latency import measure
    from iformer.bench.record import record, write_json
    from iformer.bench.subjects import prepare_matrix_product, require_runtime
    from iformer.web.bench import measure_browser

    torch.set_num_threads(threads)
    for runtime in (*runtimes, *in_browser):
        require_runtime(runtime)
        if runtime.name == "coreml":
            require_mac()
    meter = find_meter() if energy else None
    if energy and meter is None:
        note(CANNOT_TELL)
    measured: dict[str, list[Latency]] = {}
    web: WebResult | None = None
    left_out = _left_out() if peers else {}
    with removed_on_failure(out), tempfile.TemporaryDirectory(prefix="iformer-bench-") as folder:
        for runtime in runtimes:
            subjects = _subjects(models or [], peers, runtime, Path(folder), sizes, batch, entry, left_out)
            if runtime.name == "coreml":
                subjects = [subject for subject in subjects if not subject.postprocess]
                measured[runtime.name] = measure_core_ml(
                    subjects, iphone=iphone, team=team, rounds=rounds, calls=calls, report=note
                )
                continue
            subjects.append(prepare_matrix_product(runtime, Path(folder)))
            measured[runtime.name] = measure(
                subjects, rounds=rounds, calls=calls, warmup=warmup, threads=threads, meter=meter, report=note
            )
        if in_browser:
            web = measure_browser(
                [
                    subject
                    for runtime in in_browser
                    for subject in _subjects(
                        models or [], peers, runtime, Path(folder), sizes, batch, entry, left_out
                    )
                    if not subject.postprocess
                ],
                images,
                show_address=lambda page: show_page(page, lan=lan, write=note),
                rounds=rounds,
                calls=calls,
                warmup=warmup,
                threads=[threads],
                browser=browser,
                lan=lan,
                address=address,
                port=port,
                assets=assets,
                report=note,
            )
    figures: dict[str, Any] = {name: [row.to_plain() for row in rows] for name, rows in measured.items()}
    if web is not None:
        figures["web"] = web.to_plain()
    result = record(figures)
    if peers:
        result["left_out"] = left_out
    try:
        if json:
            print_json(result)
        else:
            _print_tables(measured, web, batch, browser, result["device"])
    finally:  # neither a full disk nor a closed pipe loses the measurement
        if out is not None:
            write_json(out / "bench.json", result)
            plain = [row.to_plain() for rows in measured.values() for row in rows]
            plain += [row.to_plain() | {"device": web.device.title} for row in web.rows] if web is not None else []
            _write_csv(out / "bench.csv", plain)
            if peers and batch == 1 and measured:
                _note_pictures(_draw(measured, out / "pareto.png", result["device"]))


def _print_tables(
    measured: dict[str, list[Latency]],
    web: WebResult | None,
    batch: int,
    browser: str | None,
    device: str,
) -> None:
    for name, rows in measured.items():
        print_latencies(f"{RUNTIMES[name].title} on {device}, batch {batch}", rows)
    if web is not None:
        where = web.device.title if browser is None else f"this machine: {web.device.browser}, {device}"
        print_browser_latencies(f"In the browser on {where}", web.rows)
        for row in web.rows:
            if row.reason:
                note(f"no latency of {row.label} in {row.where}: {row.reason}")


def _left_out() -> dict[str, str]:
    """Say which peers of the paper cannot be measured; return the reason for each."""
    from iformer_paper.peers import peers

    found = peers()
    left_out = {peer.label: peer.reason for peer in found if peer.reason}
    note(f"{len(found) - len(left_out)} of the paper's {len(found)} peers can be measured")
    for reason in dict.fromkeys(left_out.values()):
        labels = [label for label, why in left_out.items() if why == reason]
        note(f"left out, {reason}: {', '.join(labels)}")
    return left_out


def _subjects(
    models: list[str],
    peers: bool,
    runtime: Runtime,
    folder: Path,
    sizes: list[tuple[int, int]],
    batch: int,
    entry: str | None,
    left_out: dict[str, str],
) -> list[BenchSubject]:
    from iformer.bench.subjects import MATRIX_PRODUCT, prepare_all, prepare_subject
    from iformer_paper.pareto import published

    models = [name for name in models if not _is_for_another(Path(name), runtime)]
    labels = unique_labels(models, taken={MATRIX_PRODUCT, *(row.label for row in published() if peers)})
    subjects = [
        subject
        for name, label in zip(models, labels, strict=True)
        for subject in prepare_all(name, runtime, folder, sizes=sizes, batch=batch, label=label, entry=entry)
    ]
    for row in published() if peers else ():
        try:
            subjects.append(
                prepare_subject(row.name, runtime, folder, size=row.size, batch=batch, label=row.label)
            )
        except UserError as error:
            left_out[f"{row.label} in {runtime.title}"] = str(error)
            note(f"{row.label} is left out: {error}")
    note(f"ready for {runtime.title}: {', '.join(subject.label for subject in subjects)}")
    return subjects


def unique_labels(names: Sequence[str], *, taken: Collection[str] = ()) -> list[str]:
    """Return a label for each name: its stem or, where that is ambiguous, such as "best", the whole name.

    Args:
        names: different names of networks and artifacts.
        taken: labels of other subjects, which a stem must not equal.
    """
    stems = [Path(name).stem for name in names]
    taken = {*taken, *(name for name, stem in zip(names, stems, strict=True) if name != stem)}
    return [
        stem if stems.count(stem) == 1 and stem not in taken else name
        for stem, name in zip(stems, names, strict=True)
    ]


def _check_artifacts(models: list[str], runtimes: list[str]) -> None:
    """Raise a `UserError` if a model is an artifact of a runtime that is not measured: no table would have it."""
    from iformer.deploy.artifact import is_artifact, read_record

    for path in map(Path, models):
        if is_artifact(path) and (found := read_record(path).runtime) not in runtimes:
            raise UserError(f"{path} is for {RUNTIMES[found].title}; measure it with --on {found}")


def _is_for_another(path: Path, runtime: Runtime) -> bool:
    """Return whether a path is an artifact for a browser runtime other than `runtime`."""
    from iformer.deploy.artifact import is_artifact, read_record

    return is_artifact(path) and (found := read_record(path).runtime) != runtime.name and found in WEB.values()


def _draw(measured: Mapping[str, list[Latency]], path: Path, machine: str) -> list[Path]:
    from iformer_paper.pareto import Panel, draw_pareto

    panels = [
        Panel(
            title=f"{RUNTIMES[name].title}: measured",
            device=machine,
            median_ms={row.label: row.median_ms for row in rows},
        )
        for name, rows in measured.items()
    ]
    return draw_pareto(panels, path)


def _show_records(paths: list[Path], out: Path | None, *, json: bool) -> None:
    """Print the latencies of several devices side by side; with `out`, also plot them against accuracy."""
    from iformer.bench.device_columns import read_columns

    columns = read_columns(paths)
    if json:
        print_json(
            [
                {"device": column.device, "where": column.where, "network": network.label}
                | {"precision": network.precision, "size": list(network.size), "median_ms": median}
                for column in columns
                for network, median in column.median_ms.items()
            ]
        )
    else:
        print_devices(columns)
    if out is not None:
        from iformer_paper.pareto import Panel, draw_pareto

        panels = [
            Panel(
                title=f"{column.where}: measured",
                device=column.device,
                median_ms={network.label: median for network, median in column.median_ms.items()},
            )
            for column in columns
            if "batch" not in column.where
        ]
        if not any(panel.times for panel in panels):
            note("no picture: none of these networks is in the paper's Tables 3 and 18, which have the accuracies")
            return
        with removed_on_failure(out):
            _note_pictures(draw_pareto(panels, out / "pareto.png"))


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    plain = [row | {"size": f"{row['size'][0]}x{row['size'][1]}"} for row in rows]
    columns = list(dict.fromkeys(name for row in plain for name in row))
    write_text(path, csv_text(columns, ([row.get(name) for name in columns] for row in plain)))


def _note_pictures(paths: Sequence[Path]) -> None:
    note(f"pictures: {', '.join(map(str, paths))}")
