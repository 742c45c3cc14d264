"""Unlabelled images, decoded ahead of the network that looks at them."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from iformer.data.images import has_image_extension, read_image
from iformer.data.sources.folders import available_cores, files_below, natural_key
from iformer.data.transforms import Transform
from iformer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Images that could be read, and what was wrong with those before or between them that could not."""

    paths: tuple[Path, ...]
    images: Tensor
    """uint8 (B, C, H, W), one for each of `paths`; shape (0,) where there is none."""
    errors: tuple[tuple[Path, str], ...] = ()
    """(path, one line that names it and says why) of each file that cannot be read."""


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that a user's list of files, folders and globs means.

    A file is taken whatever its name; from a folder, at any depth, and from a glob (`**` goes through folders)
    the files with the extension of an image, in natural order. A file that is meant twice comes once.

    Raises:
        DataError: a path does not exist, or a folder or glob holds no image.
    """
    found: dict[Path, None] = {}
    for source in sources:
        text = os.path.expanduser(os.fspath(source))
        path = Path(text)
        if path.is_dir():
            try:
                images = [file for file in files_below(path) if has_image_extension(file)]
            except OSError as error:
                raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
            if not images:
                raise DataError(f"{text}: no image in this folder")
        elif os.path.lexists(path):  # before globs, as a file's name may hold brackets
            found[path] = None
            continue
        elif glob.has_magic(text):
            names = glob.glob(text, recursive=True)
            images = [Path(name) for name in names if has_image_extension(name) and not os.path.isdir(name)]
            if not images:
                raise DataError(f"{text}: no image matches")
        else:
            raise DataError(f"{text}: no such file or folder")
        found.update(dict.fromkeys(sorted(images, key=lambda image: natural_key(str(image)))))
    if not found:
        raise DataError("no image was given; give files, folders or globs")
    return list(found)


def iterate_images(
    paths: Sequence[str | os.PathLike[str]],
    transform: Transform,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    prefetch: int = 2,
) -> Iterator[ImageBatch]:
    """Decode and transform images in threads, ahead of their use, and give them in order as batches.

    A file that cannot be read stops nothing: it is in the `errors` of the batch that would have held it.
    Each batch holds `batch_size` images that could be read, the last one the rest (or errors alone).

    Args:
        paths: image files.
        transform: of one size for all, such as `eval_transform`.
        batch_size: images of a batch.
        workers: threads; nothing: one a core, at most 8. Decoding leaves the interpreter free for others.
        prefetch: batches to be ready in advance. 0: decoding and the caller's work take turns, each with all
            cores, which is the quicker way where a network on the CPU keeps every core busy: its threads wait
            for each other, so that one which shares its core with a decoder holds up all of them.
    """

    def load(path: Path) -> Tensor | str:
        try:
            return transform(read_image(path, keep_gray=True))
        except DataError as error:
            return str(error)

    pool = ThreadPoolExecutor(workers or min(8, available_cores()), thread_name_prefix="decode")
    waiting = map(Path, paths)
    running: deque[tuple[Path, Future[Tensor | str]]] = deque()
    good: list[tuple[Path, Tensor]] = []
    errors: list[tuple[Path, str]] = []

    def refill() -> None:
        for path in islice(waiting, prefetch * batch_size + batch_size - len(running)):
            running.append((path, pool.submit(load, path)))

    try:
        refill()
        while running:
            path, future = running.popleft()
            result = future.result()
            if isinstance(result, str):
                errors.append((path, result))
            else:
                good.append((path, result))
            if len(good) == batch_size:
                if prefetch > 0:
                    refill()
                yield _batch(good, errors)
                good, errors = [], []
            if not running:
                refill()
        if good or errors:
            yield _batch(good, errors)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _batch(good: list[tuple[Path, Tensor]], errors: list[tuple[Path, str]]) -> ImageBatch:
    images = torch.empty(0, dtype=torch.uint8)
    if good:
        # Stacked as B, H, W, C, the transforms' own layout: plain copies, and what channels-last means.
        images = torch.stack([pixels_CHW.permute(1, 2, 0) for _, pixels_CHW in good]).permute(0, 3, 1, 2)
    return ImageBatch(paths=tuple(path for path, _ in good), images=images, errors=tuple(errors))
