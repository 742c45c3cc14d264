"""Files that never end, links that lead to themselves, servers that speak no HTTP."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import socketserver
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from iformer import dependencies, load
from iformer.api.inputs import collect_inputs
from iformer.cli.main import main
from iformer.data.listing import files_below
from iformer.data.sources import load_data
from iformer.data.sources.shards.stores import UrlStore
from iformer.dependencies import require
from iformer.errors import DataError, MissingDependencyError, UserError, WeightsError
from iformer.models.weights.convert import read_class_names
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.pictures import Bar, Card, draw_sheet
from iformer.training.records.run_folder import RunFolder
from iformer.training.schedule import RunLength


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    return path


def test_a_pipe_is_no_weight_file(pipe: Path) -> None:
    with pytest.raises(WeightsError, match="not a regular file"):
        load(pipe)


def test_class_names_are_read_from_small_files_only(pipe: Path, tmp_path: Path) -> None:
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(WeightsError, match="not a regular file"):
            read_class_names(path)
    large = tmp_path / "names.txt"
    with large.open("wb") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(WeightsError, match="expected a text file with one class name a line"):
        read_class_names(large)


def tar_of(folder: Path, *headers: bytes) -> Path:
    folder.mkdir()
    (folder / "train.tar").write_bytes(b"".join(headers) + bytes(1024))
    return folder


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = abs(size), kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        block[124:136] = b"\xff\xff\xff\xff" + struct.pack(">q", size)
        block[148:156] = b" " * 8
        block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.timeout(60)
def test_a_shard_with_a_negative_size_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.tar: damaged shard"):
        load_data(tar_of(tmp_path / "data", header("readme.txt", -512)))


def test_a_shard_of_nothing_but_long_names_is_damaged(tmp_path: Path) -> None:
    long_name = header("././@LongLink", 2, tarfile.GNUTYPE_LONGNAME) + b"a\0".ljust(512, b"\0")
    with pytest.raises(DataError, match=r"train\.tar: damaged shard"):
        load_data(tar_of(tmp_path / "data", long_name * 3000))


def test_a_shard_without_its_end_is_damaged(tmp_path: Path) -> None:
    folder = tar_of(tmp_path / "data", header("a.cls", 1), b"0".ljust(512, b"\0"))
    cut = (folder / "train.tar").read_bytes()[:-1024]
    (folder / "train.tar").write_bytes(cut)
    with pytest.raises(DataError, match=r"train\.tar: damaged shard \(its end is missing"):
        load_data(folder)


def test_pipes_among_shards_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "train.tar")
    with pytest.raises(DataError):
        load_data(tmp_path / "data")


def test_a_link_to_itself_is_one_bad_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.png").write_bytes(b"x")
    assert sorted(path.name for path in files_below(tmp_path)) == ["a.png", "loop"]


@pytest.fixture
def liar() -> Iterator[str]:
    """The address of a server that answers with its request's path and nothing of HTTP."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = self.rfile.readline().split()[1]
            short = b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nab"
            self.wfile.write(short if path == b"/short" else b"no http\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_urls_that_cannot_be_fetched_do_not_stop_the_others(liar: str, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.new("RGB", (8, 8)).save(good)
    bad = [f"{liar}/line", f"{liar}/short", "http://127.0.0.1:99999/a", f"{liar}/line with a space é"]
    inputs = list(collect_inputs([*bad, str(good)], lambda: tmp_path))
    assert [bool(item.error) for item in inputs] == [True, True, True, True, False]
    assert all(str(item.error).startswith("cannot be fetched (") for item in inputs[:4])


@pytest.mark.parametrize(("epoch", "step"), [(99, 0), (1, 10**6), (-1, 0), (3, 1)])
def test_a_position_that_the_run_does_not_reach_is_refused(epoch: int, step: int) -> None:
    recipe = ClassificationRecipe(epochs=3, lr=1e-3)
    length = RunLength(recipe, steps_per_epoch=4)
    with pytest.raises(UserError, match="is damaged or of another run"):
        length.check_position(epoch, step, source=Path("resume.safetensors"))
    for position in ((0, 0), (2, 4), (3, 0)):
        length.check_position(*position, source=Path("resume.safetensors"))


def test_overwriting_a_run_leaves_the_files_of_others(tmp_path: Path) -> None:
    mine = ["mine.png", ".mine.part", "notes.txt"]
    for name in (*mine, "config.yaml", "curves.png", "log.jsonl", f".{'a' * 16}.part"):
        (tmp_path / name).write_bytes(b"x")
    RunFolder(tmp_path).write_config({"recipe": {"epochs": 1}})
    (tmp_path / ".folder.part").mkdir()
    RunFolder(tmp_path).prepare(resume=False, overwrite=True)
    for file in RunFolder(tmp_path).run_files():
        file.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*mine, "config.yaml", ".folder.part"])


def test_a_url_with_an_ipv6_address_is_no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    files, root = UrlStore("http://[::1]:8000/shards/")._files()
    assert (files.protocol, root) == (("http", "https"), "http://[::1]:8000/shards")
    for url in ("simplecache::http://a/b", "http://[::1]/a::b"):
        with pytest.raises(DataError, match="chained file systems are not supported"):
            UrlStore(url)


def test_the_extras_are_named_only_where_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("dir://", "nothing://a/b", "ftp://127.0.0.1:1/x"):
        with pytest.raises(DataError, match=r"://.*: .*; expected the URL of a folder, such as") as caught:
            UrlStore(url)._files()
        assert "needs" not in str(caught.value)

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(DataError, match=r"Install s3fs to access S3 \(https:// needs 'iformer\[data\]'"):
        UrlStore("s3://bucket/shards")._files()


def test_long_names_are_shown_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "a" * 5000]) == 1
    assert main(["info", f"hf-hub:a/b@{'r' * 5000}"]) == 1
    long, hub = capsys.readouterr().err.splitlines()
    assert long.startswith("error: unknown model 'aaa")
    assert "is not a name on the hub" in hub
    assert max(len(long), len(hub)) < 500


def test_a_share_that_is_no_number_is_drawn_as_an_empty_bar() -> None:
    bar = Bar(label="b", share=float("nan"), colour="#123456")
    card = Card(picture=Image.new("RGB", (200, 200)), caption="a", bars=(bar,))
    sheet = draw_sheet([card], columns=1, title="x", subtitle="y")
    assert (0x12, 0x34, 0x56) not in {colour for _, colour in sheet.getcolors(2**24) or []}


@pytest.fixture
def no_known_versions() -> Iterator[None]:
    dependencies._wrong_version.cache_clear()
    yield
    dependencies._wrong_version.cache_clear()


@pytest.mark.usefixtures("no_known_versions")
def test_an_old_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"iformer": "1", "av": "8.0.3"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(
        MissingDependencyError,
        match=r"av 8\.0\.3 is installed; expected >=13; run: pip install 'iformer\[video\]'",
    ):
        require("av", extra="video")


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingDependencyError, match=r"a_folder is not installed \(.*a_folder is a folder of its name\)"
    ):
        require("a_folder", extra="video")


def test_a_package_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, line in (
        ("broken_value", "raise ValueError(\"Key backend: 'abc' is not valid\\nfor it\")"),
        ("broken_library", "raise ImportError('libGL.so.1: cannot open shared object file')"),
        ("broken_need", "import nothing_of_that_name"),
    ):
        (tmp_path / f"{name}.py").write_text(line)
        remedy = "run: pip install" if name == "broken_need" else "install it again"
        with pytest.raises(MissingDependencyError, match=rf"^{name} cannot be imported \(.*\); {remedy}"):
            require(name, extra="train")
    monkeypatch.setattr("iformer.cli.doctor._machine", lambda: importlib.import_module("broken_value"))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("error: broken_value cannot be imported (Key backend: 'abc' is not")
    with pytest.raises(MissingDependencyError, match="nowhere is not installed; run: pip install 'iformer"):
        require("nowhere.at_all", extra="train")
