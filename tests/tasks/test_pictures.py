"""Drawing on images of any shape."""

from PIL import Image, ImageDraw

from iformer.tasks.pictures import draw_label, label_font


def test_labels_of_very_long_images_have_a_font_that_can_be_drawn() -> None:
    image = Image.new("RGB", (1, 100_000))
    font = label_font((1, 2_000_000))
    assert font.size == 200
    draw_label(ImageDraw.Draw(image), "cat", (0, 50_000), (255, 0, 0), font, image.size)
