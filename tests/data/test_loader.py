"""The order of images, workers, caches and interruptions."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from iformer.config.augmentation import AugmentConfig
from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.loader import Batch, Loader, _report_unless_disconnected, build_loader
from iformer.data.samples import FileSample, ImageSet
from iformer.data.sampling import EpochSampler
from iformer.data.transforms import TransformSchedule, eval_transform, train_transform
from iformer.errors import ConfigError, DataError, UserError
from iformer.tasks.classification.dataset import ImageDataset

SMALL = Preprocessing(size=(32, 32))
AUGMENTATION = AugmentConfig(vflip=0.5, rot90=True, rand_augment="rand-m9-mstd0.5-inc1", interpolation="random")


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """13 images of different sizes, every third one gray."""
    samples = []
    for index in range(13):
        shape = (40 + index, 60 - index) if index % 3 == 0 else (40 + index, 60 - index, 3)
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)).save(path)
        samples.append(FileSample(path, label=index % 2))
    return ImageSet(name="noise", class_names=("even", "odd"), samples=tuple(samples), root=tmp_path)


def collect(loader: Loader, epoch: int = 0, start_step: int = 0) -> list[Batch]:
    return [{key: value.clone() for key, value in batch.items()} for batch in loader.epoch(epoch, start_step)]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a[key], b[key]) for a, b in zip(left, right, strict=True) for key in a
    )


def sampled(length: int, **options: object) -> list[list[int]]:
    return [[index for _, index in keys] for keys in EpochSampler(length, **options)]  # type: ignore[arg-type]


sizes = st.tuples(st.integers(1, 200), st.integers(1, 12), st.sampled_from([1, 2, 3, 4]), st.integers(0, 5))


@settings(max_examples=100)
@given(numbers=sizes, seed=st.integers(0, 2**32 - 1))
def test_evaluation_covers_each_image_once(numbers: tuple[int, int, int, int], seed: int) -> None:
    length, per_rank, world_size, _ = numbers
    options = {"batch_size": per_rank * world_size, "world_size": world_size, "shuffle": False, "drop_last": False}
    ranks = [sampled(length, rank=rank, seed=seed, **options) for rank in range(world_size)]
    assert sorted(index for rank in ranks for batch in rank for index in batch) == list(range(length))
    for rank, batches in enumerate(ranks):
        assert len(EpochSampler(length, rank=rank, **options)) == len(batches)  # type: ignore[arg-type]
        assert all(batches)


@settings(max_examples=100)
@given(numbers=sizes, seed=st.integers(0, 2**32 - 1))
def test_training_order_is_the_same_for_any_world_size(numbers: tuple[int, int, int, int], seed: int) -> None:
    length, per_rank, world_size, epoch = numbers
    batch_size = per_rank * world_size
    length = max(length, world_size)
    alone = sampled(length, batch_size=batch_size, seed=seed, epoch=epoch)
    ranks = [
        sampled(length, batch_size=batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {len(alone)}
    for step, batch in enumerate(alone):
        shares = [rank[step] for rank in ranks]
        together = [index for share in shares for index in share]
        assert together == batch[: len(together)]
        assert len(batch) - len(together) < world_size
        assert len({len(share) for share in shares}) == 1
    seen = [index for batch in alone for index in batch]
    assert len(seen) == len(set(seen)) == (length // batch_size * batch_size or length)


@settings(max_examples=60)
@given(numbers=sizes, start=st.integers(0, 20), training=st.booleans())
def test_starting_in_the_middle_gives_the_rest(
    numbers: tuple[int, int, int, int], start: int, training: bool
) -> None:
    length, batch_size, _, epoch = numbers
    options = {"batch_size": batch_size, "epoch": epoch, "shuffle": training, "drop_last": training}
    whole = sampled(length, **options)
    start = min(start, len(whole))
    assert sampled(length, start_step=start, **options) == whole[start:]
    assert len(EpochSampler(length, start_step=start, **options)) == len(whole) - start  # type: ignore[arg-type]


def test_each_epoch_and_seed_has_its_own_order() -> None:
    orders = [EpochSampler(50, batch_size=5, seed=s, epoch=e).order() for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


@pytest.mark.parametrize(
    ("length", "options", "error"),
    [
        (10, {"batch_size": 0}, ConfigError),
        (10, {"batch_size": 3, "world_size": 2}, ConfigError),
        (10, {"batch_size": 4, "world_size": 2, "rank": 2}, ConfigError),
        (10, {"batch_size": 4, "start_step": 3}, ConfigError),
        (10, {"batch_size": 4, "epoch": -1}, ConfigError),
        (0, {"batch_size": 4}, DataError),
        (1, {"batch_size": 4, "world_size": 2}, DataError),
    ],
)
def test_impossible_epochs(length: int, options: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        EpochSampler(length, **options)


def test_batches_do_not_depend_on_workers_cache_or_start(images: ImageSet) -> None:
    transform = train_transform(SMALL, AUGMENTATION)
    plain = ImageDataset(images, transform, seed=3)
    cached = ImageDataset(images, transform, seed=3, cache="ram")
    with build_loader(plain, batch_size=4, train=True, workers=0) as loader:
        epochs = [collect(loader, epoch) for epoch in range(2)]
    assert [len(batches) for batches in epochs] == [3, 3]
    assert not same(epochs[0], epochs[1])
    batch = epochs[0][0]
    assert batch["images"].shape == (4, 3, 32, 32)
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)
    assert batch["labels"].tolist() == [index % 2 for index in batch["indices"].tolist()]
    for dataset in (plain, cached):
        with build_loader(dataset, batch_size=4, train=True, workers=2) as loader:
            assert same(collect(loader, 1), epochs[1])
            assert same(collect(loader, 0), epochs[0])
            assert same(collect(loader, 0, start_step=2), epochs[0][2:])
    with build_loader(cached, batch_size=4, train=True, workers=0) as loader:
        assert same(collect(loader, 1, start_step=1), epochs[1][1:])
    other = ImageDataset(images, transform, seed=4)
    assert not torch.equal(other[0, 0][0], plain[0, 0][0])


def test_a_daemonic_process_loads_its_images_itself(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of `multiprocessing.Pool` is one; it cannot start processes."""
    dataset = ImageDataset(images, eval_transform(Preprocessing(size=(32, 32))))
    config = vars(multiprocessing.current_process())["_config"]
    monkeypatch.setitem(config, "daemon", True)
    with build_loader(dataset, batch_size=2, train=False) as loader:
        assert sum(len(batch["indices"]) for batch in loader.epoch(0, 0)) == len(images)
    with pytest.raises(UserError, match="workers is 2; this process is a daemon"):
        build_loader(dataset, batch_size=2, train=False, workers=2)


def test_an_epoch_that_is_stopped_early_does_not_affect_the_next(images: ImageSet) -> None:
    dataset = ImageDataset(images, eval_transform(SMALL))
    with build_loader(dataset, batch_size=2, train=True, workers=2) as loader:
        expected = [batch["indices"].tolist() for batch in loader.epoch(1)]
        for _ in loader.epoch(0):
            break
        assert [batch["indices"].tolist() for batch in loader.epoch(1)] == expected


def test_ranks_share_a_step(images: ImageSet) -> None:
    dataset = ImageDataset(images, train_transform(SMALL, AUGMENTATION))
    alone = collect(build_loader(dataset, batch_size=6, train=True, workers=0))
    ranks = [
        collect(build_loader(dataset, batch_size=6, train=True, workers=0, rank=rank, world_size=2))
        for rank in range(2)
    ]
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([rank[step]["images"] for rank in ranks]), batch["images"])


def test_evaluation_is_in_order_and_complete(images: ImageSet) -> None:
    dataset = ImageDataset(images, eval_transform(SMALL))
    batches = collect(build_loader(dataset, batch_size=5, train=False, workers=0))
    assert [index for batch in batches for index in batch["indices"].tolist()] == list(range(13))
    path = images.samples[12].path
    assert torch.equal(batches[-1]["images"][-1], eval_transform(SMALL)(read_image(path)))


def test_the_process_keeps_its_random_state(images: ImageSet) -> None:
    dataset = ImageDataset(images, train_transform(SMALL, AUGMENTATION))

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    def seed() -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)

    seed()
    expected = draw()
    seed()
    collect(build_loader(dataset, batch_size=4, train=True, workers=0))
    with build_loader(dataset, batch_size=4, train=True, workers=1) as loader:
        collect(loader)
    assert draw() == expected


def test_progressive_resizing(images: ImageSet) -> None:
    large = train_transform(Preprocessing(size=(48, 48)), AUGMENTATION)
    schedule = TransformSchedule([(0, train_transform(SMALL, AUGMENTATION)), (2, large)])
    dataset = ImageDataset(images, schedule)
    with build_loader(dataset, batch_size=4, train=True, workers=1) as loader:
        sides = [next(loader.epoch(epoch))["images"].shape[-1] for epoch in range(4)]
    assert sides == [32, 32, 48, 48]


def test_cache_keeps_gray_images_gray_and_exact(images: ImageSet) -> None:
    seen: list[tuple[int, int]] = []
    dataset = ImageDataset(
        images, eval_transform(SMALL), cache="ram", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (13, 13)
    for index, sample in enumerate(images.samples):
        image = dataset.image(index)
        assert image.mode == ("L" if index % 3 == 0 else "RGB")
        assert image.convert("RGB").tobytes() == read_image(sample.path).tobytes()
    small = ImageDataset(images, eval_transform(SMALL), cache="ram", cache_side=20)
    assert min(small.image(1).size) == 20
    dataset.image(0).paste(0, (0, 0, 10, 10))
    assert dataset.image(0).tobytes() == read_image(images.samples[0].path, keep_gray=True).tobytes()


def test_cache_that_does_not_fit(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iformer.tasks.classification.dataset._free_memory", lambda: 1000)
    with pytest.raises(DataError, match="use cache=none"):
        ImageDataset(images, eval_transform(SMALL), cache="ram")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_one_line(images: ImageSet, workers: int) -> None:
    dataset = ImageDataset(images, eval_transform(SMALL))
    images.samples[7].path.write_bytes(b"")
    with build_loader(dataset, batch_size=4, train=False, workers=workers) as loader:
        with pytest.raises(DataError) as caught:
            collect(loader)
        assert str(caught.value) == f"{images.samples[7].path}: the file is empty (0 bytes)"


def test_a_worker_says_nothing_of_a_main_process_that_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ConnectionResetError(104, "reset"), EOFError()):
        _report_unless_disconnected(type(error), error, None)
    assert capsys.readouterr().err == ""
    _report_unless_disconnected(ValueError, ValueError("wrong"), None)
    assert "ValueError: wrong" in capsys.readouterr().err
