"""Tables of labelled images: CSV, TSV and Parquet files with the columns `image` and `label`."""

from __future__ import annotations

import csv
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iformer.data.listing import natural_key
from iformer.data.parallel import Progress
from iformer.data.samples import DataSplits, FileSample, ImageSet
from iformer.data.sources.checks import check_images, refuse_warnings
from iformer.data.sources.duplicates import find_duplicates
from iformer.data.sources.layout import display_name, explain_unicode, parse_split, writable
from iformer.data.sources.splitting import split_groups
from iformer.dependencies import require
from iformer.errors import ConfigError, DataError, listed, one_line, printable
from iformer.files import near_paths, require_regular_file

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_COLUMNS = ("image", "label", "split", "group")
_EXPECTED = "expected the columns image and label, and optionally split (train, val) and group"
_SEPARATORS = re.compile(r"[|;]")
"""Separators between the labels of one image."""
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_MAX_BYTES = 2**30
_MAX_ROWS = 2_000_000
_MAX_CELL = 10_000
"""Largest number of characters in a cell of a CSV file."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    image: str
    label: str
    """A class or, with several labels per image, classes with separators between them."""
    split: str = ""
    group: str = ""


def is_table(spec: str | os.PathLike[str]) -> bool:
    """Return whether `spec` has the extension of a table and is not a folder."""
    return Path(spec).suffix.lower() in TABLE_SUFFIXES and not os.path.isdir(spec)


def load_table(
    file: str | os.PathLike[str],
    *,
    val_split: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
    multi_label: bool = False,
) -> DataSplits:
    """Read labelled images from a table, one row for each image.

    `image` is a path, absolute or relative to the table's folder; `label` is the name of the class. `split` says
    which images are for training (`train`) and for validation (`val`, or `test` if there is no `val`). Without
    this column, a share of each class is split off. With `group`, the images of a group, such as those of one
    patient, stay in the same split. Classes are in natural order.

    With `multi_label`, `label` has any number of classes, with `|` or `;` between them; an empty cell means an
    image without labels. In Parquet files `label` may also be a list. An image may also have several rows, whose
    labels are joined.

    The arguments are those of `iformer.data.sources.load_data`.

    Raises:
        DataError: the data cannot be trained on; the message says what is wrong and what is expected.
        ConfigError: `val_split` is not between 0 and 1.
        MissingDependencyError: the table is a Parquet file, and pyarrow is not installed.
    """
    if not 0.0 < val_split < 1.0:
        raise ConfigError(f"val_split is {val_split!r}; expected a number between 0 and 1")
    path = Path(file)
    rows = _unique(path, _rows(path, multi_label=multi_label), multi_label=multi_label)
    labels = {row.label: _labels(row.label) if multi_label else (row.label,) for row in rows}
    class_names = tuple(sorted({name for names in labels.values() for name in names}, key=natural_key))
    if not class_names:
        raise DataError(f"{path}: no row has a label; {_EXPECTED}")
    if alike := explain_unicode(class_names, remedy="write it in one form"):
        raise DataError(f"{path}: {alike}")
    indices = {name: index for index, name in enumerate(class_names)}
    if for_training and len(class_names) < 2:
        raise DataError(f"{path}: only one class ({class_names[0]}); a classifier needs at least two")
    by_split, notes = _splits(path, rows)
    paths = [_located(path, row) for name in by_split for row in by_split[name]]
    checked = check_images(paths, workers=workers, progress=progress)
    warnings = list(checked.broken.values())
    refuse_warnings(warnings, strict=strict or len(warnings) == len(paths))
    sets = {
        name: ImageSet(
            name=display_name(path, name),
            class_names=class_names,
            samples=tuple(
                _sample(place, row, [indices[name] for name in labels[row.label]], multi_label=multi_label)
                for row in by_split.get(name, ())
                if (place := _located(path, row)) not in checked.broken
            ),
            root=path.parent,
            warnings=tuple(checked.broken.values()) if name == "train" else (),
        )
        for name in ("train", "val")
    }
    split_off = "val" not in by_split
    if split_off:
        sets["train"], sets["val"] = split_groups(sets["train"], val_share=val_split, seed=seed)
    if for_training:
        _check_classes(path, sets["train"], sets["val"], split_off=split_off, multi_label=multi_label)
    unsplit = _with_commas(class_names) if multi_label else _unsplit(class_names)
    warnings += [*notes, *checked.notes, *unsplit, *_torn_groups(path, by_split)]
    warnings += find_duplicates(sets["train"], sets["val"], checked.rows, checked.hashes, checked.thumbnails)
    return DataSplits(train=sets["train"], val=sets["val"], warnings=tuple(warnings), split_off=split_off)


def _labels(cell: str) -> tuple[str, ...]:
    """Return the different labels in a cell."""
    return tuple(dict.fromkeys(name for name in map(str.strip, _SEPARATORS.split(cell)) if name))


def _sample(path: Path, row: _Row, classes: list[int], *, multi_label: bool) -> FileSample:
    labels = tuple(sorted(classes)) if multi_label else None
    return FileSample(path, label=min(classes, default=-1), labels=labels, group=row.group)


def _unsplit(class_names: Sequence[str]) -> list[str]:
    """Return a note if names of classes look like several labels each."""
    several = [name for name in class_names if len(_labels(name)) > 1]
    if not several:
        return []
    return [f"{listed(several)} look like several labels of one image; --multi-label takes them apart"]


def _with_commas(class_names: Sequence[str]) -> list[str]:
    """Return a note if names of classes are other names with commas between them."""
    known = set(class_names)
    several = [name for name in class_names if "," in name and known & set(map(str.strip, name.split(",")))]
    if not several:
        return []
    return [f"{listed(several)} look like several labels; the separator between labels is | or ;, not a comma"]


def _rows(path: Path, *, multi_label: bool) -> Iterator[_Row]:
    """Yield the rows of a table; missing columns are empty."""
    try:
        if require_regular_file(path) > _MAX_BYTES:
            raise DataError(f"{path}: has more than {_MAX_BYTES // 2**30} GiB")
        is_parquet = path.suffix.lower() == ".parquet"
        read = _read_parquet(path, multi_label=multi_label) if is_parquet else _read_text(path)
        for number, cells in enumerate(read, start=1):
            if number > _MAX_ROWS:
                raise DataError(f"{path}: has more than {_MAX_ROWS:,} rows")
            row = _Row(**{name: writable(value.strip()) for name, value in cells.items()})
            if not row.image or not (row.label or multi_label):
                missing = "image" if not row.image else "label"
                several = "; with --multi-label it is an image without any" if row.image else ""
                raise DataError(f"{path}: row {number} has no {missing}; leave the row out, or give one{several}")
            if _URL.match(row.image):
                raise DataError(
                    f"{path}: row {number} has the address {row.image}; a table names image files, so download "
                    "the images and give their paths"
                )
            yield row
    except OSError as error:
        near = near_paths(path) if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{path}: cannot be read ({error.strerror or error}){near}") from None


def _read_text(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(_MAX_CELL)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.readline()
            separator = "\t" if "\t" in start else ";" if ";" in start and "," not in start else ","
            file.seek(0)
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            columns = _columns(path, [name or "" for name in reader.fieldnames or ()])
            line = reader.line_num + 1
            for cells in reader:
                beyond = cells.pop(None, None)
                if any(map(str.strip, beyond or ())):
                    character = "a tab" if separator == "\t" else separator
                    raise DataError(
                        f"{path}: line {line} has {len(cells) + len(beyond)} cells, the header {len(cells)}; put "
                        f"a cell that holds {character} in quotes (labels of one image have | between them)"
                    )
                yield {name: cells[column] or "" for name, column in columns.items()}
                line = reader.line_num + 1
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: line {line} is not one of a table ({one_line(error)})") from None


def _read_parquet(path: Path, *, multi_label: bool) -> Iterator[dict[str, str]]:
    parquet = require("pyarrow.parquet", extra="data")
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > _MAX_ROWS:
                raise DataError(f"{path}: has {file.metadata.num_rows:,} rows; expected at most {_MAX_ROWS:,}")
            columns = _columns(path, file.schema_arrow.names)
            for name, column in columns.items():
                kind = file.schema_arrow.field(column).type
                if not _holds_text(kind, lists=multi_label and name == "label"):
                    hint = "; --multi-label reads lists" if name == "label" and _is_list(kind) else ""
                    if name == "image":
                        hint = "; a folder of Parquet files that hold the images is read as hfds/FOLDER"
                    raise DataError(f"{path}: the column {column} is {kind}; expected text or whole numbers{hint}")
            for batch in file.iter_batches(columns=list(columns.values())):
                for cells in batch.to_pylist():
                    values = {name: cells[column] for name, column in columns.items()}
                    yield {name: _text(value, path) for name, value in values.items()}
    except DataError:
        raise
    except Exception as error:  # pyarrow's errors have no common base class
        raise DataError(f"{path}: is not a Parquet file that can be read ({one_line(error)})") from None


def _is_list(kind: Any) -> bool:
    types = require("pyarrow", extra="data").types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _holds_text(kind: Any, *, lists: bool) -> bool:
    """Return whether an Arrow type holds names or numbers, or with `lists` also lists of names or numbers."""
    types = require("pyarrow", extra="data").types
    if types.is_dictionary(kind):
        return _holds_text(kind.value_type, lists=False)
    if lists and _is_list(kind):
        return _holds_text(kind.value_type, lists=False)
    plain = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_floating)
    return any(fits(kind) for fits in (*plain, types.is_boolean, types.is_null))


def _text(value: object, path: Path) -> str:
    if isinstance(value, list):
        names = [_text(name, path) for name in value]
        if torn := [name for name in names if _SEPARATORS.search(name)]:
            raise DataError(f"{path}: the label {printable(torn[0], limit=80)} has | or ; in it; rename it")
        return "|".join(names)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value)


def _columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return each known column with its name in the table, which may have capitals and spaces."""
    known = [name for name in (name.strip().lower() for name in names) if name in _COLUMNS]
    if twice := sorted(name for name in set(known) if known.count(name) > 1):
        raise DataError(f"{path}: has the column {twice[0]} {known.count(twice[0])} times; keep one")
    columns = {name.strip().lower(): name for name in names}
    if not names:
        raise DataError(f"{path}: is empty; {_EXPECTED}")
    if not {"image", "label"} <= columns.keys():
        raise DataError(f"{path}: its columns are {listed(list(map(writable, names)))}; {_EXPECTED}")
    return {name: columns[name] for name in _COLUMNS if name in columns}


def _located(path: Path, row: _Row) -> Path:
    """Return the path of a row's image, which a table from Windows writes with backslashes."""
    place = path.parent / row.image
    return place if "\\" not in row.image or os.path.exists(place) else path.parent / row.image.replace("\\", "/")


def _unique(path: Path, rows: Iterable[_Row], *, multi_label: bool) -> list[_Row]:
    """Return one row for each image; `a.png` and `./a.png` are one image. With `multi_label`, labels are joined.

    Raises:
        DataError: there is no row, or an image has two different rows.
    """
    by_image: dict[str, _Row] = {}
    for row in rows:
        image = os.path.normpath(_located(path, row))
        found = by_image.setdefault(image, row)
        if (found.split, found.group) != (row.split, row.group) or (found.label != row.label and not multi_label):
            values = [", ".join(filter(None, (one.label, one.split, one.group))) for one in (found, row)]
            raise DataError(f"{path}: {row.image} has two different rows ({' / '.join(values)}); keep one")
        if found.label != row.label:
            joined = "|".join(dict.fromkeys((*_labels(found.label), *_labels(row.label))))
            by_image[image] = replace(found, label=joined)
    if not by_image:
        raise DataError(f"{path}: has no row; {_EXPECTED}")
    return list(by_image.values())


def _torn_groups(path: Path, by_split: Mapping[str, Sequence[_Row]]) -> list[str]:
    """Return a note if the column `split` puts one group into training and validation."""
    groups = [{row.group for row in by_split.get(name, ()) if row.group} for name in ("train", "val")]
    torn = sorted(groups[0] & groups[1], key=natural_key)
    if not torn:
        return []
    return [f"{path}: images of the group {listed(torn)} are in training and in validation, by the column split"]


def _splits(path: Path, rows: list[_Row]) -> tuple[dict[str, list[_Row]], list[str]]:
    """Return the rows of "train" and "val" by the column `split`, and notes; without validation rows no "val"."""
    if not any(row.split for row in rows):
        return {"train": rows}, []
    by_name: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_name[row.split].append(row)
    parsed = {name: parse_split(name) for name in by_name}
    unknown = [name or "(empty)" for name, split in parsed.items() if split is None]
    if unknown:
        raise DataError(
            f"{path}: the column split has {listed(unknown)}; expected train, val or test in every row"
        )
    train = [row for name, split in parsed.items() if split and split.split == "train" for row in by_name[name]]
    val_names = sorted((split.rank, name) for name, split in parsed.items() if split and split.split == "val")
    if not train:
        raise DataError(f"{path}: no row has the split train")
    if not val_names:
        return {"train": train}, []
    unused = [f"{path}: the rows of the split {name} are not used" for _, name in val_names[1:]]
    return {"train": train, "val": by_name[val_names[0][1]]}, unused


def _check_classes(path: Path, train: ImageSet, val: ImageSet, *, split_off: bool, multi_label: bool) -> None:
    """Check that every class has a training image, and that there are validation images: of every class if they
    were split off and have one label each.
    """
    counts, val_counts = train.class_counts, val.class_counts
    hint = "".join(f"; {note}" for note in _unsplit(train.class_names))
    if unread := [name for name in counts if not counts[name] + val_counts[name]]:
        raise DataError(f"{path}: no image of {_classes(unread)} can be read")
    for images, what in ((train, "training"), (val, "validation")):
        empty = [name for name, count in images.class_counts.items() if count == 0]
        every = images is train or (split_off and not multi_label)
        if not empty or not (every or len(empty) == len(counts)):
            continue
        if not split_off:
            raise DataError(f"{path}: no {what} image of {_classes(empty)}{hint}")
        grouped = any(getattr(sample, "group", "") for sample in train.samples)
        reason = (
            "images of a group stay together, so a class needs at least two groups; give images of it in "
            "more groups, or a column split, or remove its rows"
            if grouped
            else "without a column split, a class needs two images, one for each split; give more images "
            "of it, or remove its rows"
        )
        raise DataError(f"{path}: no image of {_classes(empty)} is left for {what}; {reason}{hint}")


def _classes(names: Sequence[str]) -> str:
    return f"the class{'es' if len(names) > 1 else ''} {listed(names)}"
