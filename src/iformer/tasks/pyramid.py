"""What detection and segmentation share: the start of training, class checks, predictions image by image."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.video import VideoReader, VideoWriter, has_video_extension
from iformer.device import resolve_device
from iformer.errors import DataError
from iformer.models.backbone import Backbone
from iformer.models.detector import Detector
from iformer.models.light_detector import LightDetector
from iformer.models.segmenter import Segmenter
from iformer.tasks.interface import Record
from iformer.tasks.pictures import Card, draw_sheet, save_png, square
from iformer.tasks.pyramid_recipe import PyramidRecipe
from iformer.training.job import RunSettings, starting_network
from iformer.training.records.logs import ProgressView


def starting_backbone(model: str, recipe: PyramidRecipe, settings: RunSettings) -> Backbone:
    """Build a backbone with the weights that the recipe names; see `starting_network`.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the weights cannot be fetched or read, or do not fit.
    """
    weights = "none" if settings.continues else recipe.weights
    entry = recipe.entry if weights == recipe.weights else None
    return starting_network(model, weights=weights, entry=entry, features_only=True, **recipe.network_options)


def normalisation(backbone: Backbone) -> dict[str, Any]:
    """Return the mean and std that the backbone was trained with, as fields of a network config."""
    known: Preprocessing = backbone.metadata.preprocessing
    return {"mean": known.mean, "std": known.std}


def scaled(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a uint8 image to a device as float from 0 to 1."""
    return image.to(device, non_blocking=True).float().div_(255)


def check_classes(metadata: Metadata, class_names: tuple[str, ...]) -> None:
    """Check that a data set has the classes that a network was trained on, in the same order.

    Raises:
        DataError: it has not; the message names the first difference.
    """
    known = metadata.class_names
    if known and known != class_names:
        different = [
            f"class {index} is {theirs}, the network's is {ours}"
            for index, (theirs, ours) in enumerate(zip(class_names, known, strict=False))
            if theirs != ours
        ]
        counts = f"{len(class_names)} classes for {len(known)}"
        raise DataError(f"the classes of the data are not those of the network: {(different or [counts])[0]}")


class PyramidPredictor(ABC):
    """A detector or segmenter that answers for images and videos, one image or frame at a time.

    Subclasses implement `answer`, `draw` and `record`; an answer is of any type.
    """

    def __init__(self, network: Detector | LightDetector | Segmenter, *, device: torch.device | str) -> None:
        """Move the network, in eval mode, to a device."""
        self.device = resolve_device(device)
        self.name = network.config.backbone.name
        self.value_range = network.config.preprocessing.value_range
        self.class_names = network.metadata.class_names or tuple(
            f"class {index}" for index in range(network.config.num_classes)
        )
        network.to(self.device).eval()

    @abstractmethod
    def answer(self, image: Image.Image) -> Any:
        """Run the network on an RGB image of any size."""

    @abstractmethod
    def draw(self, image: Image.Image, answer: Any) -> Image.Image:
        """Return the image with the answer drawn on it."""

    @abstractmethod
    def record(self, answer: Any) -> Record:
        """Return an answer as plain values."""

    @abstractmethod
    def words(self, record: Record) -> str:
        """Return a record in words."""

    def write(self, path: Path, image: Image.Image, answer: Any, out: Path | None, name: str) -> Record:
        """Write what belongs to one image beside its picture, and return further entries of its record."""
        return {}

    def finish(self, out: Path) -> list[str]:
        """Write what belongs to all images together; see `iformer.tasks.interface.TaskPredictor`."""
        return [f"written: {out}"]

    def picture(self, path: Path) -> Image.Image:
        """Return an image file with its answer drawn on it.

        Raises:
            DataError: the file cannot be read.
        """
        image = read_image(path, value_range=self.value_range)
        return self.draw(image, self.answer(image))

    def predict(self, paths: Sequence[Path], out: Path | None = None) -> Iterator[Record]:
        """Yield a record for each image and each frame of a video, in order.

        A file that cannot be read yields a record with an `error`, and the others go on.

        Args:
            paths: image and video files.
            out: existing folder for `NAME.png` (the drawn image), `NAME.mp4` (the drawn video) and the files
                of the task; None: nothing is written.
        """
        names, video_names = _Names(), _Names()
        for path in paths:
            try:
                if has_video_extension(path):
                    yield from self._video(path, out, video_names)
                else:
                    yield self._image(path, out, names)
            except DataError as error:
                yield {"file": str(path), "error": str(error).removeprefix(f"{path}: ")}

    def _image(self, path: Path, out: Path | None, names: _Names) -> Record:
        image = read_image(path, value_range=self.value_range)
        answer = self.answer(image)
        record: Record = {"file": str(path), **self.record(answer)}
        name = names.unique(path)
        if out is not None:
            record["picture"] = str(save_png(self.draw(image, answer), out / f"{name}.png"))
        return {**record, **self.write(path, image, answer, out, name)}

    def _video(self, path: Path, out: Path | None, names: _Names) -> Iterator[Record]:
        """Yield a record for each frame. An incomplete drawn video is removed."""
        with VideoReader(path) as reader, ProgressView(total=reader.frames or 0, what=path.name) as view:
            if out is None:
                yield from self._frames(reader, None, view)
                return
            target = out / f"{names.unique(path)}.mp4"
            if target.resolve() == path.resolve():
                raise DataError(f"{path}: lies in the folder that the result is written to; give another --out")
            with VideoWriter(target, rate=reader.rate, width=reader.width, height=reader.height) as writer:
                yield from self._frames(reader, writer, view)

    def _frames(self, reader: VideoReader, writer: VideoWriter | None, view: ProgressView) -> Iterator[Record]:
        for number, (image, seconds) in enumerate(reader):
            answer = self.answer(image)
            if writer is not None:
                writer.write(self.draw(image, answer), seconds)
            view.advance(1, f"frame {number + 1}")
            yield {"file": str(reader.path), "frame": number, "seconds": round(seconds, 3), **self.record(answer)}


def draw_examples(predictor: PyramidPredictor, paths: Sequence[Path], out: Path, *, title: str) -> str:
    """Write a contact sheet of evenly spaced validation images with predictions, and return its section."""
    count, columns, side = 12, 4, 380
    chosen = paths[:: max(1, len(paths) // count)][:count]
    cards = [Card(picture=square(predictor.picture(path), side), caption=path.name) for path in chosen]
    sheet = draw_sheet(
        cards, columns=columns, title=title, subtitle=f"{len(cards)} of {len(paths)} validation images."
    )
    save_png(sheet, out)
    return f"## Predictions\n\n![Predictions on validation images]({out.name})"


class _Names:
    """Names for the files of images: the image's own, with a number if it is taken."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def unique(self, path: Path) -> str:
        numbered = (path.stem if number == 1 else f"{path.stem}-{number}" for number in itertools.count(1))
        name = next(name for name in numbered if name not in self._used)
        self._used.add(name)
        return name
