"""`iformer predict`: answers for images and videos."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from iformer.cli.arguments import DeviceOption, EngineOption, EntryOption, IouOption, MaxDetectionsOption
from iformer.cli.output import (
    FAILED,
    DebugOption,
    JsonOption,
    Terminated,
    note,
    note_warnings,
    print_json_line,
    say,
)
from iformer.errors import OutputError, UserError, WeightsError, counted, printable

DEFAULT_NETWORK = "iformer_m"
DEFAULT_FOLDER = Path("predictions")


def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, folders, glob patterns in quotes, URLs, or - for an image on standard input. For "
            "detectors and segmenters also videos, the number of a camera, or a stream (rtsp://, udp://, ...).",
        ),
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
            f"[default: {DEFAULT_FOLDER}, or {DEFAULT_FOLDER}/2 … if it holds answers; with --json nothing unless "
            "--out, --format or --explain is given]",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="Of the answers in --out: jsonl, csv or parquet (one row for each answer).")
    ] = "jsonl",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the answers that are in --out.")] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Classifiers: also draw where the network looks (explain.png)."),
    ] = False,
    flip: Annotated[
        bool, typer.Option("--flip", help="Classifiers: average the logits of each image and its mirror image.")
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
    max_detections: MaxDetectionsOption = None,
    iou: IouOption = None,
    tile: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Detectors, segmenters: look at large images in tiles."),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Share of a tile in common with the next one.", show_default="0.2"),
    ] = None,
    track: Annotated[
        bool, typer.Option("--track", help="Detectors: follow the objects of a video from frame to frame.")
    ] = False,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Detectors, segmenters: frames after which a video or stream ends.")
    ] = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    entry: EntryOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Classify, detect or segment images and videos.

    Takes files, folders, globs and URLs; writes JSON lines and pictures. Detectors draw boxes, names and masks,
    segmenters classes; both also take videos, cameras and streams. Ctrl-C ends a camera or stream.
    """
    from iformer.api.predict import predict as run

    writes = not json or explain or format != "jsonl"
    folder = out or (_unused_folder(overwrite=overwrite) if writes else None)
    if overwrite and folder is None:
        raise UserError("--overwrite is for the files in --out; --json without --out writes none")
    try:
        predictions = run(
            DEFAULT_NETWORK if weights is None else weights,
            images,
            out=folder,
            format=format,
            overwrite=overwrite,
            top_k=top_k,
            batch_size=batch_size,
            workers=workers,
            explain=explain,
            flip=flip,
            min_score=min_score,
            sliding=sliding,
            max_detections=max_detections,
            iou=iou,
            tile=tile,
            overlap=overlap,
            track=track,
            max_frames=max_frames,
            device=device,
            engine=engine,
            entry=entry,
            warn=note_warnings,
        )
    except WeightsError as error:
        if weights is not None:
            raise
        raise WeightsError(f"{error}{_offline_hint()}") from error
    width = min(48, max(len(printable(_short(item.source))) for item in predictions.inputs))
    answered = failed = 0
    start = time.perf_counter()
    try:
        for prediction in predictions:
            if prediction.error is not None:
                failed += 1
                note(f"error: {printable(prediction.source)}: {prediction.error}")
            else:
                answered += 1
            try:
                if json:
                    print_json_line(prediction.record)
                elif prediction.error is None and prediction.frame is None:
                    say(f"{printable(_short(prediction.source)):<{width}}  {prediction.words}")
            except OutputError as error:
                predictions.fail(error)
            except BrokenPipeError:
                if folder is None:  # `| head` has seen enough
                    raise
                predictions.fail(OutputError("standard output was closed"))
    except (KeyboardInterrupt, Terminated) as error:
        predictions.close()
        if isinstance(error, Terminated) or predictions.live is None or not answered:
            for line in predictions.written:
                note(line)
            raise
    seconds = time.perf_counter() - start
    note(
        f"{counted(answered, 'image')} in {seconds:.1f} s ({answered / seconds:.1f} images/s) "
        f"by {predictions.predictor.name} on {predictions.predictor.device}"
        + (f"; {failed} without an answer" if failed else "")
    )
    if dropped := predictions.predictor.dropped:
        note(f"{counted(dropped, 'frame')} left out, because frames came faster than they were answered")
    for line in predictions.written:
        note(line)
    if failed:
        raise typer.Exit(FAILED)


def _unused_folder(*, overwrite: bool) -> Path:
    """Return the default folder or, if that holds answers of an earlier call, a numbered folder inside it.

    With `overwrite`, it is always the default folder.
    """
    from iformer.api.answers import holds_answers

    numbered = (DEFAULT_FOLDER if number == 1 else DEFAULT_FOLDER / str(number) for number in count(1))
    return next(folder for folder in numbered if overwrite or not holds_answers(folder))


def _short(source: str) -> str:
    """Return the last component of a path or URL."""
    return Path(source).name or source


def _offline_hint() -> str:
    from iformer.config.variants import shipped_checkpoints

    shipped = ", ".join(f"--weights {name}" for name in shipped_checkpoints())
    return f"; without a connection: {shipped} (comes with iformer)" if shipped else ""
