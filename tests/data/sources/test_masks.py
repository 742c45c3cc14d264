"""Folders of images and masks: what is read, and what is an error before training."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iformer.config.segmenter import IGNORED
from iformer.data.segmentation import read_mask
from iformer.data.sources.masks import load_semantic
from iformer.errors import DataError
from tiny.shapes import COLOURS, colour_the_masks


@pytest.fixture
def data(shapes_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_data, tmp_path / "data"))


def test_what_is_read(shapes_data: Path) -> None:
    split = load_semantic(shapes_data)
    assert split.warnings == ()
    assert split.train.class_names == ("background", "disc", "square")
    assert [sample.path.stem for sample in split.train.samples] == list("01234567")
    assert all(sample.mask.stem == sample.path.stem for sample in split.train.samples)
    assert set(np.unique(read_mask(split.train.samples[2].mask))) <= {0, 1, 2}
    assert len(split.val) == 4


def gray_png(bits: int, values_HW: np.ndarray) -> bytes:
    """A PNG of 2 or 4 bits per pixel, which Pillow cannot write."""
    height, width = values_HW.shape
    lines = ["".join(f"{value:0{bits}b}" for value in row) for row in values_HW]
    lines = [line + "0" * (-len(line) % 8) for line in lines]
    pixels = b"".join(b"\0" + int(line, 2).to_bytes(len(line) // 8, "big") for line in lines)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("bits", [2, 4])
def test_short_gray_values_are_the_stored_ones(tmp_path: Path, bits: int) -> None:
    values = np.arange(15).reshape(3, 5) % 2**bits
    (tmp_path / "mask.png").write_bytes(gray_png(bits, values))
    assert read_mask(tmp_path / "mask.png").tolist() == values.tolist()


def test_masks_whose_values_cannot_be_trusted(tmp_path: Path) -> None:
    values = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3)
    values.save(tmp_path / "mask.jpg")
    with pytest.raises(DataError, match="a mask in JPEG, which changes values"):
        read_mask(tmp_path / "mask.jpg")
    values.save(tmp_path / "mask.tif", save_all=True, append_images=[values])
    with pytest.raises(DataError, match="a mask of 2 pictures; expected one"):
        read_mask(tmp_path / "mask.tif")
    exif = Image.Exif()
    exif[0x0112] = 3
    values.save(tmp_path / "mask.png", exif=exif)
    with pytest.raises(DataError, match="a mask with an EXIF orientation"):
        read_mask(tmp_path / "mask.png")


def test_two_masks_of_one_image_are_named(data: Path) -> None:
    mask = next((data / "masks/train").glob("0.*"))
    shutil.copy(mask, mask.with_suffix(".bmp"))
    with pytest.raises(DataError, match=r"for one image; keep one of them"):
        load_semantic(data)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("\nbackground\ndisc\nsquare\n", "line 1 is empty"),
        ("background\nros\u00e9\nrose\u0301\n", "two Unicode forms"),
    ],
)
def test_lists_of_classes_that_mislead(data: Path, names: str, message: str) -> None:
    (data / "classes.txt").write_text(names, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_semantic(data)


def test_masks_with_other_names_are_named(data: Path) -> None:
    for kind in ("images", "masks"):
        for path in [*data.glob(f"{kind}/*/*.png")]:
            path.rename(data / kind / (f"{path.stem}_mask.png" if kind == "masks" else path.name))
        for split in ("train", "val"):
            (data / kind / split).rmdir()
    with pytest.raises(DataError, match=r"no mask has the name of an image \(.*0\.png: has no mask in .*masks\)"):
        load_semantic(data)


def test_ade20k_counts_from_one(data: Path) -> None:
    for kind, name in (("images", "images"), ("masks", "annotations")):
        for split, their_name in (("train", "training"), ("val", "validation")):
            target = data / "ade" / name / their_name
            shutil.copytree(data / kind / split, target)
    header, rows = "Idx\tRatio\tTrain\tVal\tStuff\tName", ["1\t.5\t1\t1\t0\tdisc, round", "2\t.5\t1\t1\t0\tsquare"]
    (data / "ade" / "objectInfo150.txt").write_text("\n".join([header, *rows]))
    split = load_semantic(data / "ade")
    assert split.train.class_names == ("disc", "square")
    sample = split.train.samples[0]
    stored = np.asarray(Image.open(sample.mask))
    mask_HW = read_mask(sample.mask, zero_is_ignored=split.train.zero_is_ignored)
    assert np.array_equal(mask_HW == IGNORED, stored == 0)
    assert np.array_equal(mask_HW[stored > 0], stored[stored > 0] - 1)


def test_palette_of_the_masks_is_kept(data: Path) -> None:
    assert load_semantic(data).train.palette == ()
    path = data / "masks" / "train" / "0.png"
    mask = Image.open(path).copy()
    mask.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10] + [0] * 759)
    mask.save(path)
    assert load_semantic(data).train.palette == ((0, 0, 0), (200, 10, 10), (10, 200, 10))


def test_images_without_a_mask_are_told(data: Path) -> None:
    (data / "masks" / "train" / "3.png").unlink()
    (data / "images" / "train" / "4.png").write_bytes(b"")
    split = load_semantic(data)
    assert len(split.train) == 6
    assert "3.png: has no mask" in split.warnings[0]
    assert "4.png" in split.warnings[1]
    with pytest.raises(DataError, match="2 warnings"):
        load_semantic(data, strict=True)


def test_bad_masks_are_one_clear_line(data: Path) -> None:
    path = data / "masks" / "train" / "2.png"
    sound = path.read_bytes()
    for mask, words in (
        (Image.new("L", (96, 95)), "is 96 x 95 pixels, its image 96 x 96"),
        (Image.new("L", (96, 96), 3), "has the index 3; with 3 classes it may be 0 to 2, or 255"),
        (Image.new("RGB", (96, 96)), "a mask in colours"),
    ):
        mask.save(path)
        with pytest.raises(DataError, match=words) as caught:
            load_semantic(data)
        assert "2.png" in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(sound[:60])
    with pytest.raises(DataError, match="damaged image"):
        load_semantic(data)


def test_bad_folders_are_one_clear_line(data: Path) -> None:
    (data / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match="names a twice"):
        load_semantic(data)
    (data / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"has no readable classes\.txt"):
        load_semantic(data)
    (data / "classes.txt").write_text("a\nb\nc\n")
    shutil.rmtree(data / "masks" / "val")
    with pytest.raises(DataError, match="no folders of images and masks for val"):
        load_semantic(data)


def rewrite_masks(data: Path, change: Callable[[np.ndarray], np.ndarray], split: str = "*") -> None:
    for path in (data / "masks").glob(f"{split}/*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def test_binary_masks_of_0_and_255_are_explained(data: Path) -> None:
    (data / "classes.txt").write_text("background\nobject\n")
    rewrite_masks(data, lambda mask_HW: np.where(mask_HW > 0, 255, 0).astype(np.uint8))
    with pytest.raises(DataError) as caught:
        load_semantic(data)
    assert str(caught.value) == (
        f"{data / 'masks' / 'train'}: the masks only have the values 0, 255; 255 means no class (ignored), so "
        "there are no two classes to learn. If 255 marks an object, write its class instead: pixels of value "
        "255 to 1"
    )
    rewrite_masks(data, lambda mask_HW: mask_HW > 0)  # saved with 1 bit
    assert load_semantic(data).warnings == ()


def test_classes_that_occur_nowhere_are_named(data: Path) -> None:
    (data / "classes.txt").write_text("background\ndisc\nsquare\nring\nstar\n")
    assert load_semantic(data, strict=True).warnings == (
        f"{data / 'masks' / 'train'}: no pixel of ring, star to learn from",
    )


def test_all_bad_masks_are_named_at_once(data: Path) -> None:
    for number in (1, 3, 5):
        Image.new("L", (96, 96), 200).save(data / "masks" / "train" / f"{number}.png")
    Image.new("RGB", (96, 96)).save(data / "masks" / "train" / "6.png")
    with pytest.raises(DataError) as caught:
        load_semantic(data)
    for number in (1, 3, 5, 6):
        assert f"{number}.png: " in str(caught.value)


def test_a_mask_of_another_format_starts_no_program(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads EPS with Ghostscript."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("subprocess.check_call", start)
    (data / "masks" / "train" / "2.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
    )
    with pytest.raises(DataError, match=r"2\.png: not an image, or of a format that is not supported"):
        load_semantic(data)


def test_a_test_set_alone_can_be_evaluated(data: Path) -> None:
    shutil.rmtree(data / "images" / "train")
    with pytest.raises(DataError, match="no folders of images and masks for train"):
        load_semantic(data)
    splits = load_semantic(data, for_training=False)
    assert (len(splits.train), len(splits.val)) == (0, 4)


def test_masks_are_found_by_names_in_another_unicode_form(data: Path) -> None:
    (data / "images" / "train" / "0.png").rename(data / "images" / "train" / "caf\u00e9.png")
    (data / "masks" / "train" / "0.png").rename(data / "masks" / "train" / "cafe\u0301.png")
    (data / "classes.txt").write_bytes(b"\xef\xbb\xbf" + (data / "classes.txt").read_bytes())
    splits = load_semantic(data)
    assert (len(splits.train), splits.train.class_names[0]) == (8, "background")


@pytest.mark.parametrize("kind", ["L", "P", "1", "I", "I;16", "I;16B"])
def test_index_images_of_every_kind_are_read(tmp_path: Path, kind: str) -> None:
    indices = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    path = tmp_path / "mask.tif"
    if kind.startswith("I;16"):
        stored = indices.astype(">u2" if kind.endswith("B") else "<u2")
        Image.frombytes(kind, (3, 2), stored.tobytes()).save(path)
    elif kind == "1":
        Image.fromarray(indices * 255).convert("1").save(path)
    elif kind == "P":
        mask = Image.fromarray(indices, mode="P")
        mask.putpalette([0, 0, 0, 200, 0, 0])
        mask.save(path)
    else:
        Image.fromarray(indices.astype(np.int32 if kind == "I" else np.uint8)).save(path)
    with Image.open(path) as written:
        assert written.mode == kind
    assert read_mask(path).tolist() == indices.tolist()


@pytest.mark.parametrize(
    ("mode", "words"), [("F", "of floats"), ("LA", "with transparency"), ("RGBA", "in colours")]
)
def test_masks_of_no_indices_say_what_they_are(tmp_path: Path, mode: str, words: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match=rf"a mask {words} \(mode {mode}\); its values have to be class indices"):
        read_mask(tmp_path / "mask.tif")


def test_masks_in_colours_are_read_by_their_table(data: Path) -> None:
    expected = load_semantic(data)
    colour_the_masks(data)
    found = load_semantic(data)
    assert found.train.class_names == expected.train.class_names
    assert found.train.palette == ((0, 0, 0), *COLOURS)
    for one, other in zip(expected.train.samples, found.train.samples, strict=True):
        assert one.mask == other.mask
    masks = [found.train.read_mask(sample) for sample in found.train.samples]
    plain = Path(shutil.copytree(data, data.parent / "plain"))
    (plain / "labelmap.txt").unlink()
    (plain / "class_dict.csv").write_text("name,r,g,b\nbackground,0,0,0\ndisc,220,60,50\nsquare,50,90,230\n")
    again = load_semantic(plain)
    assert again.train.fingerprint() == found.train.fingerprint()
    for table in (
        "b,g,r,name\n0,0,0,background\n50,60,220,disc\n230,90,50,square\n",
        'background,0,0,0\n"disc",220,60,50\nsquare,50,90,230\n',
    ):
        (plain / "class_dict.csv").write_text(table)
        assert load_semantic(plain).train.fingerprint() == found.train.fingerprint()
    assert [np.unique(mask).tolist() for mask in masks] == [
        np.unique(again.train.read_mask(sample)).tolist() for sample in again.train.samples
    ]
    assert {int(value) for mask in masks for value in np.unique(mask)} == {0, 1, 2}


def test_coloured_masks_hold_the_indices_they_were_made_from(shapes_data: Path, data: Path) -> None:
    colour_the_masks(data)
    path = data / "masks" / "train" / "2.png"
    pixels = np.array(Image.open(path))
    pixels[0, :3] = (224, 224, 192)  # Pascal VOC's void
    Image.fromarray(pixels).save(path)
    train = load_semantic(data).train
    for sample in train.samples:
        stored = np.array(Image.open(shapes_data / "masks" / "train" / sample.mask.name))
        if sample.mask == path:
            stored[0, :3] = IGNORED
        assert np.array_equal(train.read_mask(sample), stored)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("disc:1,2::", "expected a name and red, green, blue"),
        ("disc:1,2,x::", "expected a name and red, green, blue"),
        ("background:1,2,3::", "names background twice"),
        ("disc:0,0,0::", "each with a colour of its own"),
        ("disc:0,0,256::", "has a colour above 255"),
    ],
)
def test_bad_tables_of_colours_are_one_clear_line(data: Path, line: str, words: str) -> None:
    colour_the_masks(data)
    (data / "labelmap.txt").write_text(f"background:0,0,0::\n{line}\n")
    with pytest.raises(DataError, match=words):
        load_semantic(data)


def test_a_colour_that_is_no_class_is_an_error_with_its_place(data: Path) -> None:
    colour_the_masks(data)
    path = data / "masks" / "train" / "2.png"
    pixels = np.array(Image.open(path))
    pixels[7, 5] = (1, 2, 3)
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=r"2\.png: has the colour 1, 2, 3 at column 5, row 7, which is no class"):
        load_semantic(data)


def test_pascal_vocs_folder(data: Path, tmp_path: Path) -> None:
    voc = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for split in ("train", "val"):
        names = []
        for path in sorted((data / "images" / split).glob("*.png")):
            name = f"{split}_{path.stem}"
            shutil.copy(path, voc / "JPEGImages" / f"{name}.png")
            shutil.copy(data / "masks" / split / path.name, voc / "SegmentationClass" / f"{name}.png")
            names.append(name)
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    shutil.copy(path, voc / "JPEGImages" / "no_mask.png")
    found = load_semantic(voc, strict=True)
    assert (len(found.train), len(found.val)) == (8, 4)
    assert (found.train.class_names[:2], len(found.train.class_names)) == (("background", "aeroplane"), 21)
    shutil.rmtree(voc / "ImageSets")
    (voc / "classes.txt").write_text("background\ndisc\nsquare\n")
    found = load_semantic(voc, val_split=0.25)
    assert (len(found.train), len(found.val), found.split_off) == (9, 3, True)
    assert "is not split: 3 of 12 images are for validation" in found.warnings[0]


def test_a_folder_without_splits(data: Path) -> None:
    for kind in ("images", "masks"):
        shutil.rmtree(data / kind / "val")
        for path in list((data / kind / "train").iterdir()):
            path.rename(data / kind / path.name)
        (data / kind / "train").rmdir()
    found = load_semantic(data, val_split=0.25)
    assert (len(found.train), len(found.val)) == (6, 2)
    assert not {s.path for s in found.train.samples} & {s.path for s in found.val.samples}
