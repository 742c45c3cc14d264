"""`iformer.predict`: answers for images and videos."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import numpy.typing as npt
import torch

from iformer.api.answers import Answer, AnswerFormat, answers_of, check_format, holds_answers, write_answers
from iformer.api.engine import with_engine
from iformer.api.inputs import Input, check_videos, collect_inputs, without_videos
from iformer.api.train import python_warnings
from iformer.config.checking import Count, FileName, Range, Share, check_arguments, short_repr
from iformer.errors import UserError
from iformer.files import output_folder, removed_if_empty, write_bytes
from iformer.locks import reserved
from iformer.plain_values import plain_arguments
from iformer.tasks.interface import (
    PredictModule,
    PredictOptions,
    Record,
    TaskPredictor,
    Warn,
    check_options,
    no_masks,
)
from iformer.tasks.subject import open_subject

_UNFINISHED = ".predict.unfinished"
"""Name of the empty file that marks the output folder of a running call; it stays if the call is killed."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image or video frame."""

    source: str
    """The source of the image: a path, a URL, "camera 0", or "image 3" for the third image in memory."""
    path: Path | None
    """The image file; None for an image in memory or from a URL that was not kept."""
    answers: tuple[Answer, ...] = ()
    """Classifiers: the top classes. Detectors: the objects. Segmenters: the classes of the pixels. The highest
    score comes first."""
    labels: tuple[str, ...] | None = None
    """Multi-label classifiers: names of the classes whose probability reaches the threshold; None for others."""
    error: str | None = None
    """Why the image has no answer: it cannot be read, or the network's outputs overflow. None: it has one."""
    record: Record = field(repr=False)
    """The answer as plain values: the line of `predictions.jsonl`."""
    make_masks: Callable[[], npt.NDArray[Any] | None] = field(default=no_masks, repr=False, compare=False)
    """Function that computes `masks`; can be pickled."""
    words: str = field(default="", repr=False)
    """The answers as one line of text."""

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def name(self) -> str | None:
        """Class name of the first answer; None if there is no answer."""
        return self.answers[0].name if self.answers else None

    @property
    def score(self) -> float | None:
        """Score of the first answer; None if there is no answer."""
        return self.answers[0].score if self.answers else None

    @property
    def masks(self) -> npt.NDArray[Any] | None:
        """Masks of the image, computed at each access because they are large.

        Segmenters: class of each pixel, uint8 H x W. Detectors with masks: bool N x H x W, in the order of
        `answers`. None if there are no masks.
        """
        return self.make_masks()

    @property
    def frame(self) -> int | None:
        """Number of the frame of a video, from 0; None for images."""
        return self.record.get("frame")


class Predictions(Iterator[Prediction]):
    """Iterator over the predictions of one call, which are computed on demand."""

    def __init__(
        self,
        inputs: list[Input],
        predictor: TaskPredictor,
        out: Path | None,
        stack: ExitStack,
        *,
        format: AnswerFormat = "jsonl",
        overwrite: bool = False,
    ) -> None:
        """Prepare the predictions; nothing is computed yet.

        `stack` is closed after the last prediction, or by `close`. From the first prediction until then, `out` is
        locked.

        Raises:
            UserError: a file that is not of an earlier call would be replaced; see `_check_files`.
        """
        self.inputs, self.predictor, self.out = inputs, predictor, out
        self.written: list[str] = []
        """After the last prediction: lines that say which files are in `out`."""
        self._stack, self._format, self._overwrite = stack, format, overwrite
        self._paths = [item.path for item in inputs if item.path is not None]
        self.live = next((item.live for item in inputs if item.live is not None), None)
        """The camera or stream, if the input is one. It may have no end: `close` ends it."""
        drawn = self._paths if self.live is None else [Path(f"{self.live.stem}.mp4")]
        self._files = [] if out is None else [out / file for file in predictor.files(drawn)]
        if out is not None:
            _check_files(out, self._files, self._paths)
        self._records: list[Record] = []
        self._running = self._run()

    def __next__(self) -> Prediction:
        return next(self._running)

    def close(self) -> None:
        """Stop early, and write the answers so far."""
        self._running.close()
        self._stack.close()

    def __del__(self) -> None:
        self._stack.close()

    def _run(self) -> Generator[Prediction]:
        with self._stack:
            if self.out is not None:
                lock = self.out / ".predicting.part"
                self._stack.enter_context(reserved(lock, f"{self.out} is in use: another predict writes into it"))
                _check_unused(self.out, overwrite=self._overwrite)
                _check_files(self.out, self._files, self._paths)
                self._stack.enter_context(_marked_as_unfinished(self.out, self._files))
            try:
                if self.live is not None:
                    with closing(self.predictor.predict_live(self.live, self.out)) as records:
                        for record in records:
                            yield self._kept(self.inputs[0], {**record, "file": self.inputs[0].source})
                else:
                    yield from self._in_order(self.predictor.predict(self._paths, self.out))
            except BaseException:  # Ctrl-C, a full disk, a caller who has seen enough: keep the answers so far
                if self.out is not None and self._records:
                    with suppress(UserError, OSError):
                        self.written.append(f"written: {write_answers(self.out, self._records, self._format)}")
                        if self.live is not None:
                            self.written += self.predictor.finish(self.out)
                raise
            if self.out is not None:
                self.written.append(f"written: {write_answers(self.out, self._records, self._format)}")
                self.written += self.predictor.finish(self.out)

    def _in_order(self, records: Iterator[Record]) -> Iterator[Prediction]:
        """Yield the predictions of files, and at their places those of inputs that are no files."""
        by_path = {item.path: item for item in self.inputs if item.path is not None}
        waiting, latest = iter(self.inputs), None
        for record in records:
            item = by_path[Path(record["file"])]
            if item is not latest:  # not a further frame of a video
                latest = item
                for earlier in takewhile(lambda other, found=item: other is not found, waiting):  # type: ignore[misc]
                    yield from self._failed(earlier)
            yield self._kept(item, {**record, "file": item.source})
        for rest in waiting:
            yield from self._failed(rest)

    def _failed(self, item: Input) -> Iterator[Prediction]:
        if item.error:
            yield self._kept(item, {"file": item.source, "error": item.error})

    def _kept(self, item: Input, record: Record) -> Prediction:
        if self.out is not None:
            self._records.append(record)
        failed = "error" in record
        return Prediction(
            source=item.source,
            path=item.path if not item.is_stored or self.out is not None else None,
            answers=() if failed else tuple(answers_of(record)),
            labels=tuple(record["labels"]) if "labels" in record else None,
            error=record.get("error"),
            record=record,
            make_masks=self.predictor.masks() if not failed else no_masks,
            words="" if failed else self.predictor.words(record),
        )


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
            ("rtsp://...", the URL of motion JPEG or HLS).
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
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(removed_if_empty(Path(out)))
        if folder is not None:
            _check_unused(output_folder(folder), overwrite=overwrite)

        def storage() -> Path:
            if folder is None:
                return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iformer-")))
            inner = stack.enter_context(removed_if_empty(folder / "inputs"))
            inner.mkdir(exist_ok=True)
            return inner

        inputs = collect_inputs(images, _once(storage))
        if folder is not None:
            inputs = _without_outputs(inputs, folder)
        subject = open_subject(model, device=device, entry=entry)
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
        if not module.VIDEOS:
            inputs = without_videos(inputs, subject.row.networks)
        (warn or python_warnings)(subject.notes)
        check_options(options, module.TAKES, subject.row.networks)
        for option, given in (("--track", track), ("--max-frames", max_frames)):
            if given:
                check_videos(inputs, option)
        found = sum(item.path is not None for item in inputs)
        subject = with_engine(
            subject.in_eval_mode(), engine, warn=warn or python_warnings, images=found, explain=explain
        )
        predictor = module.open_predictor(subject.model, options)
        return Predictions(inputs, predictor, folder, stack.pop_all(), format=answer_format, overwrite=overwrite)
    raise AssertionError


def _check_unused(folder: Path, *, overwrite: bool) -> None:
    if holds_answers(folder) and not overwrite:
        raise UserError(
            f"{folder} holds answers already; --overwrite replaces them, another --out leaves them alone"
        )


def _check_files(folder: Path, files: Sequence[Path], images: Sequence[Path]) -> None:
    """Check that writing replaces only files of an earlier call.

    Args:
        folder: the output folder.
        files: the files that would be written.
        images: the files that are read.

    Raises:
        UserError: a file to be written is one of the images, or exists in a folder that no earlier call wrote to.
    """
    read = {identity for path in images if (identity := _identity(path)) is not None}
    ours = holds_answers(folder) or (folder / _UNFINISHED).exists()
    for file in files:
        identity = _identity(file)
        if identity in read:
            raise UserError(
                f"{file} is one of the images to be read, and the result would replace it; give another --out"
            )
        if identity is not None and not ours:
            raise UserError(f"{file} exists, and no earlier predict wrote it; give another --out")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, which all its names share; None if there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextmanager
def _marked_as_unfinished(folder: Path, files: Sequence[Path]) -> Iterator[None]:
    """Mark a folder until its answers are written, so that a later call may replace files of a killed call."""
    mark = write_bytes(folder / _UNFINISHED, b"")
    try:
        yield
    finally:
        if holds_answers(folder) or not any(map(_identity, files)):
            mark.unlink(missing_ok=True)


def _once(make: Any) -> Any:
    made: list[Path] = []

    def folder() -> Path:
        if not made:
            made.append(make())
        return made[0]

    return folder


def _without_outputs(inputs: list[Input], folder: Path) -> list[Input]:
    """Leave out inputs that lie in the output folder, such as pictures of an earlier call.

    Files that the user named stay. If no file would be left, all inputs stay.
    """
    here = Path(os.path.realpath(folder))  # not Path.resolve: it raises at links that point to themselves
    # the folder `predictions/2` lies next to the answers in `predictions`
    if here.name.isdecimal() and holds_answers(here.parent):
        here = here.parent
    kept = [
        item
        for item in inputs
        if item.is_given or item.path is None or here not in Path(os.path.realpath(item.path)).parents
    ]
    return kept if any(item.path for item in kept) else inputs
