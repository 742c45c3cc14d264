"""Which files `predict` reads as videos, and what it says about those that it leaves out."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import iformer
from iformer.cli.main import main
from iformer.data.video.reader import VideoReader, has_video_extension, is_video
from iformer.errors import DataError, UserError
from iformer.models.light_detector import LightDetector
from tiny.dense import light_segmenter
from tiny.networks import labelled_classifier
from tiny.videos import Part, recorded

pytest.importorskip("av")

from tiny.streams import http_server, motion_jpeg

PART = Part(size=(64, 48), frames=2)


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("a.3gp", "3gp", "mpeg4"), ("a.MTS", "mpegts", "libx264"), ("a.m2ts", "mpegts", "mpeg2video"),
        ("a.ts", "mpegts", "libx264"), ("a.wmv", "asf", "wmv2"), ("a.flv", "flv", "flv"),
        ("a.ogv", "matroska", "mpeg4"), ("a.MPG", "mpeg", "mpeg2video"), ("a.mpeg", "vob", "mpeg2video"),
        ("a.MP4", "mp4", "libx264"), ("a.mjpeg", "mjpeg", "mjpeg"),
        ("a", "mp4", "libx264"), ("a.mp4.download", "matroska", "libx264"), ("a.bak", "avi", "mpeg4"),
    ],
)  # fmt: skip
def test_a_video_is_read_whatever_its_extension(
    detector: LightDetector, tmp_path: Path, name: str, container: str, codec: str
) -> None:
    frames = 12 if codec == "mpeg2video" else 2  # FFmpeg recognises no shorter one
    part = Part(size=(64, 48), frames=frames, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p")
    path, out = recorded(tmp_path / name, part, container=container, codec=codec), tmp_path / "out"
    answers = list(iformer.predict(detector, path, out=out))
    assert [(one.frame, one.error) for one in answers] == [(number, None) for number in range(frames)]
    with VideoReader(out / f"{path.stem}.mp4") as drawn:
        assert len(list(drawn)) == frames
    (classified,) = iformer.predict(labelled_classifier(), path)
    refusal = "a video, not an image; detectors and segmenters take videos"
    assert classified.error == (None if codec == "mjpeg" else refusal)  # a JPEG and more


def test_contents_decide_only_where_the_extension_says_nothing(detector: LightDetector, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "picture", format="PNG")
    Image.new("RGB", (64, 48)).save(tmp_path / "icon.ico")
    Image.new("RGB", (64, 48)).save(tmp_path / "still.tga")
    (tmp_path / "notes.txt").write_text("\x1b[31mred\x1b[0m art\n" * 50)
    (tmp_path / "noise.bin").write_bytes(np.random.default_rng(0).bytes(100_000))
    (tmp_path / "list").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    (tmp_path / "empty").write_bytes(b"")
    recorded(tmp_path / "clip.mp4", PART, container="mp4")
    for path in tmp_path.iterdir():
        assert is_video(path) == (path.name == "clip.mp4"), path
    assert not is_video(tmp_path / "none")
    names = ["picture", "icon.ico", "still.tga", "notes.txt", "noise.bin", "list", "empty"]
    found = list(iformer.predict(detector, [tmp_path / name for name in names]))
    assert [one.error is None for one in found] == [True, *[False] * 6]
    shutil.copy(tmp_path / "clip.mp4", tmp_path / "picture")
    assert is_video(tmp_path / "picture"), "another file since"


def test_a_cover_is_no_video(detector: LightDetector, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w", format="mp4") as file:
        cover, clip = file.add_stream("mjpeg", rate=1), file.add_stream("libx264", rate=10)
        for stream, size in ((cover, (32, 32)), (clip, (64, 48))):
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if stream is cover else "yuv420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for stream, size, count in ((cover, (32, 32), 1), (clip, (64, 48), 3)):
            for number in range(count):
                image = np.zeros((size[1], size[0], 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts = number
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    with VideoReader(path) as reader:
        assert (reader.width, reader.height, len(list(reader))) == (64, 48, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, a video, two other files and a hidden one."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (64, 48)).save(folder / name)
    recorded(folder / "clip.m2ts", PART)
    shutil.copy(folder / "clip.m2ts", folder / "clip.part")
    (folder / "labels.csv").write_text("1.png,cat\n")
    (folder / ".hidden").write_text("x")
    return folder


@pytest.mark.parametrize("pattern", [False, True], ids=["folder", "pattern"])
def test_files_that_are_left_out_are_named(detector: LightDetector, folder: Path, pattern: bool) -> None:
    source, notes = str(folder / "*") if pattern else str(folder), list[str]()
    found = list(iformer.predict(detector, source, warn=notes.extend))
    assert [Path(one.source).name for one in found] == ["1.png", "2.png", "clip.m2ts", "clip.m2ts"]
    left_out = "left out 2 files without the extension of an image or video: "
    assert notes == [f"{left_out}{folder / 'clip.part'}, {folder / 'labels.csv'}"]
    notes.clear()
    found = list(iformer.predict(detector, [source, folder / "clip.part"], warn=notes.extend))
    assert len(found) == 6
    assert notes == [f"left out 1 file without the extension of an image or video: {folder / 'labels.csv'}"]
    notes.clear()
    assert len(list(iformer.predict(labelled_classifier(), source, warn=notes.extend))) == 2
    assert notes[1] == f"left out 1 video, classifiers take images: {folder / 'clip.m2ts'}"


def test_a_folder_without_images_names_its_files(detector: LightDetector, tmp_path: Path) -> None:
    for name in ("b.part", "a.csv", "c", "d", ".x"):
        (tmp_path / name).write_text("x")
    for source in (tmp_path, tmp_path / "*"):
        with pytest.raises(
            DataError, match=r"no image or video .*; there are other files: a\.csv, b\.part, c, and 1 more"
        ):
            iformer.predict(detector, source)


def test_tracks_of_a_folder_with_images_and_videos(
    detector: LightDetector, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackers")
    iformer.save(detector, tmp_path / "net.safetensors")
    command = ["predict", "--weights", str(tmp_path / "net.safetensors"), "--min-score", "0", "--json"]
    for option in (["--track"], ["--max-frames", "1"]):
        assert main([*command, str(folder), *option]) == 0
        said = capsys.readouterr()
        assert f"note: {option[0]} has no effect on 2 images beside the videos\n" in said.err
        records = [json.loads(line) for line in said.out.splitlines()]
        assert ["frame" in record for record in records] == [False, False, True, True][: len(records)]
        for record in records:
            tracked = option == ["--track"] and "frame" in record
            assert all(("track" in one) == tracked for one in record["detections"])
        assert main([*command, str(folder / "1.png"), str(folder / "clip.m2ts"), *option]) == 1
        assert "1.png is no video; " in capsys.readouterr().err
    (folder / "clip.m2ts").unlink()
    with pytest.raises(UserError, match=r"1\.png is no video; --track is for videos, cameras and streams"):
        iformer.predict(detector, folder, track=True, warn=print)


def test_an_animated_gif_is_a_video(detector: LightDetector, tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    moving, still = tmp_path / "moving.gif", tmp_path / "still.gif"
    pictures[0].save(moving, save_all=True, append_images=pictures[1:], duration=100)
    pictures[0].save(still)
    answers = list(iformer.predict(detector, [moving, still]))
    assert [(Path(one.source).name, one.frame, one.error) for one in answers] == [
        ("moving.gif", 0, None), ("moving.gif", 1, None), ("moving.gif", 2, None), ("still.gif", None, None)
    ]  # fmt: skip
    with VideoReader(moving) as frames:
        assert [one.image.getpixel((5, 5)) for one in frames] == [picture.getpixel((5, 5)) for picture in pictures]
    (classified,) = iformer.predict(labelled_classifier(), moving)
    assert classified.error is None


def test_a_video_named_as_an_image_says_which_name_helps(detector: LightDetector, tmp_path: Path) -> None:
    path = recorded(tmp_path / "clip.mp4", PART, container="mp4").rename(tmp_path / "clip.png")
    (answer,) = iformer.predict(detector, path)
    assert answer.error == (
        "a video, not an image; detectors and segmenters take it under a name such as NAME.mp4"
    )


def test_a_server_that_never_completes_its_header_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read gets a byte in time; only the whole header takes too long."""
    ended = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not ended.wait(0.02):
            handler.wfile.write(b"a")

    def empty(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Ty")

    monkeypatch.setattr("iformer.api.inputs._OPEN_SECONDS", 0.5)
    with http_server({"/drip": drip, "/empty": empty}) as url:
        with pytest.raises(DataError, match=r"/drip: cannot be fetched \(not complete after 0\.5 s\)"):
            iformer.predict(labelled_classifier(), f"{url}/drip")
        ended.set()
        with pytest.raises(DataError, match=r"the answer is empty, or the connection ended early"):
            iformer.predict(labelled_classifier(), f"{url}/empty")


def test_damaged_frames_are_a_warning(detector: LightDetector) -> None:
    said: list[str] = []
    with http_server({"/cam": motion_jpeg(6, interval=0.1, damaged=3)}) as url:
        answers = list(iformer.predict(detector, f"{url}/cam", warn=said.extend))
    assert not any(answer.error for answer in answers)
    assert said == [f"{url}/cam: 1 damaged frame; answers there may be wrong or missing"]


def test_extensions() -> None:
    known = "mp4 MOV 3gp mts M2TS ts wmv flv ogv mpg mpeg avi mkv webm m4v vob"
    assert all(has_video_extension(f"a.{extension}") for extension in known.split())
    assert not any(has_video_extension(name) for name in ("a", "mp4", "a.txt", "a.mp4.part", ".mp4", "a.mp3"))


def test_a_segmenter_reads_a_download_without_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = recorded(tmp_path / "clip.ts", PART).read_bytes()
    monkeypatch.setattr("iformer.api.inputs._download", lambda url: contents)
    found = list(iformer.predict(light_segmenter(), "https://example.org/watch?v=1"))
    assert [one.frame for one in found] == [0, 1]


@pytest.mark.parametrize(("mode", "same"), [("HSV", "RGB"), ("La", "LA"), ("RGBa", "RGBA")])
def test_images_in_modes_that_no_file_can_have(mode: str, same: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)
    image = Image.fromarray(pixels[..., : len(same)] if same != "LA" else pixels).convert(same).convert(mode)
    network = labelled_classifier()
    given, expected = iformer.predict(network, [image, image.convert(same)])
    assert given.error is None
    assert given.answers == expected.answers


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_a_file_that_is_named_twice_is_answered_twice(detector: LightDetector, tmp_path: Path, task: str) -> None:
    network = detector if task == "detect" else labelled_classifier()
    for name in "abc":
        Image.new("RGB", (64, 48), "blue").save(tmp_path / f"{name}.png")
    names = [str(tmp_path / name) for name in ("b.png", "a.png", "none.png", "b.png", "none.png")]
    for inputs in (names, iter(names)):
        assert [one.source for one in iformer.predict(network, inputs)] == names
    found = [one.source for one in iformer.predict(network, [names[0], tmp_path, tmp_path / "*.png", names[0]])]
    assert found == [names[0], names[1], str(tmp_path / "c.png"), names[0]]
    if task == "detect":
        list(iformer.predict(network, names, out=tmp_path / "out"))
        assert len(list((tmp_path / "out").glob("*.[jp][pn]g"))) == 3


def test_a_video_that_is_named_twice(detector: LightDetector, tmp_path: Path) -> None:
    video, missing = str(recorded(tmp_path / "v.mp4", PART)), str(tmp_path / "none.png")
    answers = list(iformer.predict(detector, [video, missing, video, video]))
    assert [(one.source, one.frame) for one in answers] == [
        (video, 0), (video, 1), (missing, None), (video, 0), (video, 1), (video, 0), (video, 1)
    ]  # fmt: skip
