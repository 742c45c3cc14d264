"""Preprocessing against timm's, augmentation, normalisation."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing

from iformer.config.augmentation import AugmentConfig
from iformer.config.preprocessing import Preprocessing
from iformer.data.conversion import CARRIERS
from iformer.data.transforms import (
    Normalize,
    TransformSchedule,
    eval_transform,
    random_erasing,
    train_transform,
)
from iformer.errors import ConfigError
from iformer.tasks.registry import load_recipe

SMALL = Preprocessing(size=(32, 32))


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("size", [(224, 224), (192, 256), (225, 223), (96, 64)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_equals_timm(size: tuple[int, int], crop_pct: float, interpolation: str) -> None:
    preprocessing = Preprocessing(size=size, crop_pct=crop_pct, interpolation=interpolation)  # type: ignore[arg-type]
    transform, normalize = eval_transform(preprocessing), Normalize(preprocessing)
    theirs = create_transform((3, *size), crop_pct=crop_pct, interpolation=interpolation)
    for width, height in ((300, 300), (500, 375), (333, 640), (40, 30), (1, 1)):
        image = noise(width, height)
        pixels = transform(image)
        assert pixels.shape == (3, *size)
        assert pixels.dtype == torch.uint8
        torch.testing.assert_close(normalize(pixels[None])[0], theirs(image), rtol=0, atol=1e-6)


def test_gray_images_give_the_same_as_their_rgb_form() -> None:
    gray = noise(50, 40, "L")
    everything = AugmentConfig(vflip=0.5, rot90=True, rand_augment="rand-m9-mstd0.5-inc1")
    for transform in (
        eval_transform(SMALL),
        train_transform(SMALL, everything),
        train_transform(SMALL, AugmentConfig(color_jitter=0.4)),
    ):
        for seed in range(10):
            results = []
            for image in (gray, gray.convert("RGB")):
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                torch.manual_seed(seed)
                results.append(transform(image))
            assert torch.equal(*results)


def test_one_channel() -> None:
    preprocessing = Preprocessing(size=(32, 32), mean=(0.5,), std=(0.5,))
    assert eval_transform(preprocessing)(noise(50, 40)).shape == (1, 32, 32)
    augmentation = AugmentConfig(rand_augment="rand-m9")
    assert train_transform(preprocessing, augmentation)(noise(50, 40)).shape == (1, 32, 32)
    with pytest.raises(ConfigError, match="images of 5 channels, image files have 1 to 4"):
        eval_transform(Preprocessing(mean=(0.5,) * 5, std=(0.5,) * 5))


@pytest.mark.parametrize("channels", [2, 4])
def test_colours_change_and_an_extra_channel_does_not(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, channels), dtype=np.uint8)
    image = Image.frombytes(CARRIERS[channels], (32, 32), pixels.tobytes())
    preprocessing = Preprocessing(size=(32, 32), crop_pct=1.0, mean=(0.5,) * channels, std=(0.5,) * channels)
    augmentation = AugmentConfig(scale=None, hflip=0.0, color_jitter=0.5)
    changed = train_transform(preprocessing, augmentation)(image).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(changed[..., -1], pixels[..., -1])
    assert (changed[..., :-1] != pixels[..., :-1]).mean() > 0.5
    with pytest.raises(ConfigError, match="RandAugment takes 1 or 3"):
        train_transform(preprocessing, AugmentConfig(rand_augment="rand-m9"))


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (3, 9_000)])
def test_images_like_a_line_need_no_giant_intermediate(size: tuple[int, int]) -> None:
    image = noise(*size)
    assert eval_transform(SMALL)(image).shape == (3, 32, 32)
    assert train_transform(SMALL, AugmentConfig())(image).shape == (3, 32, 32)
    assert train_transform(SMALL, AugmentConfig(scale=None))(image).shape == (3, 32, 32)


@settings(max_examples=60)
@given(
    width=st.integers(1, 80),
    height=st.integers(1, 80),
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    scale=st.sampled_from([None, (0.08, 1.0), (0.001, 0.01), (1.0, 1.0)]),
    rot90=st.booleans(),
    rand_augment=st.sampled_from([None, "rand-m9-mstd0.5-inc1", "rand-m15-n4-t3a-p1.0"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "random"]),
    mode=st.sampled_from(["RGB", "L"]),
)
def test_training_gives_the_size_from_any_image(
    width: int, height: int, size: tuple[int, int], mode: str, **options: object
) -> None:
    transform = train_transform(
        Preprocessing(size=size),
        AugmentConfig(vflip=0.5, color_jitter=0.4, **options),  # type: ignore[arg-type]
    )
    pixels = transform(noise(width, height, mode))
    assert pixels.shape == (3, *size)
    assert pixels.dtype == torch.uint8


def test_without_augmentation_training_is_evaluation() -> None:
    preprocessing = Preprocessing(size=(32, 32), crop_pct=1.0)
    image = noise(50, 50)
    plain = train_transform(preprocessing, AugmentConfig(scale=None, hflip=0.0))
    assert torch.equal(plain(image), eval_transform(preprocessing)(image))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hflip": 1.0}, lambda x: x.flip(2)),
        ({"vflip": 1.0}, lambda x: x.flip(1)),
        ({"hflip": 1.0, "vflip": 1.0}, lambda x: x.flip(1, 2)),
    ],
)
def test_flips(options: dict[str, float], expected: object) -> None:
    preprocessing = Preprocessing(size=(32, 32), crop_pct=1.0)
    image = noise(32, 32)
    flipped = train_transform(preprocessing, AugmentConfig(**({"scale": None, "hflip": 0.0} | options)))(image)
    assert torch.equal(flipped, expected(eval_transform(preprocessing)(image)))  # type: ignore[operator]


def test_quarter_turns_are_all_made() -> None:
    preprocessing = Preprocessing(size=(32, 32), crop_pct=1.0)
    image, plain = noise(32, 32), eval_transform(preprocessing)(noise(32, 32))
    transform = train_transform(preprocessing, AugmentConfig(scale=None, hflip=0.0, rot90=True))
    seen = [transform(image) for _ in range(60)]
    counts = [sum(torch.equal(torch.rot90(plain, k, (1, 2)), one) for one in seen) for k in range(4)]
    assert sum(counts) == 60
    assert min(counts) >= 3


def test_normalize_keeps_the_memory_format_and_the_input() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normalize = Normalize(SMALL)
    for layout in (torch.contiguous_format, torch.channels_last):
        given_pixels = pixels.to(memory_format=layout)
        result = normalize(given_pixels)
        assert result.is_contiguous(memory_format=layout)
        assert torch.equal(given_pixels, pixels)
    floats = pixels.float()
    normalize(floats)
    assert torch.equal(floats, pixels.float())
    assert normalize.state_dict() == {}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (1, 9), (9, 1)])
def test_normalize_gives_the_same_numbers_in_both_layouts(channels: int, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(size=size, mean=(0.4, 0.5, 0.6)[:channels], std=(0.2, 0.3, 0.4)[:channels])
    pixels = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
    normalize = Normalize(preprocessing)
    expected = (pixels.float() / 255 - normalize.mean) / normalize.std
    assert torch.equal(normalize(pixels), expected)
    assert torch.equal(normalize(pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), expected)


def test_random_erasing() -> None:
    assert random_erasing(AugmentConfig()) is None
    erase = random_erasing(AugmentConfig(random_erasing=1.0))
    assert erase is not None
    erased = []
    for seed in (0, 0, 1):
        random.seed(seed)
        torch.manual_seed(seed)
        erased.append(erase(torch.full((4, 3, 32, 32), 9.0)))
    assert torch.equal(erased[0], erased[1])
    assert not torch.equal(erased[0], erased[2])
    assert ((erased[0] != 9.0).flatten(1).any(dim=1)).all()


def test_schedule() -> None:
    small, large = eval_transform(SMALL), eval_transform(Preprocessing(size=(64, 64)))
    schedule = TransformSchedule([(0, small), (3, large)])
    assert [schedule.at(epoch) is large for epoch in range(5)] == [False, False, False, True, True]
    for stages in ([], [(1, small)], [(0, small), (0, large)], [(0, small), (5, large), (4, small)]):
        with pytest.raises(ConfigError, match="ascending epochs from 0"):
            TransformSchedule(stages)


def test_transforms_can_be_pickled() -> None:
    image = noise(40, 40)
    schedule = TransformSchedule(
        [
            (0, eval_transform(SMALL)),
            (1, train_transform(SMALL, AugmentConfig(rand_augment="rand-m9", rot90=True))),
        ]
    )
    assert torch.equal(pickle.loads(pickle.dumps(schedule)).at(0)(image), schedule.at(0)(image))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (0.9, 0.5)),
        ("scale", (0.5, 1.5)),
        ("ratio", (0.0, 1.0)),
        ("ratio", (2.0, 1.0)),
        ("interpolation", "nearest"),
        ("hflip", 1.5),
        ("vflip", -0.1),
        ("rot90", 1),
        ("rand_augment", "rand m9"),
        ("rand_augment", "augmix-m3"),
        ("rand_augment", "rand-x9"),
        ("color_jitter", -1.0),
        ("random_erasing", 2.0),
    ],
)
def test_invalid_augmentation_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"AugmentConfig\.{field}"):
        AugmentConfig(**{field: value})  # type: ignore[arg-type]


def test_augmentation_survives_plain_data() -> None:
    augmentation = AugmentConfig(scale=None, rand_augment="rand-m9-mstd0.5-inc1", rot90=True)
    assert AugmentConfig.from_plain(augmentation.to_plain()) == augmentation


@pytest.mark.parametrize("seed", range(4))
def test_the_paper_s_augmentation_is_timm_s(seed: int) -> None:
    """The recipe imagenet-300 up to normalisation and erasing, which are done on batches, draw by draw."""
    recipe = load_recipe("imagenet-300")
    reference = create_transform(
        recipe.size,
        is_training=True,
        scale=recipe.augment.scale,
        hflip=recipe.augment.hflip,
        auto_augment=recipe.augment.rand_augment,
        interpolation=recipe.augment.interpolation,
        mean=recipe.preprocessing.mean,
        std=recipe.preprocessing.std,
        re_prob=0.0,
    )
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    results = []
    for transform in (reference, train_transform(recipe.preprocessing, recipe.augment)):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (timm draws from it)
        torch.manual_seed(seed)
        results.append(transform(image))
    normalised = Normalize(recipe.preprocessing)(results[1][None])[0]
    torch.testing.assert_close(normalised, results[0], atol=1e-6, rtol=1e-5)


def test_random_erasing_of_the_recipe_is_timm_s() -> None:
    recipe = load_recipe("imagenet-300")
    erase = random_erasing(recipe.augment)
    assert erase is not None
    reference = RandomErasing(probability=recipe.augment.random_erasing, mode="pixel", device="cpu")
    batches = []
    for each in (erase, reference):
        random.seed(3)
        torch.manual_seed(3)
        batches.append(each(torch.zeros(16, 3, 32, 32)))
    assert torch.equal(*batches)
    assert batches[0].abs().sum() > 0


def test_posterize_may_leave_no_bit() -> None:
    """Magnitude 10 asks for none; Pillow 13 refuses that, and one image in some hundred would end a run."""
    augmentation = AugmentConfig(rand_augment="rand-m10-n15-inc1", scale=None, hflip=0.0)
    transform = train_transform(SMALL, augmentation)
    rand_augment = next(step for step in transform.transforms if hasattr(step, "ops"))  # type: ignore[attr-defined]
    (posterize,) = (operation for operation in rand_augment.ops if operation.name.startswith("Posterize"))
    posterize.prob = 1.0
    assert posterize.magnitude == 10
    black = posterize(noise(32, 32))
    assert np.asarray(black).max() == 0
    assert black.size == (32, 32)
    posterize.magnitude = 9
    assert set(np.asarray(posterize(noise(32, 32))).ravel().tolist()) == {0, 128}
