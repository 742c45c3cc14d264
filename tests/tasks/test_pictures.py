"""Drawing on images of any shape."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from iformer.tasks.detection.predict import draw_detections
from iformer.tasks.pictures import Card, draw_label, draw_sheet, label_font
from iformer.tasks.segmentation.predict import draw_classes


def test_labels_of_very_long_images_have_a_font_that_can_be_drawn() -> None:
    image = Image.new("RGB", (1, 100_000))
    font = label_font((1, 2_000_000))
    assert font.size == 200
    draw_label(ImageDraw.Draw(image), "cat", (0, 50_000), (255, 0, 0), font, image.size)


@pytest.mark.parametrize("letter", ["ß", "é", "ł", "ж", "Ω"])
def test_names_of_european_languages_are_drawn(letter: str) -> None:
    """Pillow's own font has a box for every letter that is not ASCII."""
    plates, sheets = [], []
    for text in (letter, "\U0001f9ea"):  # a test tube, which no font here has
        image = Image.new("RGB", (60, 60))
        draw_label(ImageDraw.Draw(image), text, (0, 40), (255, 255, 255), label_font((900, 900)), image.size)
        plates.append(image.tobytes())
        card = Card(picture=Image.new("RGB", (220, 220)), caption=text)
        sheets.append(draw_sheet([card], columns=1, title="", subtitle="").tobytes())
    assert plates[0] != plates[1]
    assert sheets[0] != sheets[1]


def test_small_images_are_enlarged_before_names_are_drawn() -> None:
    image = Image.new("RGB", (40, 30), "white")
    found = {"boxes": torch.tensor([[10.0, 12.0, 30.0, 20.0]]), "labels": torch.tensor([0])}
    drawn = np.array(draw_detections(image, found, ["disc"], scale=5))
    assert drawn.shape == (150, 200, 3)
    coloured = np.argwhere((drawn != 255).any(2))
    plate = 20  # the name stands above the box
    assert (coloured.min(0) >= (60 - plate, 50)).all()
    assert tuple(coloured.max(0)) == (100, 150)

    classes = np.zeros((30, 40), np.uint8)
    classes[:15] = 1
    drawn = np.array(draw_classes(image, classes, ["background", "sky"], [(0, 0, 0), (0, 0, 255)], scale=5))
    assert drawn.shape == (150, 200, 3)
    assert (drawn[75:] == 255).all()
    assert (drawn[70, 100] != 255).any()
