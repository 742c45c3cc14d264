"""Throughput of the shard reader on a simulated ImageNet: 1,281,167 entries, 8 ranks of 4 workers.

The entries are tiny images in shards of `iformer convert --to shards`, so the figure is the throughput of the
reader alone: index, positioned reads, collation in worker processes and hardly any decoding. Ranks run one after
another on one machine, each with all its workers. The script also checks that an epoch has each entry exactly
once.

    python benchmarks/reader.py --folder runs/simulated-imagenet --out benchmarks/results/reader.json
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from iformer.bench.record import write_record
from iformer.config.preprocessing import Preprocessing
from iformer.data.loader import Loader
from iformer.data.samples import DataSplits, ImageSet, IndexedSamples, Sample
from iformer.data.sampling import EpochSampler
from iformer.data.sources.shards.index import INDEX
from iformer.data.sources.shards.packing import pack
from iformer.data.sources.shards.reader import load_shards
from iformer.data.transforms import eval_transform
from iformer.tasks.classification.dataset import ImageDataset

IMAGENET, CLASSES = 1_281_167, 1000
_DIFFERENT = 997
"""Number of distinct images; a prime, so that each class has many of them."""


@dataclass(frozen=True, slots=True)
class TinySample(Sample):
    """An encoded image of 8 x 8 pixels in memory."""

    number: int
    picture: bytes

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return f"tiny_{self.number}.png"

    def relative_path(self, root: Path) -> str:
        return self.name

    def read(self) -> bytes:
        return self.picture

    def size(self) -> int:
        return len(self.picture)


class TinySamples(IndexedSamples):
    """`count` tiny images, each created when it is accessed."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self.pictures = []
        for _ in range(_DIFFERENT):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
            self.pictures.append(file.getvalue())
        self._labels = np.arange(count, dtype=np.int64) % CLASSES

    def sample(self, position: int) -> Sample:
        picture = self.pictures[position % _DIFFERENT]
        return TinySample(position, picture, label=int(self._labels[position]))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self._labels

    @property
    def contents(self) -> str:
        return f"tiny {len(self)}"


def make_shards(folder: Path, count: int) -> float:
    """Pack the entries unless the folder has them already; return the seconds."""
    if (folder / INDEX).is_file():
        return 0.0
    names = tuple(f"class {number}" for number in range(CLASSES))
    splits = {
        split: ImageSet(name=split, class_names=names, samples=TinySamples(entries), root=Path())
        for split, entries in (("train", count), ("val", CLASSES))
    }
    began = time.perf_counter()
    pack(DataSplits(train=splits["train"], val=splits["val"]), folder, shard_bytes=2**20)
    return time.perf_counter() - began


def read_epoch(
    data: ImageSet, *, ranks: int, workers: int, batch_size: int
) -> tuple[npt.NDArray[np.int64], list[float]]:
    """Read a shuffled epoch by all ranks; return how often each index came, and the seconds of each rank."""
    dataset = ImageDataset(data, eval_transform(Preprocessing(size=(32, 32))))
    seen = np.zeros(len(data), dtype=np.int64)
    seconds = []
    for rank in range(ranks):
        sampler = EpochSampler(
            len(data), batch_size=batch_size, seed=0, rank=rank, world_size=ranks, shuffle=True, drop_last=False
        )
        began = time.perf_counter()
        with Loader(dataset, sampler, workers=workers) as loader:
            for batch in loader.epoch(0):
                indices = batch["indices"].numpy()
                np.add.at(seen, indices, 1)
                if not np.array_equal(batch["labels"].numpy(), data.labels[indices]):
                    raise SystemExit("an image has the label of another one")
        seconds.append(time.perf_counter() - began)
        print(f"rank {rank}: {len(data) / ranks / seconds[-1]:,.0f} images/s", flush=True)
    return seen, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack and read the entries, print the counts and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/simulated-imagenet"))
    parser.add_argument("--entries", type=int, default=IMAGENET)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    packing_seconds = make_shards(options.folder, options.entries)
    began = time.perf_counter()
    data = load_shards(options.folder).train
    opening_seconds = time.perf_counter() - began
    seen, seconds = read_epoch(data, ranks=options.ranks, workers=options.workers, batch_size=options.batch_size)
    once = int((seen == 1).sum())
    figures = {
        "entries": len(data),
        "shards": len(data.samples.columns.shards),  # type: ignore[attr-defined]
        "ranks": options.ranks,
        "workers": options.workers,
        "seen once": once,
        "seen never": int((seen == 0).sum()),
        "seen more than once": int((seen > 1).sum()),
        "packing and verifying seconds": packing_seconds,
        "opening seconds": opening_seconds,
        "images per second, one rank at a time": len(data) / sum(seconds),
    }
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}" if isinstance(value, float) else f"{name}: {value:,}")
    if once != len(data):
        raise SystemExit("some entries were read never or more than once")
    if options.out:
        write_record(options.out, figures)


if __name__ == "__main__":
    main()
