"""`predict` on a disk that fills up: one line says it, whole answers stay, and nothing half-written does."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import iformer
from iformer import files
from iformer.api.predictions import Predictions
from iformer.cli.main import main
from iformer.data.video.writer import VideoWriter
from iformer.errors import OutputError
from iformer.models.light_detector import LightDetector
from tiny.dense import light_detector, light_segmenter
from tiny.networks import labelled_classifier


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images of noise, whose drawn pictures are larger than the answers."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


class Disk:
    """A disk whose files, while it is full, take at most `limit` bytes each. `stage`: where the error shows."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.code, self.stage = errno.ENOSPC, "write"

    def check(self, size: int) -> None:
        if self.limit is not None and size > self.limit:
            raise OSError(self.code, os.strerror(self.code))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            if disk.stage == "write":
                disk.check(self.tell() + len(data))
            return super().write(data)

        def close(self) -> None:
            size = 0 if self.closed else os.fstat(self.fileno()).st_size
            super().close()
            if disk.stage == "close":
                disk.check(size)

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if disk.stage == "fsync":
            disk.check(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(files, "open", lambda name, mode: io.BufferedWriter(Raw(name, mode)), raising=False)
    return disk


def kept(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def until_it_fails(running: Predictions) -> tuple[list[dict[str, Any]], str]:
    """The records before the error, and its message."""
    found = []
    try:
        for one in running:
            found.append(one.record)
    except OutputError as error:
        return found, str(error)
    pytest.fail("the disk was not full")


def assert_whole(out: Path) -> None:
    """Nothing half-written or temporary is left."""
    for path in out.rglob("*"):
        assert path.suffix != ".part", path
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()


@pytest.mark.parametrize("stage", ["write", "close", "fsync"])
def test_answers_before_a_full_disk_are_kept(
    detector: LightDetector, photos: Path, tmp_path: Path, disk: Disk, stage: str
) -> None:
    out = tmp_path / "out"
    disk.stage = stage
    running = iformer.predict(detector, photos, out=out, max_detections=5)
    records = [next(running).record, next(running).record]
    disk.limit = 10_000
    with pytest.raises(OutputError) as caught:
        next(running)
    reason = os.strerror(errno.ENOSPC)
    assert str(caught.value) == (
        f"cannot write {out / '2.png'}: {reason}; the answers so far (2) are in {out / 'predictions.jsonl'}"
    )
    assert kept(out) == records
    assert {path.name for path in out.iterdir()} == {"0.png", "1.png", "predictions.jsonl"}
    assert_whole(out)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_the_verb_prints_one_line(
    detector_file: Path, photos: Path, tmp_path: Path, disk: Disk, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    out, disk.code, disk.limit = tmp_path / "out", code, 10_000
    command = ["predict", str(photos), "--weights", str(detector_file), "--out", str(out)]
    assert main(command) == 1
    assert capsys.readouterr().err == (
        f"error: cannot write {out / '0.png'}: {os.strerror(code)}; no image was answered before\n"
    )
    assert not out.exists()


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_as_many_answers_stay_as_the_disk_takes(
    photos: Path, tmp_path: Path, disk: Disk, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    network, images = labelled_classifier(), [np.full((32, 32, 3), 5 * number, np.uint8) for number in range(20)]
    full = tmp_path / "full"
    list(iformer.predict(network, images, out=full, format=format))
    size = (full / f"predictions.{format}").stat().st_size
    out = tmp_path / "out"
    disk.limit = size - 100 if format == "parquet" else size * 2 // 3
    with pytest.raises(OutputError) as caught:
        list(iformer.predict(network, images, out=out, format=format))
    file = out / f"predictions.{format}"
    message = str(caught.value)
    count = int(message.partition("the first ")[2].partition(" ")[0])
    assert message.startswith(
        f"cannot write {file}: No space left on device; the first {count} of 20 answers are in"
    )
    assert 10 <= count < 20
    whole = (full / file.name).read_bytes()
    if format != "parquet":
        assert whole.startswith(file.read_bytes())
        assert file.read_bytes().endswith(b"\n")
    if format == "csv":
        assert len({row["file"] for row in csv.DictReader(file.open())}) == count
    disk.limit = 10
    with pytest.raises(OutputError, match=f"no answer of 20 could be kept; {file} is of an earlier call"):
        list(iformer.predict(network, images, out=out, format=format, overwrite=True))


def test_answers_that_are_complete_stay_if_a_file_after_them_fails(
    photos: Path, tmp_path: Path, disk: Disk
) -> None:
    out = tmp_path / "out"
    network = labelled_classifier()
    disk.limit = 5_000  # the contact sheet is larger
    with pytest.raises(OutputError, match=r"cannot write .*predict\.png: .*; the answers so far \(5\) are in"):
        list(iformer.predict(network, photos, out=out))
    assert len(kept(out)) == 5
    assert not (out / "predict.png").exists()


@pytest.mark.parametrize("stage", ["write", "close", "fsync"])
def test_a_video_that_does_not_fit_costs_no_answer(
    detector: LightDetector, tmp_path: Path, disk: Disk, stage: str
) -> None:
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), dtype=np.uint8)
    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip, rate=Fraction(10), width=64, height=48) as writer:
        for number, pixels in enumerate(noise):
            writer.write(Image.fromarray(pixels), number / 10)
    out = tmp_path / "out"
    disk.stage, disk.limit = stage, 15_000
    found, message = until_it_fails(iformer.predict(detector, clip, out=out, min_score=1.0))
    assert message == (
        f"cannot write {out / 'clip.mp4'}: No space left on device; the answers so far ({len(found)}) are in "
        f"{out / 'predictions.jsonl'}"
    )
    assert kept(out) == found
    assert [path.name for path in out.iterdir()] == ["predictions.jsonl"]


def test_ctrl_c_on_a_full_disk_says_what_is_lost(
    detector: LightDetector, photos: Path, tmp_path: Path, disk: Disk
) -> None:
    running = iformer.predict(detector, photos, out=tmp_path / "out")
    next(running)
    disk.limit = 0
    with pytest.raises(OutputError, match="No space left on device; no answer of 1 could be kept"):
        running.close()


def test_images_in_memory_that_do_not_fit_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_bytes(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 1000)))
    out = tmp_path / "out"
    for source in (np.zeros((32, 32, 3), np.uint8), "-"):
        with pytest.raises(OutputError, match=r"cannot write .*out/inputs/.*: No space left on device"):
            iformer.predict(str(detector_file), source, out=out)
        assert not out.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; only root can mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no permission to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("make", [light_detector, light_segmenter])
def test_a_small_file_system(small_disk: Path, tmp_path: Path, make: Any) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    for number in range(20):
        Image.fromarray(pixels).save(photos / f"{number}.png")
    out = small_disk / "out"
    found, message = until_it_fails(iformer.predict(make(), photos, out=out))
    assert re.match(r"cannot write .*: No space left on device; the answers so far", message)
    assert 3 < len(found) < 20
    assert found[: len(kept(out))] == kept(out)
    assert f"({len(kept(out))})" in message
    assert_whole(out)
    (out / "0.png").unlink()
    list(iformer.predict(make(), photos / "1.png", out=out, overwrite=True))


def test_a_video_on_a_small_file_system(small_disk: Path, tmp_path: Path, detector: LightDetector) -> None:
    pytest.importorskip("av")
    clip = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (12, 192, 256, 3), dtype=np.uint8)
    with VideoWriter(clip, rate=Fraction(10), width=256, height=192) as writer:
        for number, pixels in enumerate(noise):
            writer.write(Image.fromarray(pixels), number / 10)
    out = small_disk / "out"
    with pytest.raises(
        OutputError, match=r"cannot write .*clip\.mp4: No space left on device; the answers so far"
    ):
        list(iformer.predict(detector, clip, out=out, min_score=1.0))
    assert [path.name for path in out.iterdir()] == ["predictions.jsonl"]
    assert len(kept(out)) > 3


# --------------------------------------------------------------------------------------- standard output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("json_lines", [[], ["--json"]])
def test_a_full_standard_output(
    detector_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], json_lines: list[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115 the process would keep it open
    command = ["predict", str(photos), "--weights", str(detector_file), *json_lines]
    assert main([*command, "--out", str(out)]) == 1
    reason = "cannot write to standard output: No space left on device"
    where = f"the answers so far (1) are in {out / 'predictions.jsonl'}"
    assert capsys.readouterr().err == f"error: {reason}; {where}\n"
    assert len(kept(out)) == 1
    if json_lines:
        monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
        assert main(command) == 1
        assert capsys.readouterr().err == f"error: {reason}\n"


def test_a_closed_pipe(
    detector_file: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def closed() -> io.TextIOWrapper:
        reading, writing = os.pipe()
        os.close(reading)
        return os.fdopen(writing, "w")

    out = tmp_path / "out"
    command = ["predict", str(photos), "--weights", str(detector_file), "--json"]
    monkeypatch.setattr(sys, "stdout", closed())
    assert main(command) == 1
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stdout", closed())
    assert main([*command, "--out", str(out)]) == 1
    assert (
        f"error: standard output was closed; the answers so far (1) are in {out / 'predictions.jsonl'}"
        in capsys.readouterr().err
    )
    assert len(kept(out)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_messages_that_cannot_be_printed_stop_nothing(
    detector_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "2.png").write_text("no image")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "stderr", open("/dev/full", "w"))  # noqa: SIM115
    assert main(["predict", str(photos), "--weights", str(detector_file), "--out", str(out)]) == 1
    assert len(kept(out)) == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(("stream", "code"), [("stdout", 1), ("stderr", 0)])
def test_the_exit_code_with_a_full_stream(stream: str, code: int) -> None:
    script = "from iformer.cli import main, output; output.note('x'); raise SystemExit(main.main(['--version']))"
    with open("/dev/full", "w") as full:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: full}
        done = subprocess.run([sys.executable, "-c", script], **pipes, text=True, timeout=60, check=False)
    assert done.returncode == code
    if stream == "stdout":
        assert done.stderr == "x\nerror: cannot write to standard output: No space left on device\n"
