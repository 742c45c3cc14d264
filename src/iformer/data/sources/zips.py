"""Zip archives of images, read in place: a folder for each class, or `train/` and `val/` made of such folders."""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from iformer.data.images import has_image_extension
from iformer.data.listing import is_hidden, natural_key
from iformer.data.parallel import Progress
from iformer.data.samples import DataSplits, ImageSet, Sample
from iformer.data.sources.checks import check_images, refuse_warnings
from iformer.data.sources.layout import display_name, explain_unicode, parse_split, writable
from iformer.data.sources.splitting import split_groups
from iformer.errors import ConfigError, DataError, counted, listed, one_line
from iformer.files import require_regular_file

_LAYOUT = "expected one folder per class in it (cat/1.jpg, dog/2.jpg), or train/ and val/ made of such folders"
_MAX_MEMBER_BYTES = 2**28
"""Largest image file that is unpacked, in bytes; each thread may hold one in memory."""


@dataclass(frozen=True, slots=True)
class ZipSample(Sample):
    """An image in a zip archive."""

    archive: Path
    member: str
    length: int
    """Size of the unpacked image file in bytes."""
    crc32: int

    def __str__(self) -> str:
        return f"{self.archive}/{writable(self.member)}"

    @property
    def name(self) -> str:
        return self.member.rpartition("/")[2]

    def relative_path(self, root: Path) -> str:
        return self.member

    def read(self) -> bytes:
        try:
            status = self.archive.stat()
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            archive = _opened(self.archive, os.getpid(), identity)
            if self.crc32 != archive.getinfo(self.member).CRC:
                raise DataError(f"{self}: has changed since the data set was opened")
            return archive.read(self.member)
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
            NotImplementedError,
            KeyError,
        ) as error:
            raise DataError(f"{self}: cannot be read ({one_line(error)})") from None

    def size(self) -> int:
        return self.length


@functools.lru_cache(maxsize=8)
def _opened(archive: Path, process: int, identity: tuple[int, ...]) -> zipfile.ZipFile:
    """Return an archive opened by this process: forked processes would share the position in its file.

    Args:
        identity: numbers that change when the file is replaced, so that the new file is opened.
    """
    return zipfile.ZipFile(archive)


def is_zip(spec: str | os.PathLike[str]) -> bool:
    """Return whether `spec` has the extension of a zip archive and is not a folder."""
    return Path(spec).suffix.lower() == ".zip" and not os.path.isdir(spec)


def load_zip(
    file: str | os.PathLike[str],
    *,
    val_split: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
) -> DataSplits:
    """Read images of one folder per class from a zip archive, without unpacking it to disk.

    The archive holds `train/` and `val/` (also valid, test …) or the class folders themselves; folders around them
    are skipped. Without a validation split, a share of each class is split off.

    The arguments are those of `iformer.data.sources.load_data`.

    Raises:
        DataError: the data cannot be trained on; the message says what is wrong and what is expected.
        ConfigError: `val_split` is not between 0 and 1.
    """
    if not 0.0 < val_split < 1.0:
        raise ConfigError(f"val_split is {val_split!r}; expected a number between 0 and 1")
    path = Path(file)
    by_split, notes = _members(path)
    names = {split: {name for name, _ in found} for split, found in by_split.items()}
    class_names = tuple(sorted(set().union(*names.values()), key=natural_key))
    if alike := explain_unicode(class_names):
        raise DataError(f"{path}: {alike}")
    if for_training:
        _check_classes(path, names)
    samples = {
        split: [
            ZipSample(path, info.filename, info.file_size, info.CRC, label=class_names.index(name))
            for name, info in sorted(found, key=lambda item: (natural_key(item[0]), natural_key(item[1].filename)))
        ]
        for split, found in by_split.items()
    }
    checked = check_images(
        [sample for found in samples.values() for sample in found], workers=workers, progress=progress
    )
    warnings = list(checked.broken.values())
    refuse_warnings(warnings, strict=strict or len(warnings) == len(checked.rows))
    sets = {
        split: ImageSet(
            name=display_name(path, split),
            class_names=class_names,
            samples=tuple(sample for sample in samples.get(split, ()) if sample not in checked.broken),
            root=path,
        )
        for split in ("train", "val")
    }
    split_off = "val" not in by_split
    if split_off:
        sets["train"], sets["val"] = split_groups(sets["train"], val_share=val_split, seed=seed)
    if for_training:
        for split, images in sets.items():
            empty = [name for name, count in images.class_counts.items() if not count]
            if empty:
                raise DataError(f"{path}: no image of {listed(empty)} that can be read for the split {split}")
    warnings += [*notes, *checked.notes, *_in_both(sets["train"], sets["val"])]
    return DataSplits(train=sets["train"], val=sets["val"], warnings=tuple(warnings), split_off=split_off)


_Member = tuple[str, zipfile.ZipInfo]
"""The class of an image, and its entry in the archive."""


def _members(path: Path) -> tuple[dict[str, list[_Member]], list[str]]:
    """Return the images of each split with their classes, and notes about files that are left out."""
    try:
        require_regular_file(path)
        with zipfile.ZipFile(path) as archive:
            entries = [info for info in archive.infolist() if not info.is_dir()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a zip archive that can be read ({one_line(error)})") from None
    parts = {info.filename: _parts(info.filename) for info in entries}
    if len(parts) < len(entries):
        twice = [name for name, count in Counter(info.filename for info in entries).items() if count > 1]
        raise DataError(f"{path}: has two entries named {listed(list(map(writable, twice)))}; pack it again")
    visible = [info for info in entries if not any(map(is_hidden, parts[info.filename]))]
    images = [info for info in visible if has_image_extension(info.filename)]
    too_large = [info.filename for info in images if info.file_size > _MAX_MEMBER_BYTES]
    if too_large:
        raise DataError(
            f"{path}: {listed(list(map(writable, too_large)))} unpack to more than "
            f"{_MAX_MEMBER_BYTES // 2**20} MiB; leave them out"
        )
    if not images:
        raise DataError(f"{path}: holds no image; {_LAYOUT}")
    others = len(visible) - len(images)
    notes = [f"{path}: {counted(others, 'file')} without an image's extension left out"] if others else []
    parts = {info.filename: parts[info.filename] for info in images}
    depth = 0  # of the class folders, or of train/ and val/
    while len({names[depth] for names in parts.values()}) == 1 and min(map(len, parts.values())) > depth + 2:
        depth += 1
    by_first: dict[str, list[zipfile.ZipInfo]] = defaultdict(list)
    for info in images:
        names = parts[info.filename]
        if len(names) < depth + 2:
            notes.append(f"{path}/{writable(info.filename)}: is outside the class folders")
        else:
            by_first[names[depth]].append(info)
    if not by_first:
        raise DataError(f"{path}: its images are in no folders; {_LAYOUT}")
    deeper = {name: [len(parts[info.filename]) > depth + 2 for info in found] for name, found in by_first.items()}
    splits = {name: split for name in by_first if (split := parse_split(name)) is not None and any(deeper[name])}
    # A class may be called "train", like "car" and "bus": a "train" without a "val" must hold only folders.
    both = {split.split for split in splits.values()} == {"train", "val"}
    if not splits or not (both or (len(splits) == len(by_first) and all(map(all, deeper.values())))):
        return {"train": [(writable(name), info) for name, found in by_first.items() for info in found]}, notes
    notes += [f"{path}: {writable(name)}/ is not used" for name in by_first if name not in splits]
    by_split: dict[str, list[_Member]] = {"train": []}
    for name in sorted(splits, key=lambda name: (splits[name].split, splits[name].rank)):
        if by_split.get(splits[name].split):
            notes.append(f"{path}: {writable(name)}/ is not used")
        else:
            found = [info for info, inside in zip(by_first[name], deeper[name], strict=True) if inside]
            loose = [info for info, inside in zip(by_first[name], deeper[name], strict=True) if not inside]
            notes += [f"{path}/{writable(info.filename)}: is outside the class folders" for info in loose]
            by_split[splits[name].split] = [(writable(parts[info.filename][depth + 1]), info) for info in found]
    return by_split, notes


def _parts(name: str) -> list[str]:
    """Return the parts of an entry's path; some programs of Windows write backslashes."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _check_classes(path: Path, names: dict[str, set[str]]) -> None:
    if not names["train"]:
        raise DataError(f"{path}: has no train/; {_LAYOUT}")
    if len(names["train"]) < 2:
        raise DataError(
            f"{path}: only one class ({listed(sorted(names['train']))}); a classifier needs at least two"
        )
    different = names["train"] ^ names.get("val", names["train"])
    if different:
        raise DataError(f"{path}: only one of train/ and val/ has the classes {listed(sorted(different))}")


def _in_both(train: ImageSet, val: ImageSet) -> list[str]:
    """Return a note about validation images that are the same files as training images."""

    def key(sample: Sample) -> tuple[int, int]:
        assert isinstance(sample, ZipSample)
        return sample.length, sample.crc32

    known = {key(sample): sample for sample in train.samples}
    twins = [f"{sample} = {known[key(sample)]}" for sample in val.samples if key(sample) in known]
    if not twins:
        return []
    return [
        f"{counted(len(twins), 'validation image')} also among the training images, so the accuracy on them means "
        f"little: {listed(twins, limit=5)}"
    ]
