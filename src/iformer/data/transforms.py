"""Transforms from a decoded image to a network's input.

timm and torchvision are imported where they are used: importing them takes seconds, and `Normalize` needs neither.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from iformer.config.augmentation import AugmentConfig
from iformer.config.preprocessing import Preprocessing
from iformer.data.conversion import CARRIERS
from iformer.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]
"""A callable: decoded image in mode RGB, L or one of `iformer.data.conversion.CARRIERS` -> uint8 (C, H, W)."""

_QUARTER_TURNS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)

# If the shorter side of an extremely long image is resized, the longer one becomes enormous.
_LONGEST_ASPECT = 64
_TINY = 32


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Return the evaluation transform: resize the shorter side to `floor(size / crop_pct)`, crop the centre.

    The result equals the output of timm's evaluation transform. If the height and width of the input differ, the
    image is resized, keeping its aspect ratio, to just cover both. Smaller images are enlarged. Extremely long
    images are cropped before they are resized.

    If `preprocessing.letterbox` is set, images are letterboxed by `iformer.models.letterbox` instead.

    Returns:
        A callable that can be pickled: image (see `Transform`) -> uint8 (C, H, W), C = `len(preprocessing.mean)`,
        values 0..255, in the memory layout H, W, C (letterboxed images: C, H, W).

    Raises:
        ConfigError: the preprocessing has more than 4 channels.
    """
    if preprocessing.letterbox is not None:
        return _Letterbox(preprocessing.size, preprocessing.letterbox)
    from torchvision import transforms

    steps = [_LimitAspect(preprocessing), _resize_and_crop(preprocessing), _ToTensor(_channels(preprocessing))]
    chain: Transform = transforms.Compose(steps)
    return chain


def train_transform(preprocessing: Preprocessing, augmentation: AugmentConfig) -> Transform:
    """Return the training transform: random crop, flips, rotations and colour changes, in timm's order.

    The transform draws from the global generators of `random`, `numpy.random` and torch, which the task's
    `dataset.py` seeds for each image. Random erasing is applied to normalised batches, by `random_erasing`.

    Returns:
        A callable with the same input and output as that of `eval_transform`, in the memory layout H, W, C.

    Raises:
        ConfigError: the preprocessing has more than 4 channels, or has 2 or 4 while RandAugment is on.
    """
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
    from torchvision import transforms

    height, width = preprocessing.size
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if augmentation.rot90 and height != width:
        steps.append(_random_quarter_turn)
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
        steps.append(_random_quarter_turn)
    if augmentation.rand_augment is not None:
        _check_rand_augment(augmentation, _channels(preprocessing))
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
        steps.append(_ChangeColours(transforms.ColorJitter(strength, strength, strength)))
    chain: Transform = transforms.Compose([*steps, _ToTensor(_channels(preprocessing))])
    return chain


class TransformSchedule:
    """One transform per range of epochs, for progressive resizing. It can be pickled."""

    def __init__(self, stages: Sequence[tuple[int, Transform]]) -> None:
        """Set the `stages`: pairs (first epoch, transform) in ascending order from epoch 0.

        Raises:
            ConfigError: the epochs do not ascend from 0.
        """
        starts = [start for start, _ in stages]
        if not starts or starts[0] != 0 or any(a >= b for a, b in itertools.pairwise(starts)):
            raise ConfigError(f"the schedule starts at epochs {starts}; expected ascending epochs from 0")
        self._starts = starts
        self._transforms = [transform for _, transform in stages]

    def at(self, epoch: int) -> Transform:
        """Return the transform of an epoch, counted from 0."""
        return self._transforms[bisect.bisect_right(self._starts, epoch) - 1]


class Normalize(nn.Module):
    """Normalisation: uint8 (B, C, H, W), 0..255 -> float32 `(x / 255 - mean) / std` in the same memory format.

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
        """Normalise a batch, which must be on the module's device."""
        if images_BCHW.dtype == torch.uint8 and images_BCHW.is_contiguous(memory_format=torch.channels_last):
            return self._channels_last(images_BCHW)
        return (images_BCHW.to(torch.float32) / 255).sub_(self.mean).div_(self.std)

    def _channels_last(self, images_BCHW: Tensor) -> Tensor:
        """Normalise channels-last images 10x faster: CPUs vectorise operations on W * C values, but not on C."""
        batch, channels, height, width = images_BCHW.shape
        result_BCHW = images_BCHW.to(torch.float32)
        rows = result_BCHW.permute(0, 2, 3, 1).view(batch, height, width * channels)
        rows.div_(255).sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return result_BCHW


def random_erasing(
    augmentation: AugmentConfig, device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor] | None:
    """Return random erasing of normalised batches (float (B, C, H, W), changed in place), or None if it is off.

    Rectangles are drawn from the global `random`, their noise from torch's generator of `device`.
    """
    if augmentation.random_erasing == 0:
        return None
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(augmentation.random_erasing, mode="pixel", device=device)


def allow_no_bits(rand_augment: Any) -> Any:
    """Make the "posterize" of timm's RandAugment accept 0 bits, which gives a black image; return the RandAugment.

    Magnitude 9 with noise sometimes asks for 0 bits, which Pillow accepted up to version 12.
    """
    for operation in rand_augment.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return rand_augment


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _random_quarter_turn(image: Image.Image) -> Image.Image:
    turn = random.choice(_QUARTER_TURNS)
    return image if turn is None else image.transpose(turn)


@dataclass(frozen=True)
class _Letterbox:
    size: tuple[int, int]
    fill: tuple[int, int, int]

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms.v2.functional import pil_to_tensor

        from iformer.models.letterbox import letterbox

        return letterbox(pil_to_tensor(_to_rgb(image)), self.size, fill=self.fill).image


class _LimitAspect:
    """Transform that cuts both ends off an extremely long image, where no centre crop reaches."""

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
        self.mode = CARRIERS[channels]

    def __call__(self, image: Image.Image) -> Tensor:
        if image.mode != self.mode:
            if not {image.mode, self.mode} <= {"L", "RGB"}:
                raise ConfigError(
                    f"the image has mode {image.mode}; expected {self.mode}, see iformer.data.images"
                )
            image = image.convert(self.mode)
        pixels_HWC = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
        return pixels_HWC.permute(2, 0, 1)


def _enlarge_tiny(image: Image.Image) -> Image.Image:
    """Enlarge an image whose shorter side is below 32 pixels; a random crop of it could be rounded to 0 pixels."""
    shorter = min(image.size)
    if shorter >= _TINY:
        return image
    width, height = (round(length * _TINY / shorter) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


class _ChangeColours:
    """A change of RGB images, applied also to gray images and to the colours of images with an extra channel."""

    def __init__(self, change: Callable[[Image.Image], Image.Image]) -> None:
        self.change = change

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.mode in ("L", "RGB"):
            return self.change(_to_rgb(image))
        *colours, extra = image.split()
        colour = colours[0] if len(colours) == 1 else Image.merge("RGB", colours)
        changed = self.change(_to_rgb(colour)).convert(colour.mode)
        return Image.merge(image.mode, (*changed.split(), extra))


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _resize_and_crop(
    preprocessing: Preprocessing, crop: Callable[[Image.Image], Image.Image] | None = None
) -> Callable[[Image.Image], Image.Image]:
    """Return the resize and crop of timm's evaluation transform. If given, `crop` replaces the centre crop."""
    from timm.data.transforms_factory import transforms_imagenet_eval
    from torchvision import transforms

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
    if channels not in CARRIERS:
        raise ConfigError(
            f"the network takes images of {channels} channels, image files have 1 to 4; "
            "give tensors to it in Python, or to its artifact"
        )
    return channels


def _check_rand_augment(augmentation: AugmentConfig, channels: int) -> None:
    if channels not in (1, 3):
        raise ConfigError(
            f"augment.rand_augment is {augmentation.rand_augment!r} and the images have {channels} channels; "
            "RandAugment takes 1 or 3: set augment.rand_augment=null"
        )


def _rgb_mean(preprocessing: Preprocessing) -> tuple[float, ...]:
    return preprocessing.mean if len(preprocessing.mean) == 3 else preprocessing.mean * 3
