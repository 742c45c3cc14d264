"""Shards at a URL: the same images as from a folder, and errors of one line."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from iformer.cli.main import main
from iformer.config.preprocessing import Preprocessing
from iformer.data.loader import build_loader
from iformer.data.sources import load_data
from iformer.data.sources.shards import stores
from iformer.data.sources.shards.index import INDEX
from iformer.data.sources.shards.packing import describe, pack, verify
from iformer.data.transforms import eval_transform
from iformer.errors import DataError
from iformer.tasks.classification.dataset import ImageDataset


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 2)):
        for name in ("ant", "bee"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return Path(pack(load_data(root), root.parent / "shards", shard_bytes=8000).folder)


class Server(ThreadingHTTPServer):
    """Serves a folder, parts of files too; it can be told to fail, to be slow, or to know no parts."""

    daemon_threads = True
    failures = 0
    ranges = True
    latency = 0.0
    hangs = False
    answer: bytes | None = None  # in place of a range
    encoding: str | None = None
    requests = 0
    most_at_once = 0
    _now = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.lock = threading.Lock()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        if self.server.hangs:
            self.server.released.wait(60)
        self._answer(body=False)

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests += 1
            server._now += 1
            server.most_at_once = max(server.most_at_once, server._now)
            fails = server.failures > 0 and "Range" in self.headers
            server.failures -= fails
        time.sleep(server.latency)
        if server.hangs:
            server.released.wait(60)
        try:
            if fails:
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self._answer(body=True)
        finally:
            with server.lock:
                server._now -= 1

    def _answer(self, *, body: bool) -> None:
        path = self.server.folder / self.path.removeprefix("/data/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted and self.server.ranges:
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1] if self.server.answer is None else self.server.answer
            if self.server.encoding:
                self.send_header("Content-Encoding", self.server.encoding)
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(stores, "_WAITS", (0.01, 0.01))
    with Server(packed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


def batches(where: str, *, workers: int = 0, epoch: int = 3, start: int = 0) -> list[dict[str, Any]]:
    transform = eval_transform(Preprocessing(size=(16, 16)))
    dataset = ImageDataset(load_data(where).train, transform)
    with build_loader(dataset, batch_size=6, train=True, seed=1, workers=workers) as loader:
        return list(loader.epoch(epoch, start))


def assert_same(ours: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(ours) == len(expected) > 0
    for one, other in zip(ours, expected, strict=True):
        for name in ("images", "labels", "indices"):
            assert torch.equal(one[name], other[name])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_from_a_server_is_that_of_the_folder(server: Server, packed: Path, workers: int) -> None:
    assert_same(batches(server.url, workers=workers), batches(str(packed)))
    # and a run that goes on inside an epoch takes the same images
    assert_same(batches(f"{server.url}/", workers=workers, start=2), batches(str(packed))[2:])
    assert load_data(server.url).train.fingerprint() == load_data(packed).train.fingerprint()


def test_only_parts_are_asked_for_and_many_at_a_time(server: Server) -> None:
    server.latency = 0.05
    batches(server.url)
    assert server.requests == 18 + 1  # one an image, and the index
    assert server.most_at_once > 3


def test_another_file_system(packed: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in packed.iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    assert_same(batches("memory://bucket"), batches(str(packed)))


def test_a_server_that_fails_now_and_then_is_asked_again(server: Server, packed: Path) -> None:
    server.failures = 2
    assert_same(batches(server.url), batches(str(packed)))
    assert server.failures == 0
    data = load_data(server.url).train
    asked = server.requests
    server.failures = 1000  # from now on
    with pytest.raises(DataError, match=rf"^{server.url}/train-0000\d\.tar: cannot be read \(503"):
        data.samples[0].read()  # type: ignore[union-attr]
    assert server.requests == asked + 3


def test_a_server_that_does_not_answer_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(server.url).train
    monkeypatch.setattr(stores, "_TIMEOUT", 0.1)
    server.latency = 2.0
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"^{server.url}/train-0000\d\.tar: cannot be read"):
        data.samples[0].read()  # type: ignore[union-attr]
    assert time.monotonic() - began < 1.9


def test_a_server_that_accepts_and_says_nothing_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_TIMEOUT", 0.1)
    server.hangs = True
    with pytest.raises(DataError, match=rf"^{server.url}/{INDEX}: cannot be read \(FSTimeoutError\)"):
        load_data(server.url)
    assert server.requests == 0  # the size alone was asked for, once


def test_sizes_of_shards_are_asked_within_the_timeout(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.UrlStore(server.url)
    monkeypatch.setattr(stores, "_TIMEOUT", 0.1)
    server.hangs = True
    with pytest.raises(OSError, match="FSTimeoutError"):
        list(store.sizes(["train-00000.tar"]))


@pytest.mark.parametrize(
    ("answer", "encoding", "message"),
    [
        (b"x" * 50_000_000, None, "ignores byte ranges .* or compresses them"),
        (gzip.compress(bytes(10**8)), "gzip", "ignores byte ranges .* or compresses them"),
        (b"x", None, r"cannot be read \([\d,]+ bytes at [\d,]+ differ from the index\)"),
        (b"", None, "cannot be read"),
    ],
)
def test_answers_that_are_not_the_range_are_bounded(
    server: Server, answer: bytes, encoding: str | None, message: str
) -> None:
    sample = load_data(server.url).train.samples[0]
    server.answer, server.encoding = answer, encoding
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"train-0000\d\.tar: .*{message}"):
            sample.read()
        assert tracemalloc.get_traced_memory()[1] < 20_000_000 + len(answer) // 2
    finally:
        tracemalloc.stop()


def test_an_index_without_bounds_is_not_copied(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_MAX_COPY_BYTES", 1000)
    with pytest.raises(DataError, match=rf"{INDEX}: cannot be read \([\d,]+ bytes; expected at most 1,000\)"):
        load_data(server.url)


def test_verifying_outlasts_failures_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_BLOCK", 3000)
    server.failures = 2
    assert verify(server.url, decode=True).images == {"train": 18, "val": 4}
    assert server.failures == 0
    server.failures = 10**6
    with pytest.raises(DataError, match=r"index\.safetensors: cannot be read \(503"):
        verify(server.url)


def test_what_is_not_what_was_indexed_is_no_image(
    server: Server, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in packed.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    first = load_data(packed).train.samples[0].read()
    shard = damaged / "train-00000.tar"
    shard.write_bytes(shard.read_bytes().replace(first, first[:-1] + b"?"))
    server.folder = damaged
    for where in (server.url, str(damaged)):
        with pytest.raises(DataError, match=r"train-00000.tar: .*[\d,]+ bytes .* differ from the index"):
            load_data(where).train.samples[0].read()
        with pytest.raises(DataError, match=r"the contents of .*\.png differs from the index \(1 image\)"):
            verify(where, decode=True)


def test_a_server_without_parts_is_named(server: Server) -> None:
    server.ranges = False
    with pytest.raises(DataError, match=r"HTTP range requests"):
        load_data(server.url).train.samples[0].read()


def test_what_is_missing_is_named(server: Server, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{server.url}/x/{INDEX}: no such file; `iformer convert` writes it"):
        load_data(f"{server.url}/x")
    server.folder = tmp_path
    (tmp_path / INDEX).write_bytes((packed / INDEX).read_bytes())
    (tmp_path / "train-00000.tar").write_bytes((packed / "train-00000.tar").read_bytes())
    with pytest.raises(DataError, match=rf"train-00001.tar: No such file or directory, but {INDEX} names it"):
        load_data(server.url)
    (tmp_path / INDEX).write_bytes((packed / INDEX).read_bytes()[:100])
    with pytest.raises(DataError, match=rf"{INDEX}: damaged \(.*\); upload it again"):
        load_data(server.url)
    with socket.socket() as unused:  # bound, so that nobody else listens there, and not listening either
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/data"
        with pytest.raises(DataError, match=rf"^{url}/{INDEX}: cannot be read \("):
            load_data(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing://x", r"^nothing://x: Protocol not known: nothing"),
        ("github://x", r"^github://x: .*missing"),
        ("https://x/y?token=1", r"without \? and #"),
        ("simplecache::https://x/y", r"chained file systems are not supported"),
    ],
)
def test_urls_that_cannot_be_read(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(url)


def test_info_describes_and_verifies_a_url(
    server: Server, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert describe(server.url).images == describe(packed).images
    assert main(["info", server.url, "--verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {**found, "folder": server.url, "images": {"train": 18, "val": 4}, "verified": True}
    assert found["bytes"] == sum(path.stat().st_size for path in packed.glob("*.tar"))
