"""Drawing on images of any shape."""

import pytest
from PIL import Image, ImageDraw

from iformer.tasks.pictures import Card, draw_label, draw_sheet, label_font


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
