"""Cameras and streams: what is read, how it ends, and what FFmpeg may open."""

from __future__ import annotations

import ssl
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from iformer.api.inputs import collect_inputs
from iformer.data.video import live
from iformer.data.video.live import LiveReader, LiveSource, camera, is_stream, live_source, masked, stream
from iformer.errors import DataError

av = pytest.importorskip("av")

from tiny.streams import (  # noqa: E402
    Answer,
    contents,
    encode,
    http_server,
    jpeg,
    motion_jpeg,
    number_of,
    rtsp_server,
)


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "OPEN_SECONDS", 20.0)
    monkeypatch.setattr(live, "STALL_SECONDS", 5.0)


@pytest.fixture(scope="module")
def recording() -> bytes:
    return encode("mpegts", 12)


def numbers(source: LiveSource) -> list[int]:
    with LiveReader(source) as reader:
        return [number_of(frame.image) for frame in reader]


def playlist(*segments: str, ended: bool = True) -> Answer:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
    lines = [f"#EXTINF:0.3,\n{segment}\n" for segment in segments]
    text = head + "".join(lines) + ("#EXT-X-ENDLIST\n" if ended else "")
    return contents(text.encode(), "application/vnd.apple.mpegurl")


def test_motion_jpeg_ends_without_an_error() -> None:
    with http_server({"/cam": motion_jpeg(6, interval=0.05)}) as url, LiveReader(stream(f"{url}/cam")) as reader:
        frames = list(reader)
    assert (reader.width, reader.height, reader.dropped) == (64, 48, 0)
    assert [number_of(frame.image) for frame in frames] == list(range(6))
    times = [frame.seconds for frame in frames]
    assert times == sorted(times)
    assert times[0] >= 0


def test_damaged_frames_are_counted() -> None:
    server = http_server({"/cam": motion_jpeg(6, damaged=3)})
    with server as url, LiveReader(stream(f"{url}/cam")) as reader:
        found = [number_of(frame.image) for frame in reader]
    assert len(found) + reader.dropped == 5
    assert 3 not in found
    assert reader.damaged == 1


def test_the_oldest_frames_are_dropped_where_answers_are_slow() -> None:
    received = threading.Event()
    server = http_server({"/cam": motion_jpeg(24, then_wait=received)})
    with server as url, LiveReader(stream(f"{url}/cam")) as reader:
        frames = iter(reader)
        found = [number_of(next(frames).image)]
        while reader.dropped < 24 - 1 - 4 - 1:  # all but the first one, four that wait, and the newest
            time.sleep(0.01)
        received.set()
        found += [number_of(frame.image) for frame in frames]
    assert len(found) + reader.dropped == 24
    assert reader.dropped >= 18
    assert found[1:] == list(range(24 - len(found) + 1, 24)), "the newest frames, in order"


def test_a_recording_loses_no_frame_and_has_its_own_times(recording: bytes) -> None:
    answers = {"/a.m3u8": playlist("a.ts"), "/a.ts": contents(recording, "video/mp2t")}
    frames = []
    with http_server(answers) as url, LiveReader(stream(f"{url}/a.m3u8")) as reader:
        for frame in reader:
            frames.append(frame)
            time.sleep(0.01)
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([number / 10 for number in range(12)])
    assert reader.dropped == 0


def test_a_live_playlist_is_read_at_its_own_pace() -> None:
    segments = {f"/{n}.ts": contents(encode("mpegts", 3, start=3 * n), "video/mp2t") for n in range(3)}
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        playlist(*(name[1:] for name in segments), ended=len(asked) > 1)(handler)

    with http_server({"/live.m3u8": answer, **segments}) as url:
        begin = time.monotonic()
        assert numbers(stream(f"{url}/live.m3u8")) == list(range(9))
        assert time.monotonic() - begin > 0.6, "nine frames at ten per second, which the server sends at once"


def test_rtsp(recording: bytes) -> None:
    with rtsp_server(recording) as url:
        found = numbers(stream(url))
    assert found  # on a busy machine the oldest frames are dropped
    assert found == sorted(set(found) & set(range(12)))


def test_a_stream_that_stalls_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STALL_SECONDS", 0.7)
    stop = threading.Event()
    server = http_server({"/cam": motion_jpeg(3, then_wait=stop)})
    with server as url, LiveReader(stream(f"{url}/cam")) as reader:
        frames = iter(reader)
        assert len([next(frames), next(frames), next(frames)]) == 3
        with pytest.raises(DataError, match=r"/cam: no frame for 0\.7 s after frame 3"):
            next(frames)
        stop.set()
    monkeypatch.setattr(live, "OPEN_SECONDS", 0.2)
    with pytest.raises(DataError, match=r"udp://127\.0\.0\.1:\d+: no frame for 0\.2 s"):
        LiveReader(stream("udp://127.0.0.1:39871"))


def test_no_server_is_one_line_without_the_password() -> None:
    with pytest.raises(DataError, match=r"^rtsp://user:\*\*\*@127\.0\.0\.1:1/x: cannot be opened \(.*refused\)$"):
        LiveReader(stream("rtsp://user:secret@127.0.0.1:1/x"))
    assert masked("http://a:b@c@host/p?q=x:y@z") == "http://a:***@host/p?q=x:y@z"
    assert masked("rtsp://user:s3/cr@et@host/1") == "rtsp://user:***@host/1"
    assert masked("http://host:80/a@b") == "http://host:80/a@b"
    assert masked("http://host/a:b@c") == "http://host/a:b@c"
    hidden = masked("http://host/1?channel=2&Password=hunter2&api_key=k#x")
    assert hidden == "http://host/1?channel=2&Password=***&api_key=***#x"
    assert masked("rtsp://host/live") == "rtsp://host/live"
    assert "secret" not in repr(stream("rtsp://user:secret@host/x"))


@pytest.mark.parametrize(
    "segment", ["file://{file}", "concat:a.ts|{file}", "subfile,,start,0,end,0,,:{file}", "{file}"]
)
def test_playlists_cannot_open_files(recording: bytes, tmp_path: Path, segment: str) -> None:
    (tmp_path / "secret.ts").write_bytes(recording)
    answers = {
        "/a.m3u8": playlist(segment.format(file=tmp_path / "secret.ts")),
        "/a.ts": contents(recording, "video/mp2t"),
    }
    with http_server(answers) as url, pytest.raises(DataError, match=r"a\.m3u8: cannot be opened"):
        LiveReader(stream(f"{url}/a.m3u8"))


def test_http_is_a_stream_or_a_file_by_its_content_type(recording: bytes, tmp_path: Path) -> None:
    answers = {
        "/cam": motion_jpeg(1),
        "/photo": contents(jpeg(3), "image/jpeg"),
        "/clip.mp4": contents(encode("mp4", 3), "video/mp4"),
        "/list": playlist("a.ts"),
    }
    with http_server(answers) as url:
        found = {path: collect_inputs(f"{url}{path}", lambda: tmp_path)[0] for path in answers}
    assert {path: item.live is not None for path, item in found.items()} == {
        "/cam": True, "/photo": False, "/clip.mp4": False, "/list": True
    }  # fmt: skip
    assert is_stream("text/plain", has_length=True, url="http://host/LIVE.M3U8?key=1")
    assert is_stream("video/mp2t", has_length=False, url="http://host/tv")
    assert not is_stream("video/mp2t", has_length=True, url="http://host/tv")
    assert not is_stream("video/mp4", has_length=False, url="http://host/a.mp4")


def test_a_user_and_password_are_sent(tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers["Authorization"] == "Basic dXNlcjpwQHNz":
            motion_jpeg(8, interval=0.01)(handler)
        else:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="camera"')
            handler.end_headers()

    with http_server({"/cam": answer}) as url:
        (item,) = collect_inputs(url.replace("//", "//user:p%40ss@") + "/cam", lambda: tmp_path)
        assert item.live is not None
        assert len(numbers(item.live)) > 0
        with pytest.raises(DataError, match=r"^http://user:\*\*\*@.*/cam: cannot be fetched \(.*401"):
            collect_inputs(url.replace("//", "//user:wrong@") + "/cam", lambda: tmp_path)
    assert item.source == url.replace("//", "//user:***@") + "/cam"


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = pytest.importorskip("trustme").CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    with http_server({"/cam": motion_jpeg(8, interval=0.01)}, context) as url:
        with pytest.raises(DataError, match=r"/cam: cannot be opened"):
            LiveReader(stream(f"{url}/cam"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert len(numbers(stream(f"{url}/cam"))) > 0


def test_what_is_a_live_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("a.png", "http://host/cam", "https://host/cam", "-", "ftp://host/a", "12a", "²", "photos/*.jpg")
    assert [live_source(name) for name in names] == [None] * len(names)
    (tmp_path / "7").mkdir()
    assert live_source("7") is None, "a folder of that name"
    found = live_source("RTSP://user:secret@192.168.1.9:554/stream1?channel=2")
    assert found is not None
    assert (found.name, found.stem) == ("RTSP://user:***@192.168.1.9:554/stream1?channel=2", "stream1")
    udp = live_source("udp://239.0.0.1:5000")
    assert udp is not None
    assert udp.stem == "239.0.0.1_5000"
    assert live_source("9" * 5000) is None
    with pytest.raises(DataError, match=r"^rtsp://\[::1/x: not an address \(Invalid IPv6 URL\)$"):
        live_source("rtsp://[::1/x")
    for address, reason in (
        (
            "rtsp://user:s3/cret@host:9/x",
            r"rtsp://user:\*\*\*@host:9/x: not an address \(a / in a password is written %2F\)",
        ),
        ("udp://127.0.0.1:999999", r"udp://127\.0\.0\.1:999999: not an address \(Port out of range 0-65535\)"),
        ("tcp://host", r"tcp://host: not an address \(no port\); give one, as in tcp://0\.0\.0\.0:5000"),
    ):
        with pytest.raises(DataError, match=f"^{reason}$"):
            live_source(address)
    with pytest.raises(DataError, match=r"^http://u:\*\*\*@host/x.png: cannot be fetched \(a / in a password is"):
        collect_inputs("http://u:s3/cret@host/x.png", lambda: tmp_path)
    with pytest.raises(DataError, match=r"cannot be opened"):
        LiveReader(stream("rtsp://host/\udcff"))
    with pytest.raises(DataError, match="a camera or stream must be the only source of a call"):
        collect_inputs([udp.url, tmp_path / "a.png"], lambda: tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="names of devices on Linux")
def test_a_missing_camera_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source, name in (("97", "camera 97"), ("/dev/video97", "/dev/video97")):
        with pytest.raises(
            DataError, match=rf"^{name}: there is no /dev/video97; cameras of this machine: "
        ) as caught:
            collect_inputs(source, lambda: tmp_path)
        assert "\n" not in str(caught.value)


def test_cameras_of_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = camera(1, "darwin")
    assert (mac.format, mac.url, mac.stem) == ("avfoundation", "1:none", "camera-1")
    devices = [
        SimpleNamespace(name="Microphone", media_types=["audio"]),
        SimpleNamespace(name="USB Camera", media_types=["video"]),
    ]
    monkeypatch.setattr(av, "enumerate_input_devices", lambda name: devices, raising=False)
    assert camera(0, "win32").url == "video=USB Camera"
    with pytest.raises(DataError, match="camera 1: no such camera; cameras of this machine: USB Camera"):
        camera(1, "win32")
    with pytest.raises(DataError, match="camera 0: cameras are read on Linux, macOS and Windows, not on plan9"):
        camera(0, "plan9")


def test_a_device_is_read_until_the_reader_is_closed() -> None:
    source = LiveSource(name="camera 0", url="testsrc=size=64x48:rate=30", stem="camera-0", format="lavfi")
    try:
        reader = LiveReader(source)
    except DataError as error:
        pytest.skip(f"this PyAV has no test device: {error}")
    with reader:
        frames: Iterator[object] = iter(reader)
        assert [next(frames) for _ in range(3)]
    assert not reader._thread.is_alive()
