"""Videos as cameras, recorders and converters write them, and a detector for them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from iformer.tasks.detection.inference import ObjectDetector

RED, BLUE = (220, 20, 20), (20, 20, 220)


class ColourDetector(ObjectDetector):
    """Finds the red and the blue square of a frame. A square of half the colour has a score of 0.3."""

    name, class_names, num_classes, value_range, detections = "colours", ("red", "blue"), 2, None, 10

    def detect(self, images: Sequence[Tensor], *, min_score: float = 0.0) -> list[dict[str, Any]]:
        found = []
        for image in images:
            red, _, blue = image.int()
            boxes, scores, labels = [], [], []
            for label, difference in enumerate((red - blue, blue - red)):
                rows, columns = torch.where(difference > 60)
                if len(rows):
                    boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    scores.append(0.9 - 0.1 * label if difference.max() > 150 else 0.3)
                    labels.append(label)
            kept = [index for index in range(len(scores)) if scores[index] >= min_score]
            kept.sort(key=lambda index: -scores[index])
            found.append(
                {
                    "boxes": torch.tensor([boxes[index] for index in kept], dtype=torch.float32).reshape(-1, 4),
                    "scores": torch.tensor([scores[index] for index in kept]),
                    "labels": torch.tensor([labels[index] for index in kept], dtype=torch.int64),
                }
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Part:
    """Frames of one size: gray, with a red square in the middle half of each side."""

    size: tuple[int, int]
    frames: int = 3
    aspect: Fraction | None = None
    pixels: str = "yuv420p"

    def image(self) -> Image.Image:
        width, height = self.size
        image = Image.new("RGB", self.size, (90, 90, 90))
        box = (width // 4, height // 4, 3 * width // 4 - 1, 3 * height // 4 - 1)
        ImageDraw.Draw(image).rectangle(box, fill=RED)
        return image


def recorded(path: Path, *parts: Part, container: str = "mpegts", codec: str = "libx264") -> Path:
    """Write the parts one after the other, as a recorder that changes its settings does."""
    av = pytest.importorskip("av")
    contents = []
    for part in parts:
        file = io.BytesIO()
        with av.open(file, "w", format=container) as written:
            stream = written.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = *part.size, part.pixels
            if part.aspect is not None:
                stream.codec_context.sample_aspect_ratio = part.aspect
            for number in range(part.frames):
                frame = av.VideoFrame.from_ndarray(np.asarray(part.image()), format="rgb24")
                frame.pts = number
                written.mux(stream.encode(frame))
            written.mux(stream.encode(None))
        contents.append(file.getvalue())
    path.write_bytes(b"".join(contents))
    return path
