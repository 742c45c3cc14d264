"""Tar shards: packing, verification, random access, and errors for damaged ones."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save as serialize

from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.loader import build_loader
from iformer.data.samples import DataSplits
from iformer.data.sources import load_data
from iformer.data.sources.shards import packing
from iformer.data.sources.shards.index import INDEX, INFO, UNFINISHED
from iformer.data.sources.shards.packing import pack, verify
from iformer.data.sources.shards.reader import load_shards
from iformer.data.transforms import eval_transform
from iformer.errors import DataError, UserError
from iformer.tasks.classification.dataset import ImageDataset

CLASSES = ("ant", "bee", "cat")


def make_folder(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 2)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"some.{number} ü.JPEG", quality=90)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataSplits:
    return load_data(make_folder(tmp_path_factory.mktemp("folder")), workers=1)


@pytest.fixture(scope="module")
def packed(folder: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    done = pack(folder, out, shard_bytes=6000)
    assert done.images == {"train": 21, "val": 6}
    assert done.shards["train"] > 2
    return out


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def test_shards_hold_the_folder_s_files_byte_for_byte(folder: DataSplits, packed: Path) -> None:
    found = load_data(packed)
    for split in ("train", "val"):
        before, after = getattr(folder, split), getattr(found, split)
        assert after.class_names == CLASSES
        assert after.class_counts == before.class_counts
        contents = [
            Counter((sample.read(), sample.label) for sample in image_set.samples) for image_set in (before, after)
        ]
        assert contents[0] == contents[1]
    labels = [sample.label for sample in found.train.samples]
    assert labels == found.train.labels.tolist()
    assert labels != sorted(labels)  # shuffled, for readers that stream


def test_an_image_in_a_shard_has_a_name_for_people(packed: Path) -> None:
    data = load_data(packed).train
    name = data.relative_path(data.samples[0])
    assert name.startswith("train-00000.tar/00000000-some_")
    assert str(data.samples[0]) == os.path.join(packed, *name.split("/"))
    with pytest.raises(DataError, match="is stored inside another file"):
        _ = data.files


def test_loader_gives_each_image_once_whatever_the_ranks_and_workers(packed: Path) -> None:
    data = load_data(packed).train
    dataset = ImageDataset(data, eval_transform(Preprocessing(size=(32, 32))))
    seen: list[int] = []
    for rank in range(2):
        loader = build_loader(dataset, batch_size=4, train=False, workers=2, rank=rank, world_size=2)
        with loader:
            for batch in loader.epoch():
                seen += batch["indices"].tolist()
                assert batch["labels"].tolist() == data.labels[batch["indices"].numpy()].tolist()
    assert sorted(seen) == list(range(21))


def test_other_readers_read_them_too(packed: Path) -> None:
    pytest.importorskip("webdataset")
    from timm.data.readers.reader_factory import create_reader

    reader = create_reader("wds/", root=str(packed), split="validation")
    found = Counter((np.asarray(image).tobytes(), label) for image, label in reader)
    data = load_data(packed).val
    ours = Counter((np.asarray(read_image(sample)).tobytes(), sample.label) for sample in data.samples)
    assert found == ours


def test_shards_of_others_are_indexed_on_first_use(packed: Path, shards: Path) -> None:
    (shards / INDEX).unlink()
    (shards / INFO).unlink()
    numbered = load_data(shards)
    assert numbered.train.class_names == ("0", "1", "2")
    assert (shards / INDEX).is_file()
    (shards / INDEX).unlink()
    (shards / "classes.txt").write_text("\n".join(CLASSES))
    assert load_data(shards).train.fingerprint() == load_data(packed).train.fingerprint()


def test_verify_finds_what_changed(shards: Path) -> None:
    assert verify(shards, decode=True).images == {"train": 21, "val": 6}
    sample = load_data(shards).train.samples[5]
    where = sample.samples.columns  # type: ignore[attr-defined]
    path = shards / where.shards[where.shard[5]]
    contents = bytearray(path.read_bytes())
    contents[int(where.offset[5]) + 100] ^= 1
    path.write_bytes(contents)
    with pytest.raises(
        DataError, match=r"the contents of 00000005-some_.*\.jpg differs from the index \(1 image\)"
    ):
        verify(shards)


def test_shards_that_came_after_the_index_are_named(shards: Path) -> None:
    first = sorted(shards.glob("train-*.tar"))[0]
    (shards / "._train-00000.tar").write_bytes(b"of macOS")
    load_shards(shards)
    (shards / "train-00099.tar").write_bytes(first.read_bytes())
    with pytest.raises(
        DataError, match=rf"{INDEX} does not name train-00099.tar; if the shards have changed, remove"
    ):
        load_shards(shards)


def test_truncated_and_missing_shards_are_named_before_reading(shards: Path) -> None:
    last = sorted(shards.glob("train-*.tar"))[-1]
    contents = last.read_bytes()
    last.write_bytes(contents[:1000])
    with pytest.raises(DataError, match=rf"{last.name}: 1,000 bytes, but its index needs .*copy it again"):
        load_shards(shards)
    last.unlink()
    with pytest.raises(DataError, match=rf"{last.name}: No such file or directory, but {INDEX} names it"):
        load_shards(shards)


@pytest.mark.parametrize("spoiled", [b"", b"x" * 300])
def test_damaged_index_says_what_to_do(shards: Path, spoiled: bytes) -> None:
    (shards / INDEX).write_bytes(spoiled)
    with pytest.raises(DataError, match=r"index\.safetensors: damaged .*remove it"):
        load_shards(shards)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x"}, r"train\.tar: a has no label \(\.cls\)"),
        ({"a.cls": b"1"}, r"train\.tar: a has no image"),
        ({"a.jpg": b"x", "a.cls": b"one"}, r"train\.tar/a\.cls: the label is b.one.; expected a class index"),
    ],
)
def test_shard_without_pairs(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


def test_folders_of_shards_that_are_no_data_set(shards: Path, tmp_path: Path) -> None:
    (shards / INDEX).unlink()
    for path in shards.glob("val-*.tar"):
        path.unlink()
    with pytest.raises(DataError, match="no shard of the val split"):
        load_data(shards)
    (tmp_path / "some.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match="expected train or val in its name"):
        load_data(tmp_path)
    (tmp_path / "some.tar").rename(tmp_path / "train.tar")
    with pytest.raises(DataError, match=r"train\.tar: damaged shard"):
        load_data(tmp_path)


def test_packing_leaves_nothing_behind_where_it_fails(
    folder: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            pack(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(packing.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            pack(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        pack(folder, tmp_path / "out")
    with monkeypatch.context() as patch:  # two processes, of which the other one has just begun
        patch.setattr(packing, "any", lambda files: False, raising=False)
        (tmp_path / "out" / UNFINISHED).touch()
        with pytest.raises(UserError, match="not an empty folder"):
            pack(folder, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [UNFINISHED, "mine.txt"]
    with monkeypatch.context() as patch:
        patch.setattr(packing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 100))
        with pytest.raises(UserError, match=r"the shards need about [\d,]+ bytes, 100 bytes are free there"):
            pack(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", ["emptied", "truncated", "replaced", "removed"])
def test_images_that_change_after_the_data_was_read_are_not_packed(change: str, tmp_path: Path) -> None:
    data = load_data(make_folder(tmp_path / "folder"), workers=1)
    path = tmp_path / "folder" / "val" / "bee" / "some.1 ü.JPEG"
    contents = {"emptied": b"", "truncated": path.read_bytes()[:-200], "replaced": b"x" * path.stat().st_size}
    path.unlink() if change == "removed" else path.write_bytes(contents[change])
    with pytest.raises((DataError, OSError)) as raised:
        pack(data, tmp_path / "shards")
    assert str(path) in str(raised.value)
    assert not (tmp_path / "shards").exists()


def test_info_file_counts_what_is_in_the_shards(packed: Path) -> None:
    info = json.loads((packed / INFO).read_text())
    train = info["splits"]["train"]
    assert train["num_samples"] == sum(train["shard_lengths"]) == 21
    assert info["splits"]["validation"]["num_samples"] == 6


def test_an_epoch_continues_on_another_number_of_ranks(packed: Path) -> None:
    """Two ranks make the first two steps of a shuffled epoch, then one alone makes the rest of it."""
    data = load_data(packed).train
    dataset = ImageDataset(data, eval_transform(Preprocessing(size=(32, 32))))

    def indices(rank: int, world_size: int, start_step: int, steps: int) -> list[int]:
        loader = build_loader(
            dataset, batch_size=4, train=True, seed=3, workers=1, rank=rank, world_size=world_size
        )
        with loader:
            batches = itertools.islice(loader.epoch(1, start_step), steps)
            return [index for batch in batches for index in batch["indices"].tolist()]

    whole = indices(0, 1, 0, 99)
    assert len(whole) == len(set(whole)) == 20  # of 21: an incomplete last step sits out
    first = indices(0, 2, 0, 2) + indices(1, 2, 0, 2)
    assert sorted(first) == sorted(whole[:8])
    assert indices(0, 1, 2, 99) == whole[8:]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))


@pytest.mark.parametrize("text", [b"100000000000", b"-1", b"1_0", b"1.5", b"", b"0" * 40, "\u0663".encode()])
def test_labels_of_foreign_shards_are_class_indices(tmp_path: Path, text: bytes) -> None:
    write_tar(tmp_path / "train.tar", {"a.jpg": b"x", "a.cls": text})
    with pytest.raises(DataError, match=r"train\.tar/a\.cls: the label is .*; expected a class index"):
        load_data(tmp_path)
    assert not (tmp_path / INDEX).exists()


@pytest.mark.parametrize("label", [2, 99_999_999])
def test_labels_with_gaps_need_class_names(tmp_path: Path, label: int) -> None:
    for split in ("train", "val"):
        write_tar(
            tmp_path / f"{split}.tar", {"a.jpg": b"x", "a.cls": b"0\n", "b.jpg": b"x", "b.cls": b"%d" % label}
        )
    with pytest.raises(DataError, match=r"no image has the label 1; number the classes without gaps, or give"):
        load_data(tmp_path)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=rf"has 2 names; the labels go up to {label:,}"):
        load_data(tmp_path)
    if label == 2:
        (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
        assert load_data(tmp_path).train.class_counts == {"ant": 1, "bee": 0, "cat": 1}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x"), ("a.png", b"y"), ("a.cls", b"0")], "two images named a"),
        ([("a.jpg", b"x"), ("a.cls", b"1"), ("a.cls", b"0")], "two labels named a"),
        ([("a\nb.jpg", b"x"), ("a\nb.cls", b"0")], r"the name 'a\\nb.jpg' contains a line break"),
    ],
)
def test_ambiguous_members_are_named(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, contents in members:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    """A member whose header says 8 GiB in a few bytes, as GNU tar writes files with holes."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(format=tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
    header[483:495] = b"%011o\0" % (2**33 - 1)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "train.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(DataError, match=r"train\.tar/a\.jpg: .* bytes; expected .* not sparse"):
        load_data(tmp_path)


def rewrite_index(shards: Path, **changes: object) -> None:
    """Change columns of the train split, or header fields, of an index; the checksum is left as it was."""
    with safe_open(shards / INDEX, framework="numpy") as file:
        header, columns = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in changes.items():
        if name in header and value is None:
            del header[name]
        elif isinstance(value, str):
            header[name] = value
        else:
            column = columns[f"train/{name}"].copy()
            column[0] = value
            columns[f"train/{name}"] = column
    (shards / INDEX).write_bytes(serialize(columns, header))


def test_an_index_without_a_checksum_is_read(shards: Path) -> None:
    before = load_data(shards).train.fingerprint()
    rewrite_index(shards, sha256=None)
    assert load_data(shards).train.fingerprint() == before


@pytest.mark.parametrize("changes", [{"size": 5}, {"offset": 512}, {"crc32": 7}, {"class_names": '["a","b","c"]'}])
def test_an_index_that_was_changed_does_not_match_its_checksum(shards: Path, changes: dict[str, object]) -> None:
    rewrite_index(shards, **changes)
    with pytest.raises(DataError, match=r"index\.safetensors: damaged \(its checksum does not match\); remove it"):
        load_data(shards)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 3}, "a label is out of range"),
        ({"label": -1}, "a label is out of range"),
        ({"shard": 99}, "a shard is out of range"),
        ({"offset": -5}, "a offset is out of range"),
        ({"size": 2**40}, "a size is out of range"),
        ({"class_names": '["a","a"]'}, "bad class names"),
        ({"class_names": "[" * 10**6}, "damaged"),
        ({"parts": '{"train": ["../x.tar"], "val": []}'}, "bad names of train shards"),
        ({"parts": '{"other": []}'}, "bad class names or splits"),
        ({"parts": "7"}, "bad class names or splits"),
        ({"other": "field"}, "unknown field other"),
    ],
)
def test_values_of_an_index_are_checked(shards: Path, changes: dict[str, object], message: str) -> None:
    rewrite_index(shards, sha256=None, **changes)
    with pytest.raises(DataError, match=rf"index\.safetensors: damaged .*{message}|{message}") as caught:
        load_data(shards)
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_of_an_index_is_found(shards: Path) -> None:
    sound = (shards / INDEX).read_bytes()
    for bit in random.Random(0).sample(range(8 * len(sound)), 200):
        spoiled = bytearray(sound)
        spoiled[bit // 8] ^= 1 << bit % 8
        (shards / INDEX).write_bytes(spoiled)
        with pytest.raises(DataError):
            load_data(shards)


def test_verify_compares_names(shards: Path) -> None:
    path = sorted(shards.glob("val-*.tar"))[0]
    contents = path.read_bytes()
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    path.unlink()
    write_tar(path, {name.replace("some", "sums"): data for name, data in members})
    assert len(path.read_bytes()) == len(contents)
    with pytest.raises(DataError, match=r"the name of \d+-sums_.* differs from the index \(6 images\)"):
        verify(shards)


def test_a_folder_whose_packing_was_killed_is_no_data_set(
    folder: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_index", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process removes nothing
        with pytest.raises(Killed):
            pack(folder, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    with pytest.raises(DataError, match="packing was stopped before it was complete; remove this folder"):
        load_data(tmp_path / "out")
