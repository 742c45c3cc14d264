"""Image files of every kind, valid and damaged."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from iformer.data import conversion
from iformer.data.images import MAX_PIXELS, check_image, has_image_extension, read_image
from iformer.errors import DataError


def photograph(width: int = 64, height: int = 48) -> np.ndarray:
    """Smooth colours with a bright corner, uint8 (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) * 128 / (width + height)], axis=-1)
    image[:8, :8] = 255
    return image.astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG of any size in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def one_line(error: BaseException, *, names: object) -> str:
    message = str(error)
    assert "\n" not in message
    assert str(names) in message
    return message


def test_rgb_png_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photograph()).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), photograph())
    np.testing.assert_array_equal(np.asarray(read_image(path.read_bytes())), photograph())


def test_gray_is_three_equal_channels_or_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    gray = photograph()[..., 0]
    Image.fromarray(gray).save(path)
    kept = read_image(path, keep_gray=True)
    assert kept.mode == "L"
    np.testing.assert_array_equal(np.asarray(kept), gray)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.repeat(gray[..., None], 3, axis=-1))


def test_16_bit_gray_is_scaled(tmp_path: Path) -> None:
    gray = photograph()[..., 0]
    for name in ("a.png", "a.tif"):
        Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name))[..., 1], gray)
    (tmp_path / "a.pgm").write_bytes(b"P5 64 48 65535\n" + (gray.astype(">u2") * 257).tobytes())
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.pgm"))[..., 1], gray)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.0, 1000.0]], np.float32), [0, 0, 255]),
        (np.array([[np.nan, np.inf, -np.inf]], np.float32), [0, 0, 0]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 256, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 500_000, 1_000_000]], np.int32), [0, 128, 255]),
        (np.array([[300_000] * 3], np.int32), [0, 0, 0]),
    ],
)
def test_wide_values_are_scaled(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == expected


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph()).convert("CMYK").save(path, quality=95)
    difference = np.abs(np.asarray(read_image(path)).astype(int) - photograph())
    assert np.median(difference) < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3, 3] = 255  # the left half is black, the right half transparent black
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    image = Image.fromarray(rgba)
    if mode == "P":
        image = Image.new("P", (6, 4), 0)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.paste(1, (3, 0, 6, 4))
        image.save(path, transparency=bytes([255, 0]))
    elif mode == "PA":
        image = Image.new("PA", (6, 4), (0, 255))
        image.putpalette([0, 0, 0])
        image.paste((0, 0), (3, 0, 6, 4))
        try:
            image.save(path)
        except (OSError, KeyError):
            pytest.skip("this Pillow writes no palette with alpha")
    else:
        image.convert(mode).save(path)
    pixels = np.asarray(read_image(path))
    assert pixels.shape == (4, 6, 3)
    assert (pixels[:, :3] == 0).all()
    assert (pixels[:, 3:] == 255).all()


def test_transparent_colour_of_an_opaque_mode(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = photograph(6, 4)
    Image.fromarray(pixels).save(path, exif=exif)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    np.testing.assert_array_equal(np.asarray(read_image(path)), turned)


def test_a_damaged_exif_block_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph()).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(path).size == (64, 48)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_1x1(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (1, 1), 1 if mode != "RGB" else (1, 1, 1)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.mode, image.size) == ("RGB", (1, 1))


def test_images_do_not_keep_their_file_open(tmp_path: Path) -> None:
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert type(image) is Image.Image
    (tmp_path / "a.png").unlink()
    assert image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("check", [read_image, check_image])
@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_truncated_files(tmp_path: Path, extension: str, check: object) -> None:
    whole, path = io.BytesIO(), tmp_path / f"a.{extension}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(extension, extension.upper())
    Image.fromarray(noise).save(whole, kind)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(DataError) as caught:
        check(path)  # type: ignore[operator]
    one_line(caught.value, names=path)


@pytest.mark.parametrize("check", [read_image, check_image])
def test_files_that_are_no_images(tmp_path: Path, check: object) -> None:
    def reason(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            check(path)  # type: ignore[operator]
        return one_line(caught.value, names=path)

    (tmp_path / "empty.jpg").write_bytes(b"")
    assert "empty (0 bytes)" in reason(tmp_path / "empty.jpg")
    (tmp_path / "text.png").write_text("this is no picture\n" * 10)
    assert "not an image" in reason(tmp_path / "text.png")
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert "not an image" in reason(tmp_path / "page.png")
    assert "no such file" in reason(tmp_path / "missing.png")
    assert "a folder" in reason(tmp_path)
    (tmp_path / "bytes.jpg").write_bytes(os.urandom(2000))
    assert "not an image" in reason(tmp_path / "bytes.jpg")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(photograph()).save(path)

    # Tests may run as root, who may read everything.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match="no permission") as caught:
        read_image(path)
    one_line(caught.value, names=path)


@pytest.mark.parametrize("size", [(30_000, 30_000), (14_000, 14_000), (200_000, 1_000)])
def test_decompression_bombs_are_refused_by_their_header(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))

    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=r"limit of 178,956,970") as caught:
            read_image(path)
    one_line(caught.value, names=path)


def test_bytes_have_no_path() -> None:
    with pytest.raises(DataError, match="image: not an image"):
        read_image(b"hello")


def test_extensions() -> None:
    assert has_image_extension("A.JPG")
    assert has_image_extension(Path("x/y.Jpeg"))
    assert not has_image_extension("a.txt")
    assert not has_image_extension("jpg")


@pytest.mark.parametrize("size", [(5, 40), (40, 7), (1, 1), (3, 900)])
def test_a_jpeg_with_a_short_side_is_read(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", size, (200, 30, 30)).save(path)
    assert check_image(path).size == read_image(path).size == size


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_a_png_with_much_text_or_a_large_profile_is_read(tmp_path: Path, kind: str) -> None:
    info = PngImagePlugin.PngInfo()
    options: dict[str, object] = {"pnginfo": info}
    text = "x" * (3 << 20)
    if kind == "iCCP":
        options["icc_profile"] = bytes(3 << 20)
    elif kind == "iTXt":
        info.add_itxt("big", text, zip=True)
    else:
        for number in range(30):
            info.add_text(f"big{number}", text, zip=kind == "zTXt")
    Image.fromarray(photograph()).save(tmp_path / "a.png", **options)  # type: ignore[arg-type]
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        np.testing.assert_array_equal(np.asarray(read_image(source)), photograph())
    check_image(tmp_path / "a.png")


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_12_bits_in_16_have_a_range(tmp_path: Path, extension: str) -> None:
    gray = photograph()[..., 0]
    Image.fromarray((gray.astype(np.uint16) * 257) >> 4).save(tmp_path / f"a.{extension}")
    path = tmp_path / f"a.{extension}"
    assert check_image(path).highest == 4095
    assert np.asarray(read_image(path)).max() == 15
    scaled = np.asarray(read_image(path, keep_gray=True, value_range=(0, 4095)))
    assert np.abs(scaled.astype(int) - gray).max() <= 1
    np.testing.assert_array_equal(np.asarray(read_image(path, value_range=(0, 1))).max(), 255)  # clipped
    Image.fromarray(photograph()).save(tmp_path / "plain.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "plain.png", value_range=(0, 9))), photograph())


def test_strips_do_not_change_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    pictures = {
        "rgba.png": generator.integers(0, 256, (40, 30, 4)).astype(np.uint8),
        "la.png": generator.integers(0, 256, (40, 30, 2)).astype(np.uint8),
        "wide.png": generator.integers(0, 65536, (40, 30)).astype(np.uint16),
        "int.tif": generator.integers(0, 10**6, (40, 30)).astype(np.int32),
        "float.tif": generator.normal(size=(40, 30)).astype(np.float32),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
    whole = {name: read_image(tmp_path / name).tobytes() for name in pictures}
    monkeypatch.setattr(conversion, "_STRIP_PIXELS", 100)
    assert {name: read_image(tmp_path / name).tobytes() for name in pictures} == whole


def test_decoding_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    Image.new("RGB", (16_000, 9_000)).save(path, lossless=True, method=0)
    with pytest.raises(DataError, match=r"16000 x 9000 pixels of WEBP would take about 2\.1 GiB to decode"):
        read_image(path)


def test_a_heic_photograph_names_the_extra_that_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"  # as some phones name them
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200)
    if "HEIF" in Image.OPEN:
        pytest.skip("pillow-heif is installed")
    assert has_image_extension("IMG_1.HEIC")
    for check in (read_image, check_image):
        with pytest.raises(DataError) as error:
            check(path)
        assert "pip install 'iformer[heic]' reads it" in one_line(error.value, names=path)


def sixteen_bits(values_HWC: np.ndarray, *, order: str = "<", extra: int = 0) -> bytes:
    """An uncompressed TIFF of 16 bits per channel, which Pillow cannot write in colours."""
    height, width, channels = values_HWC.shape
    data = values_HWC.astype(f"{order}u2").tobytes()
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    tags = [
        *((256, 1, width), (257, 1, height), (258, channels, 8), (259, 1, 1), (262, 1, 2)),
        *((273, 0, 8 + len(bits)), (277, 1, channels), (278, 1, height), (279, 0, len(data))),
    ]
    tags += [(338, 1, extra)] if channels == 4 else []
    table = struct.pack(f"{order}H", len(tags))
    for tag, count, value in tags:
        short = count == 1
        form = f"{order}HHIHH" if short else f"{order}HHII"
        kind = 4 if count == 0 else 3
        table += struct.pack(form, tag, kind, max(count, 1), value, *([0] if short else []))
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}I", 8 + len(bits) + len(data)) + bits + data + table + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colours_have_a_range(order: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (9, 7, channels))
    file = sixteen_bits(values, order=order)
    assert 3840 < (check_image(file).highest or 0) <= 4095
    plain = np.asarray(read_image(file, channels=channels))
    np.testing.assert_array_equal(plain, values >> 8)
    scaled = np.asarray(read_image(file, channels=channels, value_range=(0, 4095)))
    np.testing.assert_array_equal(scaled, np.rint(values * (255 / 4095)))


def test_16_bit_colours_of_a_png_have_a_range() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (9, 7, 3))
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 7, 9, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    scaled = np.asarray(read_image(file, value_range=(0, 4095)))
    np.testing.assert_array_equal(scaled, np.rint(values * (255 / 4095)))
    assert 3840 < (check_image(file).highest or 0) <= 4095


@pytest.mark.parametrize(("channels", "stored"), [(2, "LA"), (4, "RGBA")])
def test_an_extra_channel_is_kept_as_it_is(channels: int, stored: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    pixels[:4, :, -1] = 0  # colours under full transparency count too
    Image.fromarray(pixels, stored).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", channels=channels)
    np.testing.assert_array_equal(np.asarray(image), pixels)
    alone = [Image.fromarray(pixels[..., channel]) for channel in range(channels)]
    resized = [np.asarray(one.resize((5, 6), Image.Resampling.BICUBIC)) for one in alone]
    np.testing.assert_array_equal(
        np.asarray(image.resize((5, 6), Image.Resampling.BICUBIC)), np.stack(resized, -1)
    )


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_fourth_channel_of_a_tiff_without_a_meaning_is_kept(compression: str | None, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    Image.frombytes("RGBX", (7, 9), pixels.tobytes()).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif", channels=4)), pixels)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif")), pixels[..., :3])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
def test_a_missing_channel_is_named(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new(mode, (9, 7)).save(path)
    with pytest.raises(DataError) as error:
        read_image(path, channels=4)
    assert f"({mode}), the network takes 4; expected a PNG or TIFF of four channels" in one_line(
        error.value, names=path
    )
