"""Files, folders and globs, and decoding ahead of the network."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.stream import find_images, iterate_images
from iformer.data.transforms import eval_transform
from iformer.errors import DataError

TRANSFORM = eval_transform(Preprocessing(size=(32, 32)))


def write(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(path)
    return path


def test_find_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, deep = (write(tmp_path / name) for name in ("img2.png", "img10.png", "deep/er/x.JPG"))
    write(tmp_path / ".hidden.png")
    odd = tmp_path / "odd[1].bin"
    odd.write_text("taken because it was named")
    assert find_images([tmp_path]) == [deep, first, second]
    assert find_images([str(tmp_path / "*.png")]) == [first, second]
    assert find_images([tmp_path / "**" / "*"]) == [deep, first, second]
    assert find_images([second, tmp_path, first]) == [second, deep, first]
    assert find_images([odd]) == [odd]
    monkeypatch.chdir(tmp_path)
    assert find_images(["img*.png"]) == [Path("img2.png"), Path("img10.png")]


def test_nothing_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for source, reason in (
        (tmp_path, "no image in this folder"),
        (tmp_path / "*.jpg", "no image matches"),
        (tmp_path / "missing.jpg", "no such file or folder"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            find_images([source])
        assert str(source) in str(caught.value)
    with pytest.raises(DataError, match="no image was given"):
        find_images([])


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_in_order_and_exact(tmp_path: Path, workers: int) -> None:
    paths = [write(tmp_path / f"{i}.png", i) for i in range(11)]
    batches = list(iterate_images(paths, TRANSFORM, batch_size=4, workers=workers))
    assert [len(batch.paths) for batch in batches] == [4, 4, 3]
    assert [path for batch in batches for path in batch.paths] == paths
    pixels = torch.cat([batch.images for batch in batches])
    assert torch.equal(pixels, torch.stack([TRANSFORM(read_image(path)) for path in paths]))
    assert all(batch.errors == () for batch in batches)


def test_errors_stop_nothing(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.png", i) for i in range(6)]
    paths[1].write_bytes(b"")
    paths[5].write_text("text")
    missing = tmp_path / "missing.png"
    batches = list(iterate_images([*paths, missing], TRANSFORM, batch_size=2))
    assert [path for batch in batches for path in batch.paths] == [paths[0], *paths[2:5]]
    assert all(len(batch.paths) == len(batch.images) for batch in batches)
    errors = [error for batch in batches for error in batch.errors]
    assert [path for path, _ in errors] == [paths[1], paths[5], missing]
    assert all(str(path) in text and "\n" not in text for path, text in errors)


def test_only_errors(tmp_path: Path) -> None:
    batches = list(iterate_images([tmp_path / "a.png"] * 50, TRANSFORM, batch_size=4))
    assert sum(len(batch.errors) for batch in batches) == 50
    assert sum(len(batch.images) for batch in batches) == 0
    assert list(iterate_images([], TRANSFORM)) == []


def test_it_works_ahead_but_not_without_bound(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    seen: list[str] = []
    lock = threading.Lock()

    def counting(image: Image.Image) -> torch.Tensor:
        with lock:
            seen.append(image.mode)
        return TRANSFORM(image)

    stream = iterate_images([path] * 500, counting, batch_size=4, prefetch=2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert 4 <= len(seen) <= 4 + 3 * 4


def test_without_prefetching_nothing_is_decoded_in_between(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    seen: list[str] = []

    def counting(image: Image.Image) -> torch.Tensor:
        seen.append(image.mode)
        return TRANSFORM(image)

    for number, batch in enumerate(iterate_images([path] * 10, counting, batch_size=4, prefetch=0), start=1):
        assert len(seen) == min(10, 4 * number)
        assert len(batch.paths) == min(4, 10 - 4 * (number - 1))
    assert number == 3


def test_other_errors_are_not_swallowed(tmp_path: Path) -> None:
    def broken(image: Image.Image) -> torch.Tensor:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        list(iterate_images([write(tmp_path / "a.png")], broken))


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, who may read everything.
    def scandir(path: os.PathLike[str]) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="Permission denied"):
        find_images([tmp_path])


def test_videos_are_found_where_they_are_wanted(tmp_path: Path) -> None:
    names = ("one/clip.mp4", "one/1.png", "two/clip.MOV", "two/notes.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path], videos=True)]
    assert found == ["one/1.png", "one/clip.mp4", "two/clip.MOV"]
    assert len(find_images([f"{tmp_path}/*/clip.*"], videos=True)) == 2
    assert find_images([tmp_path]) == [tmp_path / "one/1.png"]
    with pytest.raises(DataError, match="no image in this folder"):
        find_images([tmp_path / "two"])
