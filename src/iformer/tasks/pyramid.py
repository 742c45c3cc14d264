"""Parts that detection and segmentation share: starting weights, evaluation data, prediction by image."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from iformer.config.pyramid import LightConfig, PyramidConfig, PyramidRecipe
from iformer.config.segmenter import LightSegmenterConfig, SegmenterConfig
from iformer.data.conversion import ValueRange
from iformer.data.images import UNKNOWN_FORMAT, read_image
from iformer.data.video.live import LiveReader, LiveSource
from iformer.data.video.reader import VideoReader, is_video
from iformer.data.video.writer import VideoWriter
from iformer.errors import DataError, UserError, WeightsError, counted
from iformer.models.backbone import Backbone
from iformer.models.detector import Detector
from iformer.models.factory import create_model
from iformer.models.light_detector import LightDetector
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.segmenter import Segmenter
from iformer.models.weights.checkpoint import Weights
from iformer.models.weights.header import backbone_config
from iformer.models.weights.resolve import Size, resolve
from iformer.tasks.interface import EvaluateOptions, Record, TaskPredictor
from iformer.tasks.pictures import Card, beside, draw_sheet, save_png
from iformer.tasks.trained_split import SplitsT, load_as_trained
from iformer.training.job import RunSettings, starting_network
from iformer.training.records.logs import ProgressView

MAX_STEM_BYTES = 245
"""Largest length in bytes of an output file's name without number and extension. File systems allow 255 bytes,
and a number and `.png` need some of them."""

_UNKNOWN = (
    "neither an image nor a video, or of a format that is not supported; expected images such as .jpg or .png, or "
    "videos such as .mp4 or .mov"
)
ConfigT = TypeVar("ConfigT", bound=PyramidConfig | LightConfig)

_DEFAULT_SIZE = "iformer_t"
"""The model of a run that names no model. Trained weights may then be of another size."""
_STRUCTURE = (
    "fpn_channels", "box_head_channels", "mask_head_channels", "mask_head_depth",  # detectors
    "head_channels",  # segmenters
    "channels", "kernel_size", "residual",  # light detectors and segmenters
    "neck", "head_depth", "extra_level", "semantic_head", "objectness", "matching",  # light detectors
)  # fmt: skip
"""Config fields, besides the classes and the backbone, that a network's weights depend on."""


def folded(network: Any) -> Any:
    """Return a folded copy of a light detector or segmenter; return anything else, and a folded one, unchanged."""
    is_light = isinstance(network, LightDetector | LightSegmenter)
    return network.fold() if is_light and not network.pyramid.body.is_folded else network


def trained_weights(model: str, recipe: PyramidRecipe) -> Weights | None:
    """Return the weights of the recipe's task that a run fine-tunes; None if the run starts from a backbone.

    Args:
        model: a model name or a checkpoint. At most one of `model` and `recipe.weights` may name trained weights.

    Raises:
        UserError: `model` and the weights that the recipe names are of different sizes, or both hold trained
            weights.
        UnknownNameError: a name is unknown.
        WeightsError: the weights of a name cannot be fetched or read.
    """
    named = resolve(model)
    if recipe.weights not in ("none", "pretrained"):
        weights = resolve(recipe.weights, entry=recipe.entry)
        if isinstance(named, Weights) and named.task == recipe.task:
            raise UserError(
                f"--model is {model} and --weights is {recipe.weights}; expected one network to fine-tune"
            )
        if isinstance(named, Size) and isinstance(weights, Weights) and weights.task == recipe.task:
            size = backbone_config(weights.config).name
            if model not in (size, _DEFAULT_SIZE):
                raise UserError(f"{recipe.weights} holds {weights.row.title} on {size}, --model is {model}")
            return weights
    return named if isinstance(named, Weights) and named.task == recipe.task else None


def starting_backbone(
    model: str, recipe: PyramidRecipe, settings: RunSettings, weights: Weights | None = None
) -> Backbone:
    """Build a backbone from `weights`; if None, from `model` and the recipe's weights (see `starting_network`).

    Raises:
        UnknownNameError: no such network.
        WeightsError: the weights cannot be fetched or read, or do not fit.
    """
    options = {"features_only": True, **recipe.network_options}
    if weights is not None:
        return create_model(weights, **options)
    named = "none" if settings.continues else recipe.weights
    entry = recipe.entry if named == recipe.weights else None
    return starting_network(model, weights=named, entry=entry, **options)


def structure(weights: Weights) -> dict[str, Any]:
    """Return the config fields, by name, that a network must have to take these weights."""
    return {name: getattr(weights.config, name) for name in _STRUCTURE if hasattr(weights.config, name)}


def fine_tune(
    network: Detector | LightDetector | Segmenter | LightSegmenter, weights: Weights, class_names: tuple[str, ...]
) -> str:
    """Copy trained weights into a network. Layers for other classes than the network's keep their initial weights.

    Returns:
        A line that says what was copied.

    Raises:
        WeightsError: a weight has another shape; the message names the first one.
    """
    changes: dict[str, Any] = {"num_classes": network.config.num_classes + 1}
    if isinstance(network.config, SegmenterConfig | LightSegmenterConfig):
        changes["palette"] = ()  # a palette of another length is refused
    config = replace(network.config, **changes)
    with torch.device("meta"):
        other = type(network)(config).state_dict()  # type: ignore[arg-type]
    own = network.state_dict()
    same = weights.metadata.class_names == class_names
    copied = {
        key: value
        for key, value in weights.state_dict.items()
        if key in own and (same or own[key].shape == other[key].shape)
    }
    misfits = [key for key, value in copied.items() if value.shape != own[key].shape]
    if misfits:
        raise WeightsError(f"{weights.source} does not fit: {misfits[0]} has another shape")
    network.load_state_dict({**own, **copied})
    classes = "the same classes" if same else "other classes, so the layers of the classes are new"
    return f"fine-tuning {weights.source}: {classes}"


def as_trained(config: ConfigT, backbone: Backbone) -> ConfigT:
    """Return the config with the mean, std and, unless it has one, the value range that the backbone knows."""
    found: Any = config.preprocessing.with_normalization_of(backbone.metadata.preprocessing)
    return replace(config, mean=found.mean, std=found.std, value_range=found.value_range)


def scaled(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a uint8 image as float from 0 to 1, on a device."""
    return image.to(device, non_blocking=True).float().div_(255)


def evaluation_split(
    subject: Any, data: str, options: EvaluateOptions, load: Callable[..., SplitsT]
) -> tuple[SplitsT, Any]:
    """Load a data set for evaluation, split as in the training of `subject` if it is the same data.

    Args:
        subject: a network or an artifact.
        data: name of the data.
        options: the split, and how to load.
        load: `iformer.data.sources.detection.load_detection` or the function of another task like it.

    Returns:
        All splits, and the one to evaluate.

    Raises:
        UserError: `options.split` is "all".
        DataError: the data cannot be used, or the split has no images.
    """
    if options.split == "all":
        raise UserError("--split all is for classification; give val or train")

    def split(share: float | None) -> SplitsT:
        return load(data, val_split=share, strict=options.strict, for_training=False)

    metadata = getattr(subject, "metadata", None)
    splits = split(options.val_split) if options.val_split else load_as_trained(metadata, data, split)
    images = splits.train if options.split == "train" else splits.val
    if not len(images):
        other = "val" if options.split == "train" else "train"
        raise DataError(f"{data}: no images in the {options.split or 'val'} split; give --split {other}")
    return splits, images


class PyramidPredictor(TaskPredictor):
    """A detector or segmenter that answers for images and videos, one image or frame at a time.

    Subclasses implement `answer`, `draw` and `record`, and choose the type of an answer.
    """

    def __init__(
        self,
        name: str,
        class_names: tuple[str, ...],
        num_classes: int,
        *,
        value_range: ValueRange | None,
        device: torch.device,
    ) -> None:
        """Set the properties of the network; `class_names` is empty if unknown."""
        self.name, self.device, self.value_range = name, device, value_range
        self.class_names = class_names or tuple(f"class {index}" for index in range(num_classes))
        self.latest: Any = None
        """The answer of the latest record."""
        self.max_frames: int | None = None
        """Number of frames after which a video ends. None: all."""

    @abstractmethod
    def answer(self, image: Image.Image) -> Any:
        """Return the answer of the network for an RGB image of any size."""

    @abstractmethod
    def draw(self, image: Image.Image, answer: Any, scale: int = 1) -> Image.Image:
        """Return the image with the answer drawn on it.

        Args:
            scale: factor of the picture's sides; names on a small image are readable only if it is enlarged.
        """

    @abstractmethod
    def record(self, answer: Any) -> Record:
        """Return an answer as plain values."""

    def start_video(self, rate: float) -> None:
        """Prepare for the frames of another video, of which there are about `rate` in a second."""

    def answer_frame(self, image: Image.Image, seconds: float) -> Any:
        """Run the network on the next frame of a video, which is shown at `seconds`."""
        return self.answer(image)

    def write(self, path: Path, image: Image.Image, answer: Any, out: Path | None, name: str) -> Record:
        """Write the files of an image other than the drawn picture, and return entries to add to the record."""
        return {}

    def files(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths of the drawn images and videos, relative to the output folder."""
        return [
            Path(f"{name}.mp4" if is_video(path) else f"{name}.png")
            for path, name in zip(paths, output_names(paths), strict=True)
        ]

    def finish(self, out: Path) -> list[str]:
        """Return a line that names the output folder. Subclasses may write files for all images first."""
        return [f"written: {out}"]

    def predict(self, paths: Sequence[Path], out: Path | None = None) -> Generator[Record]:
        """Yield a record for each image and each frame of a video, in order.

        A file that cannot be read, or a video that cannot be drawn, yields a record with an `error`; the
        remaining files are still processed.

        Args:
            paths: image and video files.
            out: existing folder for `NAME.png` (the drawn image), `NAME.mp4` (the drawn video) and the files
                of the task; None: nothing is written.
        """
        for path, name in zip(paths, output_names(paths), strict=True):
            try:
                if is_video(path):
                    with VideoReader(path) as reader:
                        yield from self._video(reader, out and out / f"{name}.mp4")
                else:
                    yield self._image(path, out, name)
            except DataError as error:
                reason = str(error).removeprefix(f"{path}: ")
                yield {"file": str(path), "error": _UNKNOWN if reason == UNKNOWN_FORMAT else reason}

    def _image(self, path: Path, out: Path | None, name: str) -> Record:
        image = read_image(path, value_range=self.value_range)
        answer = self.latest = self.answer(image)
        record: Record = {"file": str(path), **self.record(answer)}
        if out is not None:
            record["picture"] = str(save_png(self.draw(image, answer), out / f"{name}.png"))
        return {**record, **self.write(path, image, answer, out, name)}

    def predict_live(self, source: LiveSource, out: Path | None = None) -> Generator[Record]:
        try:
            with LiveReader(source) as reader:
                try:
                    yield from self._video(reader, out and out / f"{source.stem}.mp4", keep=True)
                finally:
                    self.dropped = reader.dropped
        except DataError as error:
            yield {"file": source.name, "error": str(error).removeprefix(f"{source.name}: ")}

    def _video(
        self, reader: VideoReader | LiveReader, target: Path | None, *, keep: bool = False
    ) -> Iterator[Record]:
        """Yield a record for each frame, and draw the video `target`. After an error it stays only with `keep`."""
        total = min(filter(None, (reader.frames, self.max_frames)), default=0)
        with ProgressView(total=total, what=Path(reader.source).name) as view:
            if target is None:
                yield from self._frames(reader, None, view)
                return
            with VideoWriter(
                target, rate=reader.rate, width=reader.width, height=reader.height, keep=keep
            ) as writer:
                yield from self._frames(reader, writer, view)

    def _frames(
        self, reader: VideoReader | LiveReader, writer: VideoWriter | None, view: ProgressView
    ) -> Iterator[Record]:
        self.start_video(float(reader.rate))
        first, changed = (reader.width, reader.height), False
        for number, (image, seconds) in enumerate(islice(reader, self.max_frames)):
            if image.size != first and not changed:
                changed = True
                change = _size_note(first, number, image.size, is_drawn=writer is not None)
                self.warn([f"{reader.source}: {change}"])
            answer = self.latest = self.answer_frame(image, seconds)
            if writer is not None:
                writer.write(self.draw(image, answer), seconds)
            view.advance(1, f"frame {number + 1}")
            at = {"frame": number, "seconds": round(seconds, 3), "size": list(image.size)}
            yield {"file": reader.source, **at, **self.record(answer)}
        if reader.damaged:
            damage = f"{counted(reader.damaged, 'damaged frame')}; answers there may be wrong or missing"
            self.warn([f"{reader.source}: {damage}"])


def _size_note(first: tuple[int, int], number: int, size: tuple[int, int], *, is_drawn: bool) -> str:
    drawing = f"; the drawn video keeps {first[0]} x {first[1]}" if is_drawn else ""
    change = f"frames have {first[0]} x {first[1]} pixels, from frame {number} on {size[0]} x {size[1]}"
    return f"{change}; each is answered at its own size{drawing}"


def example_sheet(
    predictor: PyramidPredictor,
    paths: Sequence[Path],
    draw_truth: Callable[[int, Image.Image, int], Image.Image],
    *,
    title: str,
) -> Image.Image:
    """Draw evenly spaced validation images, each with its annotations and with the predictions.

    Args:
        draw_truth: maps an index into `paths`, its image and a scale to a picture with the annotations, whose
            sides are `scale` times those of the image.
    """
    most, columns, side = 12, 3, 260
    cards = []
    for index in list(range(0, len(paths), max(1, len(paths) // most)))[:most]:
        image = read_image(paths[index], value_range=predictor.value_range)
        scale = math.ceil(side / max(image.size))
        predicted = predictor.draw(image, predictor.answer(image), scale)
        pair = beside(draw_truth(index, image, scale), predicted, side)
        cards.append(Card(picture=pair, caption=paths[index].name))
    subtitle = f"{len(cards)} of {len(paths)} validation images: annotated on the left, predicted on the right."
    return draw_sheet(cards, columns=columns, title=title, subtitle=subtitle)


def output_names(paths: Sequence[Path]) -> list[str]:
    """Return a name without extension for each file's output: the file's name, with a number if already used.

    An image and a video may get the same name, because their outputs have different extensions.
    """
    used: set[tuple[bool, str]] = set()
    names = []
    for path in paths:
        a_video, stem = is_video(path), path.stem
        if len(os.fsencode(stem)) > MAX_STEM_BYTES:
            stem = os.fsencode(stem)[:MAX_STEM_BYTES].decode(errors="ignore")
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        name = next(name for name in numbered if (a_video, name) not in used)
        used.add((a_video, name))
        names.append(name)
    return names
