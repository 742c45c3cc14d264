"""`iformer predict`: what is in these images?"""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import DeviceOption, output_folder
from iformer.cli.output import FAILED, DebugOption, JsonOption, note, print_json_line
from iformer.device import resolve_device
from iformer.errors import UserError, WeightsError
from iformer.files import write_text

if TYPE_CHECKING:
    from iformer.deploy.artifact import Runner
    from iformer.models.classifier import Classifier
    from iformer.tasks.classification.predict import Answer, Failure

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
    top_k: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder for predict.png, explain.png and predictions.jsonl. "
            f"[default: {DEFAULT_FOLDER}; with --json nothing is written unless --out or --explain is given]",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also draw where the last attention stage looks (explain.png).")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one call of the network.")] = 32,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images. [default: one a core, at most 8]")
    ] = None,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Detectors: the least score that is reported.")
    ] = 0.5,
    sliding: Annotated[
        bool, typer.Option("--sliding", help="Segmenters: overlapping windows instead of the whole image.")
    ] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Name what is in images: files, folders, globs. JSON lines, a contact sheet, where the network looks.

    A network for detection draws boxes, names and masks, one for segmentation classes; both take videos too.
    """
    from iformer.data.stream import find_images
    from iformer.models.weights.dense_checkpoint import is_dense_checkpoint
    from iformer.tasks.classification.predict import Answer, Predictor

    if weights is not None and Path(weights).is_file() and is_dense_checkpoint(weights):
        from iformer.cli.predict_dense import predict_dense

        if explain:
            raise UserError("--explain is for classifiers; leave it out")
        predict_dense(
            images,
            Path(weights),
            out=out or (None if json else DEFAULT_FOLDER),
            min_score=min_score,
            sliding=sliding,
            device=resolve_device(device),
            json=json,
        )
        return
    paths = find_images(images)
    folder = out or (None if json and not explain else DEFAULT_FOLDER)
    if folder is not None:
        written_here = output_folder(folder).resolve()
        # the pictures of an earlier run lie below a folder such as "."; they are not its photographs
        paths = [path for path in paths if written_here not in path.resolve().parents] or paths
    predictor = Predictor(
        _model(weights, device),
        top_k=top_k,
        batch_size=batch_size,
        workers=workers,
        device="cpu" if _is_artifact(weights) else resolve_device(device),
        attention=explain,
    )
    width = min(48, max(len(path.name) for path in paths))
    records: list[dict[str, Any]] = []
    drawn: list[Answer] = []
    failed = 0
    start = time.perf_counter()
    for outcome in predictor.predict(paths):
        record = _record(outcome)
        records.append(record)
        if isinstance(outcome, Answer):
            if len(drawn) < _drawn_at_most(explain=explain):
                drawn.append(outcome)
        else:
            failed += 1
            note(f"error: {outcome.path}: {outcome.reason}")
        if json:
            print_json_line(record)
        elif isinstance(outcome, Answer):
            print(f"{outcome.path.name:<{width}}  {_in_words(outcome)}", flush=True)
    seconds = time.perf_counter() - start
    answered = len(records) - failed
    note(
        f"{answered} image{'s' if answered != 1 else ''} in {seconds:.1f} s ({answered / seconds:.1f} images/s) "
        f"by {predictor.name} on {predictor.device}" + (f"; {failed} could not be read" if failed else "")
    )
    if folder is not None:
        _write(folder, records, drawn, answered, predictor.name, weights or DEFAULT_NETWORK, explain=explain)
    if failed:
        raise typer.Exit(FAILED)


def _is_artifact(weights: str | None) -> bool:
    from iformer.deploy.artifact import is_artifact

    return weights is not None and is_artifact(weights)


def _model(weights: str | None, device: str) -> Classifier | Runner:
    from iformer.models.weights.resolve import open_network

    if weights is None:
        return _default_network()
    if not _is_artifact(weights):
        return open_network(weights)
    from iformer.deploy.export import open_artifact, quiet

    if device not in ("auto", "cpu"):
        raise UserError(f"--device is '{device}'; an artifact runs on the CPU, in its own runtime")
    with quiet():
        return open_artifact(Path(weights))


def _default_network() -> Classifier:
    from iformer.models.weights.resolve import open_network, shipped_checkpoints

    try:
        return open_network(DEFAULT_NETWORK)
    except WeightsError as error:
        shipped = ", ".join(f"--weights {name}" for name in shipped_checkpoints())
        hint = f"; without a connection: {shipped} (comes with iformer)" if shipped else ""
        raise WeightsError(f"{error}{hint}") from error


def _drawn_at_most(*, explain: bool) -> int:
    from iformer.tasks.contact_sheet import max_drawn

    return max(max_drawn(explain=False), max_drawn(explain=True) if explain else 0)


def _record(outcome: Answer | Failure) -> dict[str, Any]:
    from iformer.tasks.classification.predict import Answer

    if not isinstance(outcome, Answer):
        return {"file": str(outcome.path), "error": outcome.reason}
    classes = [{"name": name, "probability": round(probability, 6)} for name, probability in outcome.classes]
    return {"file": str(outcome.path), "classes": classes}


def _in_words(answer: Answer) -> str:
    return "   ".join(f"{name} {100 * probability:.1f} %" for name, probability in answer.classes)


def _write(
    folder: Path,
    records: list[dict[str, Any]],
    drawn: list[Answer],
    answered: int,
    name: str,
    weights: str,
    *,
    explain: bool,
) -> None:
    from iformer.tasks.contact_sheet import draw_explanations, draw_predictions, max_drawn

    lines = [json_module.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_text(folder / "predictions.jsonl", "".join(lines))
    if not drawn:
        return
    title = f"{name} on {answered} image{'s' if answered != 1 else ''}"
    subtitle = f"Weights: {weights}. Each image as the network sees it, with its likeliest classes."
    pictures = draw_predictions(drawn, folder, title=title, subtitle=subtitle)
    if explain:
        pictures += draw_explanations(drawn, folder, title=f"Where {name} looks")
    note("written: " + ", ".join(str(picture) for picture in pictures))
    for kind, limit in (("predict", max_drawn()), ("explain", max_drawn(explain=True))):
        if answered > limit and (kind == "predict" or explain):
            note(
                f"{kind}.png shows the first {limit} of {answered} images; {folder / 'predictions.jsonl'} has all"
            )
