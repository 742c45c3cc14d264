"""Unlabelled images for prediction, decoded ahead of the network."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from iformer.data.images import has_image_extension, read_image
from iformer.data.listing import files_below, is_hidden, is_output, natural_order
from iformer.data.parallel import available_cores
from iformer.data.transforms import Transform
from iformer.data.video.reader import has_video_extension
from iformer.errors import DataError, listed
from iformer.files import near_paths


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """A batch of readable images, and the errors of the unreadable files among them."""

    paths: tuple[Path, ...]
    images: Tensor
    """uint8 (B, C, H, W), one image per path; shape (0,) if there is no path."""
    errors: tuple[tuple[Path, str], ...] = ()
    """Path and error message, one line `path: reason`, of each file that cannot be read."""


def find_images(
    sources: Sequence[str | os.PathLike[str]], *, videos: bool = False, left_out: list[Path] | None = None
) -> list[Path]:
    """Expand a list of files, folders and globs to image files, and to video files if `videos` is set.

    Files are accepted with any name. Folders, searched at any depth, and globs (`**` matches folders) give the
    image (and video) files by extension, in natural order. Each file is returned once.
    The other files that they name or contain are added to `left_out`.

    Raises:
        DataError: no path is given, a path does not exist or cannot be read, or a folder or glob has no image.
    """

    def accepts(path: str | Path) -> bool:
        return has_image_extension(path) or (videos and has_video_extension(path))

    kind = "image or video" if videos else "image"
    found: dict[Path, None] = {}
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            raise DataError(
                f"{type(source).__name__} is not the name of an image; give files, folders or patterns"
            )
        text = os.path.expanduser(os.fspath(source))
        path = Path(text)
        if os.path.isdir(path):  # unlike Path.is_dir, for any name: a name may be too long for a file
            try:
                candidates = list(files_below(path))
            except OSError as error:
                raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
            images = list(filter(accepts, candidates))
            if not images:
                raise DataError(f"{text}: no {kind} in this folder{_others(candidates)}")
        elif os.path.lexists(path):  # before globs, as a file's name may hold brackets
            found[path] = None
            continue
        elif glob.has_magic(text):
            candidates = [Path(name) for name in glob.glob(text, recursive=True) if not os.path.isdir(name)]
            images = list(filter(accepts, candidates))
            if not images:
                raise DataError(f"{text}: no {kind} matches{_others(candidates)}")
        else:
            raise DataError(f"{text}: no such file or folder{near_paths(path)}")
        found.update(dict.fromkeys(natural_order(images)))
        if left_out is not None and len(images) < len(candidates):
            others = set(candidates).difference(images)
            left_out += natural_order(p for p in others if not (is_hidden(p.name) or is_output(p.parent)))
    if not found:
        raise DataError("no image was given; give files, folders or globs")
    return list(found)


def _others(files: Sequence[Path]) -> str:
    names = [path.name for path in natural_order(files) if not is_hidden(path.name)]
    return f"; there are other files: {listed(names, limit=3)}" if names else ""


def iterate_images(
    paths: Sequence[str | os.PathLike[str]],
    transform: Transform,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    prefetch: int = 2,
    read: Callable[[Path], Image.Image] = read_image,
) -> Iterator[ImageBatch]:
    """Decode and transform images in threads, ahead of their use, and yield them in order as batches.

    A file that cannot be read is reported in the `errors` of the batch that would have contained it. Each batch
    has `batch_size` readable images. The last batch may have fewer, or only errors.

    Args:
        paths: image files.
        transform: must return one size for all images, such as `eval_transform`.
        batch_size: images per batch.
        workers: threads; None means one per core, at most 8.
        prefetch: batches to prepare in advance. With 0, images are decoded only while the caller waits
            for a batch. Use 0 if a network runs on all cores of the CPU: decoding at the same time slows it down.
        read: function that decodes a file, such as `iformer.data.images.read_input` for a network's preprocessing.
    """

    def load(path: Path) -> Tensor | str:
        try:
            return transform(read(path))
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
        # The transforms' memory layout is H, W, C; stacking it gives channels-last without a conversion.
        images = torch.stack([pixels_CHW.permute(1, 2, 0) for _, pixels_CHW in good]).permute(0, 3, 1, 2)
    return ImageBatch(paths=tuple(path for path, _ in good), images=images, errors=tuple(errors))
