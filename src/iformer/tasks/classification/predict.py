"""Classify images: decode in threads, predict in batches, answer in the order of the inputs.

Shape letters: B batch, C channels, H and W the sides of the input, h and w the sides of the attention map, K
classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from iformer.data.images import read_input
from iformer.data.parallel import available_cores
from iformer.data.stream import ImageBatch, iterate_images
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.runner import ArtifactRunner
from iformer.device import resolve_device
from iformer.errors import UserError, counted
from iformer.models.classifier import Classifier
from iformer.models.finite import NOT_FINITE
from iformer.models.folding import fold
from iformer.tasks.classification.evaluate import logits_of, with_mirror_images
from iformer.tasks.classification.explain import AttentionRecorder, heat_scale, overlay
from iformer.tasks.interface import PredictOptions, Record, TaskPredictor
from iformer.tasks.pictures import Bar, Card, Scale, beside, draw_sheet, save_png, square

VIDEOS = False
TAKES = frozenset({"top_k", "batch_size", "workers", "explain", "flip"})
"""The options of `PredictOptions` that this task reads."""

MAX_PAGES = 5
"""Largest number of pages of each contact sheet. Further answers are only in the file of answers."""

_COLUMNS, _ROWS, _BARS = 6, 6, 3
_MOST_BARS = 6
"""Largest number of bars of one image with several labels."""
_FIRST, _OTHER = "#56b4e9", "#c3dcec"
"""Colours of bars: sky blue of Okabe and Ito's palette for predicted classes, pale sky blue for other classes."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The prediction for one image."""

    path: Path
    classes: tuple[tuple[str, float], ...]
    """Names and probabilities of the top k classes, the highest probability first. With several labels per image,
    all predicted labels are among them, also beyond the top k."""
    labels: tuple[str, ...] | None = None
    """Multi-label networks: names of the classes whose probability reaches the threshold. None for others."""
    pixels: Tensor
    """The image as the network saw it: uint8, C x H x W, resized and cropped."""
    attention: Tensor | None = None
    """Attention that each location receives, h x w (`AttentionRecorder`). None: not recorded."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that could not be read, or for which the network has no finite outputs."""

    path: Path
    reason: str


class Predictor:
    """A classifier or an artifact that answers for image files, with its own preprocessing."""

    def __init__(
        self,
        model: Classifier | ArtifactRunner,
        *,
        top_k: int = 5,
        batch_size: int = 32,
        workers: int | None = None,
        device: str | torch.device = "cpu",
        attention: bool = False,
        flip: bool = False,
    ) -> None:
        """Prepare a network or an artifact.

        A network is copied and folded. With `attention`, or if the network is folded already, it is not copied;
        the network itself is moved to `device` and set to eval mode.

        Args:
            model: a network, or an artifact in its own runtime (`iformer.deploy.runner.open_artifact`).
            top_k: largest number of classes in an answer; predicted labels of multi-label networks are never left
                out.
            batch_size: images in one call of the network.
            workers: threads that decode. None: one per core, at most 8.
            attention: also record where the network looks. The network is then not folded, which is slower
                and gives the same answers.
            flip: average the logits of each image and its mirror image.

        Raises:
            UserError: a number is below 1, or `attention` is set together with `flip`, for an artifact, or for a
                network without attention to show.
        """
        for name, value in {"top_k": top_k, "batch_size": batch_size, "workers": workers}.items():
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; expected 1 or more")
        if attention and flip:
            raise UserError(
                "the attention is that of one image, not of a mirrored pair; leave out explain or flip"
            )
        self.batch_size = batch_size
        self.workers = workers
        self.device = resolve_device(device)
        self.recorder: AttentionRecorder | None = None
        if isinstance(model, Classifier):
            self.name, num_classes = model.config.name, model.num_classes
            class_names, self.preprocessing = model.metadata.class_names, model.metadata.preprocessing
            self.threshold = model.metadata.threshold if model.metadata.multi_label else None
            self._logits = self._network(model, attention=attention)
        else:
            if attention:
                raise UserError("an artifact does not show its attention; give the checkpoint it was made from")
            info = model.info
            self.name, num_classes = f"{info.network} ({info.runtime}, {info.precision})", info.num_classes
            class_names, self.preprocessing = info.class_names, info.preprocessing
            self.threshold = (info.postprocess or {}).get("threshold") if info.multi_label else None
            self._logits = logits_of(model)
        if flip:
            self._logits = with_mirror_images(self._logits)
        self.top_k = min(top_k, num_classes)
        self.class_names = class_names or tuple(f"class {i}" for i in range(num_classes))
        self._transform = eval_transform(self.preprocessing)

    def _network(self, model: Classifier, *, attention: bool) -> Callable[[Tensor], Tensor]:
        network = model if attention or model.is_folded else fold(model)
        network = network.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.recorder = AttentionRecorder(network) if attention else None
        normalize = Normalize(self.preprocessing).to(self.device)

        def logits(pixels_BCHW: Tensor) -> Tensor:
            batch = normalize(pixels_BCHW.to(self.device, non_blocking=True))
            logits_BK: Tensor = network(batch.contiguous(memory_format=torch.channels_last))
            return logits_BK

        return logits

    def predict(self, paths: Sequence[Path]) -> Iterator[Answer | Failure]:
        """Yield an answer or a failure for each path, in order.

        Decoding runs ahead of the network, unless the network uses every core of the CPU: then the two take
        turns, because a decoder on one of the network's cores would make all threads of the network wait.
        """
        in_order = iter(paths)
        takes_turns = self.device.type == "cpu" and torch.get_num_threads() >= available_cores()
        batches = iterate_images(
            paths,
            self._transform,
            batch_size=self.batch_size,
            workers=self.workers,
            prefetch=0 if takes_turns else 2,
            read=partial(read_input, preprocessing=self.preprocessing),
        )
        for batch in batches:
            outcomes: dict[Path, Answer | Failure] = {
                path: Failure(path=path, reason=line.removeprefix(f"{path}: ")) for path, line in batch.errors
            }
            if batch.paths:
                outcomes |= self._answer(batch)
            yield from (outcomes[path] for path in islice(in_order, len(batch.paths) + len(batch.errors)))

    def probabilities(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return probabilities (B x K) of uint8 images and, with `attention`, maps (B x h x w), on the CPU."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.recorder is not None:
                stack.enter_context(self.recorder)
            logits_BK = self._logits(pixels_BCHW)
            probabilities_BK = logits_BK.softmax(1) if self.threshold is None else logits_BK.sigmoid()
            maps = None if self.recorder is None else self.recorder.take_maps().cpu()
        return probabilities_BK.float().cpu(), maps

    def _answer(self, batch: ImageBatch) -> dict[Path, Answer | Failure]:
        probabilities_BK, maps_Bhw = self.probabilities(batch.images)
        if probabilities_BK.shape[1] != len(self.class_names):
            raise UserError(
                f"the network has {counted(probabilities_BK.shape[1], 'output')} and the names of "
                f"{counted(len(self.class_names), 'class')}; replace its head by reset_classifier"
            )
        labels: list[tuple[str, ...] | None] = [None] * len(batch.paths)
        counts = [self.top_k] * len(batch.paths)
        if self.threshold is not None:
            yes_BK = (probabilities_BK >= self.threshold).tolist()
            labels = [tuple(itertools.compress(self.class_names, yes_K)) for yes_K in yes_BK]
            counts = [max(self.top_k, sum(yes_K)) for yes_K in yes_BK]
        values_BK, classes_BK = (tensor.tolist() for tensor in probabilities_BK.topk(max(counts), dim=1))
        finite_B = probabilities_BK.isfinite().all(1).tolist()
        return {
            path: Failure(path=path, reason=NOT_FINITE)
            if not finite_B[row]
            else Answer(
                path=path,
                classes=tuple(
                    (self.class_names[k], value)
                    for k, value in islice(zip(classes_BK[row], values_BK[row], strict=True), counts[row])
                ),
                labels=labels[row],
                pixels=batch.images[row],
                attention=None if maps_Bhw is None else maps_Bhw[row],
            )
            for row, path in enumerate(batch.paths)
        }


# -------------------------------------------------------------------------------------------- the verb


class ClassificationPredictor(TaskPredictor):
    """`TaskPredictor` of classifiers: yields the answers of a `Predictor` as records and draws contact sheets."""

    def __init__(self, predictor: Predictor, *, title: str, explain: bool) -> None:
        self._predictor, self._title, self._explain = predictor, title, explain
        self._drawn: list[Answer] = []
        self._answered = 0
        self.name, self.device = predictor.name, predictor.device

    def predict(self, paths: Sequence[Path], out: Path | None = None) -> Generator[Record]:
        """Yield a record for each path, in order; nothing is written before `finish`."""
        for outcome in self._predictor.predict(paths):
            if isinstance(outcome, Failure):
                yield {"file": str(outcome.path), "error": outcome.reason}
                continue
            self._answered += 1
            if len(self._drawn) < max_drawn():
                self._drawn.append(outcome)
            classes = [{"name": name, "probability": round(value, 6)} for name, value in outcome.classes]
            record: Record = {"file": str(outcome.path), "classes": classes}
            yield record if outcome.labels is None else record | {"labels": list(outcome.labels)}

    def words(self, record: Record) -> str:
        if "labels" in record:
            return ", ".join(record["labels"]) or "no label"
        return "   ".join(f"{item['name']} {100 * item['probability']:.1f} %" for item in record["classes"])

    def files(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths of the contact sheets, relative to the output folder."""
        files = _pages("predict", len(paths), _COLUMNS)
        return files + _pages("explain", len(paths), _COLUMNS // 2) if self._explain else files

    def finish(self, out: Path) -> list[str]:
        """Write the contact sheets, and return lines that say what was written."""
        if not self._drawn:
            return []
        answered = self._answered
        title = f"{self.name} on {answered} image{'s' if answered != 1 else ''}"
        threshold = self._predictor.threshold
        marked = "" if threshold is None else f" Its labels, from {100 * threshold:.0f} % on, have darker bars."
        subtitle = f"Weights: {self._title}. Each image as the network sees it, with its top classes.{marked}"
        written = draw_predictions(self._drawn, out, title=title, subtitle=subtitle)
        limits = {"predict": max_drawn()}
        if self._explain:
            written += draw_explanations(self._drawn, out, title=f"Where {self.name} looks")
            limits["explain"] = max_drawn(explain=True)
        return ["written: " + ", ".join(map(str, written))] + [
            f"{kind}.png shows the first {limit} of {answered} images; the file of answers in {out} has all"
            for kind, limit in limits.items()
            if answered > limit
        ]


def open_predictor(subject: Classifier | ArtifactRunner, options: PredictOptions) -> ClassificationPredictor:
    """Build the predictor of the verb `predict`; see `iformer.tasks.interface.PredictModule`."""
    predictor = Predictor(
        subject,
        top_k=5 if options.top_k is None else options.top_k,
        batch_size=32 if options.batch_size is None else options.batch_size,
        workers=options.workers,
        device=options.device,
        attention=bool(options.explain),
        flip=bool(options.flip),
    )
    return ClassificationPredictor(predictor, title=options.title, explain=bool(options.explain))


def draw_predictions(answers: Sequence[Answer], folder: Path, *, title: str, subtitle: str) -> list[Path]:
    """Write `predict.png` (then `predict-2.png` …): each image as the network saw it, with its top classes.

    Draws at most `MAX_PAGES` pages and returns the files written.
    """
    cards = [
        Card(picture=square(_photograph(answer.pixels)), caption=_caption(answer), bars=_bars(answer))
        for answer in answers[: max_drawn()]
    ]
    return _save_pages(cards, folder, "predict", columns=_COLUMNS, title=title, subtitle=subtitle)


def draw_explanations(answers: Sequence[Answer], folder: Path, *, title: str) -> list[Path]:
    """Draw each image next to its attention map (see `overlay`), on contact sheets.

    Args:
        answers: predictions with attention.
        folder: folder for `explain.png` and, for many images, `explain-2.png` and so on.
        title: heading of each sheet.

    Returns:
        The files written. The scale next to a caption ends at the image's largest attention (or at 2, if larger),
        in multiples of an even share.
    """
    cards = []
    for answer in answers[: max_drawn(explain=True)]:
        assert answer.attention is not None
        photograph = _photograph(answer.pixels)
        pair = beside(photograph, overlay(photograph, answer.attention))
        brightest = max(float(answer.attention.max()), 2.0)
        scale = Scale(colours=heat_scale, low="1x an even share", high=f"{brightest:.1f}x")
        cards.append(Card(picture=pair, caption=_caption(answer), scale=scale, bars=_bars(answer)))
    subtitle = (
        "Right: attention received in the last stage, mean over queries and blocks. "
        "It is not why a class was chosen."
    )
    return _save_pages(cards, folder, "explain", columns=_COLUMNS // 2, title=title, subtitle=subtitle)


def max_drawn(*, explain: bool = False) -> int:
    """Return the most answers that `draw_predictions` or, with `explain`, `draw_explanations` draws."""
    return MAX_PAGES * _ROWS * (_COLUMNS // 2 if explain else _COLUMNS)


def _bars(answer: Answer) -> tuple[Bar, ...]:
    return tuple(
        Bar(
            label=name,
            share=probability,
            colour=_FIRST if (row == 0 if answer.labels is None else name in answer.labels) else _OTHER,
        )
        for row, (name, probability) in enumerate(answer.classes[: _shown(answer)])
    )


def _shown(answer: Answer) -> int:
    """Return the number of bars of an answer: one for each label, up to `_MOST_BARS`, and at least `_BARS`."""
    return max(_BARS, min(_MOST_BARS, len(answer.labels or ())))


def _caption(answer: Answer) -> str:
    more = len(answer.labels or ()) - _shown(answer)
    return f"{answer.path.name} (+{more} more)" if more > 0 else answer.path.name


def _save_pages(
    cards: Sequence[Card], folder: Path, stem: str, *, columns: int, title: str, subtitle: str
) -> list[Path]:
    per_page = columns * _ROWS
    pages = [cards[start : start + per_page] for start in range(0, len(cards), per_page)]
    written = []
    for number, (name, page) in enumerate(zip(_pages(stem, len(cards), columns), pages, strict=True), start=1):
        heading = title if len(pages) == 1 else f"{title}, page {number} of {len(pages)}"
        sheet = draw_sheet(page, columns=columns, title=heading, subtitle=subtitle)
        written.append(save_png(sheet, folder / name))
    return written


def _pages(stem: str, cards: int, columns: int) -> list[Path]:
    """Return the file names of the contact sheets for a number of cards, at most `MAX_PAGES`."""
    count = min(MAX_PAGES, -(-cards // (columns * _ROWS)))
    return [Path(f"{stem}.png" if number == 1 else f"{stem}-{number}.png") for number in range(1, count + 1)]


def _photograph(pixels_CHW: Tensor) -> Image.Image:
    image: Image.Image = to_pil_image(pixels_CHW)
    return image.convert("RGB")
