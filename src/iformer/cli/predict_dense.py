"""`iformer predict` for detectors and segmenters: pictures, COCO's JSON or masks, and videos."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from iformer.cli.arguments import output_folder
from iformer.cli.output import FAILED, note, print_json_line
from iformer.files import write_text

if TYPE_CHECKING:
    from iformer.tasks.classification.predict import Failure
    from iformer.tasks.dense_predict import DensePredictor


def predict_dense(
    sources: list[str],
    weights: Path,
    *,
    out: Path | None,
    min_score: float,
    sliding: bool,
    device: Any,
    json: bool,
) -> None:
    """Answer for every image and video, in order, and write what `out` is for.

    Raises:
        UserError: the checkpoint or a source cannot be used.
        typer.Exit: an image or video could not be read; all others were answered.
    """
    from iformer.data.stream import find_images
    from iformer.data.video import has_video_extension
    from iformer.models.weights.dense_checkpoint import load_dense
    from iformer.tasks.classification.predict import Failure
    from iformer.tasks.dense_predict import DensePredictor, predict_images

    paths = find_images(sources)
    if out is not None:
        written_here = output_folder(out).resolve()
        paths = [path for path in paths if written_here not in path.resolve().parents] or paths
    predictor = DensePredictor(load_dense(weights), device=device, min_score=min_score, sliding=sliding)
    videos = [path for path in paths if has_video_extension(path)]
    outcomes = predict_images(predictor, [path for path in paths if path not in set(videos)], out)
    records: list[dict[str, Any]] = []
    failed = 0
    start = time.perf_counter()
    for outcome in _all(outcomes, predictor, videos, out):
        if isinstance(outcome, Failure):
            failed += 1
            record: dict[str, Any] = {"file": str(outcome.path), "error": outcome.reason}
            note(f"error: {outcome.path}: {outcome.reason}")
        else:
            record = outcome
        records.append(record)
        if json:
            print_json_line(record)
        elif "error" not in record and "frame" not in record:
            print(f"{Path(record['file']).name}  {_in_words(record)}", flush=True)
    seconds = time.perf_counter() - start
    answered = len(records) - failed
    note(
        f"{answered} answer{'s' if answered != 1 else ''} in {seconds:.1f} s "
        f"({answered / seconds:.1f} a second) by {predictor.name} on {predictor.device}"
        + (f"; {failed} could not be read" if failed else "")
    )
    if out is not None:
        lines = [json_module.dumps(record, ensure_ascii=False) + "\n" for record in records]
        write_text(out / "predictions.jsonl", "".join(lines))
        note(f"written: {out}")
    if failed:
        raise typer.Exit(FAILED)


def _all(
    images: Iterator[dict[str, Any] | Failure], predictor: DensePredictor, videos: list[Path], out: Path | None
) -> Iterator[dict[str, Any] | Failure]:
    from iformer.errors import DataError
    from iformer.tasks.classification.predict import Failure

    yield from images
    for path in videos:
        try:
            yield from _video(predictor, path, out)
        except DataError as error:
            yield Failure(path=path, reason=str(error).removeprefix(f"{path}: "))


def _video(predictor: DensePredictor, path: Path, out: Path | None) -> Iterator[dict[str, Any]]:
    from iformer.data.video import VideoReader
    from iformer.tasks.dense_predict import predict_video
    from iformer.training.records.logs import ProgressView

    with VideoReader(path) as reader:
        total = reader.frames or 0
    with ProgressView(total=total, what=path.name) as view:
        yield from predict_video(predictor, path, out, lambda done: view.advance(1, f"frame {done}"))


def _in_words(record: dict[str, Any]) -> str:
    if "detections" in record:
        found = [f"{item['name']} {100 * item['score']:.0f} %" for item in record["detections"]]
        return "   ".join(found) or "nothing"
    return "   ".join(f"{item['name']} {100 * item['share']:.1f} %" for item in record["classes"][:8])
