"""`iformer.predict`: answers for images and videos."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch

from iformer.api.answers import check_format
from iformer.api.answers_folder import check_unused, without_outputs
from iformer.api.engine import with_engine
from iformer.api.inputs import Input, check_videos, collect_inputs, in_portions, is_lazy, without_videos
from iformer.api.predictions import Predictions
from iformer.api.train import python_warnings
from iformer.config.checking import Count, FileName, Range, Share, check_arguments
from iformer.errors import OutputError, one_line
from iformer.files import output_folder, removed_if_empty
from iformer.plain_values import plain_arguments
from iformer.tasks.interface import PredictModule, PredictOptions, Warn, check_options
from iformer.tasks.subject import open_subject
from iformer.torch_modes import default_cpu

_AHEAD = 8
"""Images that classifiers draw from a generator at a time."""


@default_cpu()
@plain_arguments
def predict(
    model: Any,
    images: Any,
    *,
    out: FileName | None = None,
    format: str = "jsonl",
    overwrite: bool = False,
    top_k: Count | None = None,
    batch_size: Count | None = None,
    workers: Count | None = None,
    explain: bool = False,
    flip: bool = False,
    min_score: Share | None = None,
    sliding: bool = False,
    max_detections: Annotated[int, Range(1, 100_000)] | None = None,
    iou: Annotated[float, Range(0, 1, above=True)] | None = None,
    tile: Count | None = None,
    overlap: Annotated[float, Range(0, 0.9)] | None = None,
    track: bool = False,
    max_frames: Count | None = None,
    device: str | torch.device = "auto",
    engine: str = "auto",
    entry: str | None = None,
    warn: Warn | None = None,
) -> Predictions:
    """Classify images, find objects or label pixels; the same as the verb `predict`.

    Args:
        model: a network of this package, any name that `iformer.load` takes, or an exported artifact.
        images: one source or an iterable of them: files, folders, patterns, URLs, "-" (standard input), PIL
            images, NumPy arrays (H x W or H x W x C) and tensors (C x H x W), uint8 or float from 0 to 1.
            Detectors and segmenters take videos too, or one camera ("0", "/dev/video0") or stream
            ("rtsp://...", the URL of motion JPEG or HLS). A generator may have no end: classifiers draw
            `batch_size` images (None: 8) from it at a time, others one. With `out` all are drawn first.
        out: folder for pictures and `predictions.jsonl`; images in memory and from URLs are kept in its `inputs`.
            None: nothing is written.
        format: "jsonl", "csv" or "parquet". Tables have one row for each answer; see `iformer.api.answers`.
        overwrite: replace the answers of an earlier call in `out`.
        top_k: classifiers: classes in an answer. None: 5.
        batch_size: classifiers: images in one call. None: 32.
        workers: classifiers: threads that decode. None: one per core, at most 8.
        explain: classifiers: also draw where the network looks; needs `out`.
        flip: classifiers: average the logits of each image and its mirror image.
        min_score: detectors: the lowest score that is reported. None: 0.5.
        sliding: segmenters: overlapping windows instead of the whole image.
        max_detections: detectors: largest number of objects on an image. None: as trained.
        iou: detectors: overlap above which the box with the lower score is dropped. None: as trained.
        tile: detectors and segmenters: side, in pixels, of the square tiles into which large images are cut. None:
            no tiles.
        overlap: smallest overlap of neighbouring tiles, as a share of their side. None: 0.2.
        track: detectors on videos: follow objects from frame to frame, with ByteTrack; see `Answer.track`.
        max_frames: frames after which a video, camera or stream ends. None: all.
        device: "auto" leaves a network that is given where it is, and opens names on the best device.
        engine: what computes a network's answers on the CPU: "torch", or "onnx" or "openvino", which export it
            first, in some seconds, and give the same answers. "auto": "onnx", if it is installed, for a classifier
            on thousands of images, where the export saves time; else "torch".
        entry: which weights to take from the file of a training script, such as "model_ema".
        warn: called with notes about the model, one line each. None: each line is a Python warning.

    Returns:
        An iterator over one `Prediction` for each image and frame, in the order of `images`. An image that
        cannot be read gives a prediction with an `error`, at its place; the other images are still processed.

    Raises:
        UserError: the model cannot be opened, an option is not for its task, no image was found, or `out` holds
            answers of an earlier call, is in use by another call, or holds files that would be replaced and are
            not of an earlier call.
    """
    check_arguments(predict, locals())
    answer_format = check_format(format)
    warn = warn or python_warnings
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(removed_if_empty(Path(out)))
        if folder is not None:
            check_unused(output_folder(folder), overwrite=overwrite)

        def storage() -> Path:
            if folder is None:
                return _temporary_folder(stack)
            inner = stack.enter_context(removed_if_empty(folder / "inputs"))
            return output_folder(inner)

        notes: list[str] = []
        numbers, portions = count(1), iter([images])
        subject = None
        lazy = folder is None and is_lazy(images)
        if lazy:
            subject = open_subject(model, device=device, entry=entry)
            portions = in_portions(images, batch_size or (_AHEAD if subject.row.name == "classify" else 1))
        sources = next(portions, ())
        inputs = collect_inputs(
            sources, _once(storage), notes.extend, numbers=numbers, is_portion=lazy and bool(sources)
        )
        if folder is not None:
            inputs = without_outputs(inputs, folder)
        subject = subject or open_subject(model, device=device, entry=entry)
        options = PredictOptions(
            device=subject.device,
            title=subject.title,
            top_k=top_k,
            batch_size=batch_size,
            workers=workers,
            explain=explain or None,
            flip=flip or None,
            min_score=min_score,
            sliding=sliding or None,
            max_detections=max_detections,
            iou=iou,
            tile=tile,
            overlap=overlap,
            track=track or None,
            max_frames=max_frames,
        )
        module: PredictModule = subject.row.module("predict")
        networks = subject.row.networks

        def checked(inputs: list[Input], tell: Warn) -> list[Input]:
            if not module.VIDEOS:
                inputs = without_videos(inputs, networks, tell)
            for option, given in (("--track", track), ("--max-frames", max_frames)):
                if given:
                    check_videos(inputs, option, tell)
            return inputs

        def more() -> Generator[list[Input]]:
            for portion in portions:
                with ExitStack() as own:
                    store = _once(partial(_temporary_folder, own))
                    yield checked(collect_inputs(portion, store, warn, numbers=numbers, is_portion=True), warn)

        check_options(options, module.TAKES, networks)
        inputs = checked(inputs, notes.extend)
        warn([*notes, *subject.notes])
        found = sum(item.path is not None for item in inputs)
        subject = with_engine(subject.in_eval_mode(), engine, warn=warn, images=found, explain=explain)
        predictor = module.open_predictor(subject.model, options)
        predictor.warn = warn
        return Predictions(
            inputs,
            predictor,
            folder,
            stack.pop_all(),
            format=answer_format,
            overwrite=overwrite,
            more=more(),
        )
    raise AssertionError


def _temporary_folder(stack: ExitStack) -> Path:
    try:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iformer-")))
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be made ({error.strerror or one_line(error)}); set TMPDIR"
        ) from error


def _once(make: Any) -> Any:
    made: list[Path] = []

    def folder() -> Path:
        if not made:
            made.append(make())
        return made[0]

    return folder
