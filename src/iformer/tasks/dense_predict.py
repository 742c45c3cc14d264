"""What a detector or segmenter says of images and videos: records, pictures, COCO's JSON, masks.

Shape letters: H and W an image's sides.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from iformer.data.images import read_image
from iformer.data.transforms import Normalize
from iformer.data.video import VideoReader, VideoWriter
from iformer.device import resolve_device
from iformer.errors import DataError
from iformer.files import write_text
from iformer.models.detector import Detector
from iformer.models.segmenter import Segmenter
from iformer.tasks.classification.predict import Failure
from iformer.tasks.contact_sheet import save_png
from iformer.tasks.dense_dataset import fitted, image_tensor
from iformer.tasks.detection.loss import coco_results
from iformer.tasks.drawing import draw_classes, draw_detections, index_png
from iformer.tasks.segmentation.loss import classes_of

Progress = Callable[[int], None]
"""Called with the number of frames done."""


@dataclass(frozen=True, kw_only=True)
class DenseAnswer:
    """What the network says of one image or frame."""

    found: dict[str, Tensor] | None = None
    """A detector's: see `Detector.forward`, those above the least score; on the CPU."""
    classes: npt.NDArray[np.uint8] | None = None
    """A segmenter's: the class of each pixel, H x W."""


class DensePredictor:
    """A detector or segmenter ready to answer, with its own preprocessing."""

    def __init__(
        self,
        network: Detector | Segmenter,
        *,
        device: str | torch.device = "cpu",
        min_score: float = 0.5,
        sliding: bool = False,
    ) -> None:
        """Prepare a network.

        Args:
            min_score: detections of a lower score are left out.
            sliding: segment in overlapping windows of the network's size instead of whole images.
        """
        self.device = resolve_device(device)
        self.network = network.to(self.device).eval()
        self.min_score, self.sliding = min_score, sliding
        self.name = network.config.backbone.name
        self.class_names = network.metadata.class_names or tuple(
            f"class {index}" for index in range(network.config.num_classes)
        )
        self._normalize = Normalize(network.config.preprocessing).to(self.device)

    @torch.inference_mode()
    def answer(self, image: Image.Image) -> DenseAnswer:
        """What the network says of an RGB image of any size, in its pixels."""
        if isinstance(self.network, Detector):
            found = self.network([image_tensor(image).to(self.device).float() / 255])[0]
            kept = found["scores"] >= self.min_score
            return DenseAnswer(found={name: value[kept].cpu() for name, value in found.items()})
        config = self.network.config
        resized = image.resize(fitted(image.size, config.size, config.max_size), Image.Resampling.BILINEAR)
        normalized = self._normalize(image_tensor(resized)[None].to(self.device))
        window = config.size if self.sliding else None
        classes_HW = classes_of(self.network, normalized, (image.height, image.width), window=window)
        return DenseAnswer(classes=classes_HW.to(torch.uint8).cpu().numpy())

    def draw(self, image: Image.Image, answer: DenseAnswer) -> Image.Image:
        """The image with what was said of it."""
        if answer.found is not None:
            return draw_detections(image, answer.found, self.class_names, min_score=self.min_score)
        assert answer.classes is not None
        assert isinstance(self.network, Segmenter)
        return draw_classes(image, answer.classes, self.class_names, self.network.config.colours)

    def record(self, answer: DenseAnswer) -> dict[str, Any]:
        """The answer as plain values: `detections` with name, score and box, or `classes` with their shares."""
        if answer.found is not None:
            ids = list(range(len(self.class_names)))
            results = coco_results(answer.found, 0, ids, masks=False)
            return {
                "detections": [
                    {"name": self.class_names[r["category_id"]], "score": r["score"], "box": r["bbox"]}
                    for r in results
                ]
            }
        assert answer.classes is not None
        counts = Counter(dict(enumerate(np.bincount(answer.classes.ravel()).tolist())))
        return {
            "classes": [
                {"name": self.class_names[k], "share": round(count / answer.classes.size, 4)}
                for k, count in counts.most_common()
                if count
            ]
        }


def predict_images(
    predictor: DensePredictor, paths: Sequence[Path], out: Path | None
) -> Iterator[dict[str, Any] | Failure]:
    """A record or a failure for each image, in order; pictures and results go to a folder.

    Written are, under `out`, `NAME.png` (the image with what was said of it), for a detector `coco.json`
    (COCO's form, detections as annotations with a score), for a segmenter `masks/NAME.png` (class indices
    with their palette).
    """
    names = _Names()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    is_detector = isinstance(predictor.network, Detector)
    for number, path in enumerate(paths, start=1):
        try:
            image = read_image(path)
        except DataError as error:
            yield Failure(path=path, reason=str(error).removeprefix(f"{path}: "))
            continue
        answer = predictor.answer(image)
        record: dict[str, Any] = {"file": str(path), **predictor.record(answer)}
        if out is not None:
            name = names.of(path)
            record["picture"] = str(save_png(predictor.draw(image, answer), out / f"{name}.png"))
            if answer.classes is not None:
                assert isinstance(predictor.network, Segmenter)
                (out / "masks").mkdir(exist_ok=True)
                mask = index_png(answer.classes, predictor.network.config.colours)
                record["mask"] = str(save_png(mask, out / "masks" / f"{name}.png"))
        if answer.found is not None:
            ids = list(range(1, len(predictor.class_names) + 1))
            masks = "masks" in answer.found
            for result in coco_results(answer.found, number, ids, masks=masks):
                left_top_width_height = result["bbox"]
                area = left_top_width_height[2] * left_top_width_height[3]
                annotations.append({"id": len(annotations) + 1, "iscrowd": 0, "area": area, **result})
            images.append({"id": number, "file_name": str(path), "width": image.width, "height": image.height})
        yield record
    if out is not None and is_detector:
        categories = [{"id": index, "name": name} for index, name in enumerate(predictor.class_names, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(out / "coco.json", json.dumps(content))


def predict_video(
    predictor: DensePredictor, path: Path, out: Path | None, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """A record for each frame, in order; the drawn frames become `NAME.mp4` under `out`.

    Raises:
        DataError: the file is no video, or is damaged; no half of a video is left behind.
    """
    with VideoReader(path) as reader:
        if out is None:
            yield from _frames(predictor, reader, None, progress)
            return
        target = out / f"{path.stem}.mp4"
        if target.resolve() == path.resolve():
            raise DataError(f"{path}: lies in the folder that the result is written to; give another --out")
        with VideoWriter(target, rate=reader.rate, width=reader.width, height=reader.height) as writer:
            yield from _frames(predictor, reader, writer, progress)


def _frames(
    predictor: DensePredictor, reader: VideoReader, writer: VideoWriter | None, progress: Progress | None
) -> Iterator[dict[str, Any]]:
    for number, frame in enumerate(reader):
        answer = predictor.answer(frame)
        if writer is not None:
            writer.write(predictor.draw(frame, answer))
        if progress is not None:
            progress(number + 1)
        yield {
            "file": str(reader.path),
            "frame": number,
            "seconds": round(float(number / reader.rate), 3),
            **predictor.record(answer),
        }


class _Names:
    """A name for each image's files: that of the image, and where two have the same, with a number."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def of(self, path: Path) -> str:
        numbered = (path.stem if number == 1 else f"{path.stem}-{number}" for number in itertools.count(1))
        name = next(name for name in numbered if name not in self._used)
        self._used.add(name)
        return name
