"""The ELPV photographs of solar cells, from the elpv-dataset package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from iformer.data.parallel import Progress
from iformer.data.samples import DataSplits, FileSample, ImageSet
from iformer.data.sources.checks import check_images, refuse_warnings
from iformer.data.sources.splitting import split_stratified
from iformer.dependencies import require
from iformer.errors import DataError

ELPV = "elpv"
"""The data set's name, accepted in place of a folder."""

ELPV_CLASSES = ("functional", "defective")
ELPV_VAL_SPLIT = 0.25


def load_elpv(*, strict: bool = False, workers: int | None = None, progress: Progress | None = None) -> DataSplits:
    """Read the 2,624 photographs of solar cells from the installed package `elpv-dataset`.

    A cell is functional if its annotators' probability of a defect is below 0.5 (0 or 1/3), else defective
    (2/3 or 1). The split is always the same: 75 % training, 25 % validation, stratified by probability and
    module type.

    Raises:
        MissingDependencyError: the package is not installed.
        DataError: the list of labels is damaged, or no image can be read; with `strict`, if any cannot be read.
    """
    package = require("elpv_dataset", extra="elpv")
    root = Path(package.__file__).parent / "data"
    samples: list[FileSample] = []
    strata: list[tuple[float, str]] = []
    labels_file = root / "labels.csv"
    try:
        lines = labels_file.read_text(encoding="utf-8").split("\n")
        for line in filter(str.strip, lines):
            name, probability, module = line.split()
            samples.append(FileSample(root / name, label=int(float(probability) >= 0.5)))
            strata.append((float(probability), module))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{labels_file}: damaged ({error}); run: pip install --force-reinstall elpv-dataset"
        ) from None
    broken = check_images([sample.path for sample in samples], workers=workers, progress=progress).broken
    refuse_warnings(tuple(broken.values()), strict=strict or len(broken) == len(samples))
    whole = ImageSet(name=ELPV, class_names=ELPV_CLASSES, samples=tuple(samples), root=root)
    train, val = split_stratified(
        [whole.relative_path(sample) for sample in samples], strata, val_share=ELPV_VAL_SPLIT, seed=0
    )
    # Broken files are removed after the split, so that losing one moves no other image to the other split.
    splits = {
        name: replace(
            whole.subset([index for index in indices if samples[index].path not in broken]),
            name=f"{ELPV} {name}",
            warnings=tuple(broken[samples[i].path] for i in indices if samples[i].path in broken),
        )
        for name, indices in (("train", train), ("val", val))
    }
    return DataSplits(train=splits["train"], val=splits["val"], warnings=tuple(broken.values()))
