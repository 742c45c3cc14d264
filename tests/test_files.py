"""Files are written completely or not at all."""

from __future__ import annotations

import itertools
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from iformer.errors import OutputError
from iformer.files import json_text, near_paths, output_folder, replacing, write_bytes, write_text
from iformer.models.weights.safetensors_file import open_safetensors


def test_replacing_shows_nothing_until_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "new"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("none/file", "does not exist"), ("plain/file", "is not a folder"), (".", "not a plain file")],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "plain").write_text("old")
    with pytest.raises(OutputError, match=rf"cannot write .*{reason}"):
        write_text(tmp_path / place, "new")
    assert (tmp_path / "plain").read_text() == "old"
    assert [left.name for left in tmp_path.iterdir()] == ["plain"]


def test_json_has_no_numbers_that_are_not_finite() -> None:
    value = {"a": float("nan"), "b": [1.5, float("-inf"), ("x", {"c": np.float32("nan")})], "é": 1}
    text = json_text(value, default=lambda number: number.item(), ascii_only=False)
    assert json.loads(text) == {"a": None, "b": [1.5, None, ["x", {"c": None}]], "é": 1}
    assert "é" in text
    assert json_text([0.1, True, None]) == "[0.1, true, null]"


def test_a_file_that_is_replaced_while_it_is_opened_is_read_whole(tmp_path: Path) -> None:
    """`predict` beside a training that writes its checkpoint: header and tensors are of one of the two files."""
    path, stop = tmp_path / "last.safetensors", threading.Event()
    contents = [
        safetensors.torch.save({"x": torch.full((64, size), size)}, {"size": str(size)}) for size in (7, 9)
    ]
    contents.append(safetensors.torch.save({"x": torch.full((64, 7), 8)}, {"size": "8"}))  # as large as the first
    write_bytes(path, contents[0])

    def write() -> None:
        for content in itertools.cycle(contents):
            write_bytes(path, content)
            if stop.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen: set[int] = set()
        for attempt in range(100_000):  # a busy disk writes less often
            if attempt >= 200 and len(seen) > 1:
                break
            with open_safetensors(path) as file:
                size = int(file.metadata()["size"])
                assert file.get_tensor("x").unique().tolist() == [size]
                seen.add(size)
    finally:
        stop.set()
        writer.join()
    assert len(seen) > 1


def test_weights_in_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    write_bytes(folder / "net.safetensors", safetensors.torch.save({"a": torch.arange(3)}))
    with open_safetensors(folder / "net.safetensors") as file:
        assert file.get_tensor("a").tolist() == [0, 1, 2]


def test_a_missing_path_gets_near_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "shapes.csv").touch()
    assert near_paths("shape.csv") == "; did you mean shapes.csv?"
    assert near_paths("run/mine") == "; did you mean runs/mine?"
    assert near_paths("run/other") == "; did you mean runs?"
    assert near_paths("runs/min") == "; did you mean runs/mine?"
    assert near_paths("photographs") == f"; looked for {tmp_path / 'photographs'}"
    assert near_paths(tmp_path / "photographs") == ""
    assert near_paths("a" * 300) == "; the name is too long for a file"


def test_a_folder_for_results_that_is_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match=r"out: it is a link to .*gone, which does not exist"):
        output_folder(tmp_path / "out")
