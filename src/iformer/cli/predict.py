"""`iformer predict`: say what is on images and videos."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from iformer.cli.arguments import DeviceOption, EntryOption, output_folder
from iformer.cli.output import FAILED, DebugOption, JsonOption, note, print_json_line, say
from iformer.device import resolve_device
from iformer.errors import WeightsError, printable
from iformer.files import write_text

DEFAULT_NETWORK = "iformer_m"
DEFAULT_FOLDER = Path("predictions")


def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Image files, folders, or glob patterns in quotes.")
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|NAME",
            help="A checkpoint file (of any task), an exported artifact, a shipped network (elpv: solar cells) "
            "or a released one (iformer_t). "
            f"[default: the released ImageNet weights of {DEFAULT_NETWORK}]",
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Classifiers: classes to name for each image.", show_default="5")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder for pictures and predictions.jsonl. "
            f"[default: {DEFAULT_FOLDER}; with --json nothing is written unless --out or --explain is given]",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Classifiers: also draw where the network looks (explain.png)."),
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Classifiers: images in one call.", show_default="32")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Classifiers: threads that decode images.", show_default="one a core, at most 8"),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Detectors: the lowest score that is reported.", show_default="0.5"),
    ] = None,
    sliding: Annotated[
        bool, typer.Option("--sliding", help="Segmenters: overlapping windows instead of the whole image.")
    ] = False,
    device: DeviceOption = "auto",
    entry: EntryOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Classify, detect or segment images and videos.

    Takes files, folders and globs; writes JSON lines and pictures. Detectors draw boxes, names and masks,
    segmenters classes; both also take videos.
    """
    import json as json_module

    from iformer.cli.subject import open_subject
    from iformer.data.stream import find_images
    from iformer.tasks.interface import PredictModule, PredictOptions, Record, check_options

    paths = find_images(images, videos=True)
    folder = out or (None if json and not explain else DEFAULT_FOLDER)
    if folder is not None:
        written_here = output_folder(folder).resolve()
        # the pictures of an earlier run below a folder such as "." are not input
        paths = [path for path in paths if written_here not in path.resolve().parents] or paths
    if weights is None and entry is None:
        subject, row = _default_network()
    else:
        subject, row = open_subject(weights or DEFAULT_NETWORK, device=device, entry=entry)
    options = PredictOptions(
        device=resolve_device(device if hasattr(subject, "parameters") else "cpu"),
        title=weights or DEFAULT_NETWORK,
        top_k=top_k,
        batch_size=batch_size,
        workers=workers,
        explain=explain or None,
        min_score=min_score,
        sliding=sliding or None,
    )
    module: PredictModule = row.module("predict")
    if not module.VIDEOS:
        wanted = set(find_images(images))
        paths = [path for path in paths if path in wanted]
    check_options(options, module.TAKES, row.networks)
    predictor = module.open_predictor(subject, options)
    width = min(48, max(len(printable(path.name)) for path in paths))
    records: list[Record] = []
    failed = 0
    start = time.perf_counter()
    for record in predictor.predict(paths, folder):
        records.append(record)
        if "error" in record:
            failed += 1
            note(f"error: {printable(record['file'])}: {record['error']}")
        if json:
            print_json_line(record)
        elif "error" not in record and "frame" not in record:
            say(f"{printable(Path(record['file']).name):<{width}}  {predictor.words(record)}")
    seconds = time.perf_counter() - start
    answered = len(records) - failed
    note(
        f"{answered} image{'s' if answered != 1 else ''} in {seconds:.1f} s ({answered / seconds:.1f} images/s) "
        f"by {predictor.name} on {predictor.device}" + (f"; {failed} could not be read" if failed else "")
    )
    if folder is not None:
        lines = [json_module.dumps(record, ensure_ascii=False) + "\n" for record in records]
        write_text(folder / "predictions.jsonl", "".join(lines))
        for line in predictor.finish(folder):
            note(line)
    if failed:
        raise typer.Exit(FAILED)


def _default_network() -> tuple[Any, Any]:
    from iformer.cli.subject import open_subject
    from iformer.config.variants import shipped_checkpoints

    try:
        return open_subject(DEFAULT_NETWORK, device="auto")
    except WeightsError as error:
        shipped = ", ".join(f"--weights {name}" for name in shipped_checkpoints())
        hint = f"; without a connection: {shipped} (comes with iformer)" if shipped else ""
        raise WeightsError(f"{error}{hint}") from error
