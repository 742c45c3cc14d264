"""From a decoded image to a network's input. Legend: B batch, C channels, H height, W width."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor, nn
from torchvision import transforms

from iformer.config.augmentation import AugmentConfig
from iformer.config.preprocessing import Preprocessing
from iformer.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]
"""A decoded image in mode RGB or L -> uint8 (C, H, W)."""

_QUARTER_TURNS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)

# Resizing the shorter side of an image that is nearly a line makes the longer one enormous.
_LONGEST_ASPECT = 64
_TINY = 32


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Resize the shorter side to `floor(size / crop_pct)` and cut out the centre, as timm does.

    Where height and width of the input differ, the image is resized, its shape kept, so that it just covers
    both. Smaller images are enlarged. The sides of an extremely long image are cut off before it is resized.

    Returns:
        A callable, which can be pickled: image (RGB or L) -> uint8 (C, H, W), C = `len(preprocessing.mean)`,
        values 0..255. The memory is laid out as H, W, C.

    Raises:
        ConfigError: the preprocessing has neither 1 nor 3 channels.
    """
    return _Chain(
        [_LimitAspect(preprocessing), _resize_and_crop(preprocessing), _ToTensor(_channels(preprocessing))]
    )


def train_transform(preprocessing: Preprocessing, augmentation: AugmentConfig) -> Transform:
    """The random crop, flips, turns and colour changes of `augmentation`, in timm's order.

    Randomness comes from the global generators of `random`, `numpy.random` and torch, which
    `iformer.data.image_dataset.ImageDataset` seeds for each image. Random erasing works on normalised batches:
    `random_erasing`.

    Returns:
        A callable as `eval_transform` gives.

    Raises:
        ConfigError: the preprocessing has neither 1 nor 3 channels.
    """
    height, width = preprocessing.size
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if augmentation.rot90 and height != width:
        steps.append(_RandomQuarterTurn())
    if augmentation.scale is None:
        steps += [
            _LimitAspect(preprocessing),
            _resize_and_crop(preprocessing, transforms.RandomCrop((height, width))),
        ]
    else:
        steps += [
            _LimitAspect(preprocessing),
            _enlarge_tiny,
            RandomResizedCropAndInterpolation(
                (height, width), augmentation.scale, augmentation.ratio, augmentation.interpolation
            ),
        ]
    if augmentation.hflip > 0:
        steps.append(transforms.RandomHorizontalFlip(augmentation.hflip))
    if augmentation.vflip > 0:
        steps.append(transforms.RandomVerticalFlip(augmentation.vflip))
    if augmentation.rot90 and height == width:
        steps.append(_RandomQuarterTurn())
    if augmentation.rand_augment is not None:
        fill = tuple(min(255, round(255 * value)) for value in _rgb_mean(preprocessing))
        options: dict[str, object] = {
            "translate_const": int(min(height, width) * 0.45),
            "img_mean": fill,
        }
        if augmentation.interpolation != "random":
            options["interpolation"] = str_to_pil_interp(augmentation.interpolation)
        steps += [_to_rgb, allow_no_bits(rand_augment_transform(augmentation.rand_augment, options))]
    elif augmentation.color_jitter > 0:
        strength = augmentation.color_jitter
        steps += [_to_rgb, transforms.ColorJitter(strength, strength, strength)]
    return _Chain([*steps, _ToTensor(_channels(preprocessing))])


class TransformSchedule:
    """Transforms that take turns over the epochs, for progressive resizing. It can be pickled."""

    def __init__(self, stages: Sequence[tuple[int, Transform]]) -> None:
        """`stages` are (first epoch, transform) with rising epochs, the first of which is 0.

        Raises:
            ConfigError: the epochs do not rise from 0.
        """
        starts = [start for start, _ in stages]
        if not starts or starts[0] != 0 or any(a >= b for a, b in itertools.pairwise(starts)):
            raise ConfigError(f"the schedule starts at epochs {starts}; expected rising epochs from 0")
        self._starts = starts
        self._transforms = [transform for _, transform in stages]

    def at(self, epoch: int) -> Transform:
        """The transform of an epoch, counted from 0."""
        return self._transforms[bisect.bisect_right(self._starts, epoch) - 1]


class Normalize(nn.Module):
    """uint8 (B, C, H, W), 0..255 -> float32 `(x / 255 - mean) / std`, on x's device, in x's memory format.

    It has no weights and adds no keys to a state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Normalise a batch (or one image of shape 1, C, H, W); the module has to be on the same device."""
        if images_BCHW.dtype == torch.uint8 and images_BCHW.is_contiguous(memory_format=torch.channels_last):
            return self._channels_last(images_BCHW)
        return (images_BCHW.to(torch.float32) / 255).sub_(self.mean).div_(self.std)

    def _channels_last(self, images_BCHW: Tensor) -> Tensor:
        """The same numbers ten times as fast: a CPU vectorises sums with rows of W * 3 values, but not with 3."""
        batch, channels, height, width = images_BCHW.shape
        result_BCHW = images_BCHW.to(torch.float32)
        rows = result_BCHW.permute(0, 2, 3, 1).view(batch, height, width * channels)  # the same memory
        rows.div_(255).sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return result_BCHW


def random_erasing(
    augmentation: AugmentConfig, device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor] | None:
    """Random erasing of normalised batches (float B, C, H, W, changed in place), or nothing where it is off.

    Rectangles are chosen by the global `random`, their noise by torch's generator of `device`.
    """
    if augmentation.random_erasing == 0:
        return None
    return RandomErasing(augmentation.random_erasing, mode="pixel", device=device)


def allow_no_bits(rand_augment: Any) -> Any:
    """A RandAugment of timm's whose "posterize" may leave no bit of an image, which is then black.

    At magnitude 9 with noise some images are asked for so; Pillow did it up to version 12, and from 13 on stops.
    """
    for operation in rand_augment.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return rand_augment


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


class _Chain:
    def __init__(self, steps: Sequence[Callable[[Any], Any]]) -> None:
        self.steps = list(steps)

    def __call__(self, image: Image.Image) -> Tensor:
        value: Any = image
        for step in self.steps:
            value = step(value)
        pixels_CHW: Tensor = value
        return pixels_CHW


class _RandomQuarterTurn:
    def __call__(self, image: Image.Image) -> Image.Image:
        turn = random.choice(_QUARTER_TURNS)
        return image if turn is None else image.transpose(turn)


class _LimitAspect:
    """Cut both ends off an image that is far longer than anything the centre crop could reach."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        height, width = preprocessing.size
        self.longest = max(_LONGEST_ASPECT, 4 * max(height, width) / min(height, width))

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        limit = int(min(width, height) * self.longest)
        if max(width, height) <= limit:
            return image
        left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
        return image.crop((left, top, width - left, height - top))


class _ToTensor:
    def __init__(self, channels: int) -> None:
        self.mode = "L" if channels == 1 else "RGB"

    def __call__(self, image: Image.Image) -> Tensor:
        if image.mode != self.mode:
            image = image.convert(self.mode)
        pixels_HWC = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
        return pixels_HWC.permute(2, 0, 1)


def _enlarge_tiny(image: Image.Image) -> Image.Image:
    """At least 32 pixels a side: a random share of a few pixels would be rounded to none."""
    shorter = min(image.size)
    if shorter >= _TINY:
        return image
    width, height = (round(length * _TINY / shorter) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _resize_and_crop(
    preprocessing: Preprocessing, crop: Callable[[Image.Image], Image.Image] | None = None
) -> Callable[[Image.Image], Image.Image]:
    """timm's evaluation transform up to the tensor; `crop` takes the place of its centre crop."""
    height, width = preprocessing.size
    resize, centre_crop, _ = transforms_imagenet_eval(
        img_size=height if height == width else (height, width),
        crop_pct=preprocessing.crop_pct,
        interpolation=preprocessing.interpolation,
        normalize=False,
    ).transforms
    chain: Callable[[Image.Image], Image.Image] = transforms.Compose([resize, crop or centre_crop])
    return chain


def _channels(preprocessing: Preprocessing) -> int:
    channels = len(preprocessing.mean)
    if channels not in (1, 3):
        raise ConfigError(f"Preprocessing.mean has {channels} values; image files give 1 or 3 channels")
    return channels


def _rgb_mean(preprocessing: Preprocessing) -> tuple[float, ...]:
    return preprocessing.mean if len(preprocessing.mean) == 3 else preprocessing.mean * 3
