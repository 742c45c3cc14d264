"""The answers of `iformer.predict`, which are computed on demand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy.typing as npt

from iformer.api.answers import (
    Answer,
    AnswerFormat,
    AnswersReserve,
    answers_file,
    answers_of,
    write_answers,
    write_what_fits,
)
from iformer.api.answers_folder import check_files, check_unused, marked_as_unfinished
from iformer.api.inputs import Input
from iformer.config.checking import short_repr
from iformer.errors import OutputError, one_line
from iformer.locks import reserved
from iformer.tasks.interface import (
    Record,
    TaskPredictor,
    no_masks,
)
from iformer.torch_modes import default_cpu


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
        more: Generator[list[Input]] | None = None,
    ) -> None:
        """Prepare the predictions; nothing is computed yet.

        `more` gives the inputs of further portions; without `out` only. `stack` is closed after the last
        prediction, or by `close`. From the first prediction until then, `out` is locked.

        Raises:
            UserError: a file that is not of an earlier call would be replaced; see `check_files`.
        """
        self.inputs, self.predictor, self.out = inputs, predictor, out
        self._more: Iterator[list[Input]] = more or iter(())
        if more is not None:
            stack.callback(more.close)
        self.written: list[str] = []
        """After the last prediction: lines that say which files are in `out`."""
        self._stack, self._format, self._overwrite = stack, format, overwrite
        self._paths = [item.path for item in inputs if item.path is not None]
        self.live = next((item.live for item in inputs if item.live is not None), None)
        """The camera or stream, if the input is one. It may have no end: `close` ends it."""
        drawn = self._paths if self.live is None else [Path(f"{self.live.stem}.mp4")]
        self._files = [] if out is None else [out / file for file in predictor.files(drawn)]
        if out is not None:
            check_files(out, self._files, self._paths)
        self._records: list[Record] = []
        self._reserve: AnswersReserve | None = None
        self._running = self._run()

    def __next__(self) -> Prediction:
        with default_cpu():
            return next(self._running)

    def close(self) -> None:
        """Stop early, and write the answers so far."""
        self._running.close()
        self._stack.close()

    def __del__(self) -> None:
        self._stack.close()

    def fail(self, error: Exception) -> NoReturn:
        """Stop because the caller cannot go on, and write the answers so far.

        Raises:
            OutputError: an `OutputError` or `OSError` was given, and there is an output folder; the message also
                says how many answers are in which file. Other errors are raised as they are.
        """
        self._running.throw(error)
        raise error

    def _run(self) -> Generator[Prediction]:
        with self._stack:
            if self.out is not None:
                lock = self.out / ".predicting.part"
                self._stack.enter_context(reserved(lock, f"{self.out} is in use: another predict writes into it"))
                check_unused(self.out, overwrite=self._overwrite)
                check_files(self.out, self._files, self._paths)
                self._stack.enter_context(marked_as_unfinished(self.out, self._files))
                self._reserve = AnswersReserve(self.out, self._format)
                self._stack.callback(self._reserve.release)
            try:
                yield from self._answered()
                if self.out is not None:
                    self._write(self.out)
            except BaseException as error:  # Ctrl-C, a full disk, a caller who has seen enough
                if self.out is not None:
                    self._keep(self.out, error)
                raise

    def _answered(self) -> Generator[Prediction]:
        if self.live is not None:
            with closing(self.predictor.predict_live(self.live, self.out)) as records:
                for record in records:
                    yield self._kept(self.inputs[0], {**record, "file": self.inputs[0].source})
            return
        with closing(self.predictor.predict(self._paths, self.out)) as records:
            yield from self._in_order(records)
        for inputs in self._more:
            self.inputs = inputs
            paths = [item.path for item in inputs if item.path is not None]
            with closing(self.predictor.predict(paths, None)) as records:
                yield from self._in_order(records)

    def _write(self, out: Path) -> None:
        """Write the answers, and the files that belong to all images together."""
        if self._reserve is not None:
            self._reserve.release()
        self.written.append(f"written: {write_answers(out, self._records, self._format)}")
        self.written += self.predictor.finish(out)

    def _keep(self, out: Path, error: BaseException) -> None:
        """Write the answers so far, or as many as the disk takes, because `error` stops the call.

        Raises:
            OutputError: a file cannot be written; the message says which one, and how many answers are kept where.
        """
        if self._reserve is not None:
            self._reserve.release()
        file, total = answers_file(out, self._format), len(self._records)
        failure = error if isinstance(error, OSError | OutputError) else None
        kept = total
        if not self.written:  # else the answers are complete, and a file that is written after them failed
            kept, unwritten = write_what_fits(out, self._records, self._format)
            failure = failure or unwritten
        if failure is None and total:
            self.written.append(f"written: {file}")
            try:
                self.written += self.predictor.finish(out) if self.live is not None else []
            except OutputError as unwritten:
                failure = unwritten
        if failure is None:
            return
        raise OutputError(f"{_reason(failure, out)}; {_kept_text(kept, total, file)}") from failure

    def _in_order(self, records: Iterator[Record]) -> Iterator[Prediction]:
        """Yield the predictions of files, and at their places those of inputs that are no files."""
        waiting, item = deque(self.inputs), None
        for record in records:
            path = Path(record["file"])
            upcoming = (other.path for other in waiting if other.path is not None)
            # a further frame of a video belongs to the same input; a file that is named twice does not
            if item is None or item.path != path or (not record.get("frame") and path == next(upcoming, None)):
                while waiting and waiting[0].path != path:
                    yield from self._failed(waiting.popleft())
                item = waiting.popleft()
            yield self._kept(item, {**record, "file": item.source})
        for rest in waiting:
            yield from self._failed(rest)

    def _failed(self, item: Input) -> Iterator[Prediction]:
        if item.error:
            yield self._kept(item, {"file": item.source, "error": item.error})

    def _kept(self, item: Input, record: Record) -> Prediction:
        if self._reserve is not None:
            self._reserve.add(record)
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


def _reason(failure: OSError | OutputError, out: Path) -> str:
    if isinstance(failure, OutputError):
        return str(failure)
    return f"cannot write {failure.filename or out}: {failure.strerror or one_line(failure)}"


def _kept_text(kept: int, total: int, file: Path) -> str:
    """Return how many answers of a call that failed are in which file."""
    if not total:
        return "no image was answered before"
    if kept == total:
        return f"the answers so far ({total:,}) are in {file}"
    if kept:
        return f"the first {kept:,} of {total:,} answers are in {file}"
    older = f"; {file} is of an earlier call" if file.exists() else ""
    return f"no answer of {total:,} could be kept{older}"
