"""Compose a data set of real photographs for detection and segmentation, the same on every machine.

The script pastes cut-outs with transparency (animals, fruit, road signs …) on photographs. Number, choice,
position, size and occlusion are drawn from a seed. Training and validation images have different cut-outs and
different backgrounds. The output folder has images, COCO annotations (`annotations/`) and index masks (`masks/`,
`classes.txt`), so it can be used with `iformer train --task detect` and `--task segment`.

The pictures come from three Debian packages, which the script does not install: install the packages, or unpack
them into a folder and give it as `--root`.

    apt-get install tuxpaint-stamps-default gnome-backgrounds plasma-workspace-wallpapers

    apt-get download tuxpaint-stamps-default gnome-backgrounds plasma-workspace-wallpapers
    for package in *.deb; do dpkg -x "$package" pictures; done

    python examples/composed/compose.py OUT [--root pictures]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from iformer.data.images import open_image

PACKAGES = ("tuxpaint-stamps-default", "gnome-backgrounds", "plasma-workspace-wallpapers")
STAMPS = "usr/share/tuxpaint/stamps"
BACKGROUNDS = ("usr/share/backgrounds/gnome", "usr/share/wallpapers")

CLASSES: dict[str, tuple[str, ...]] = {
    "ball": tuple(
        f"sports/{name}.png"
        for name in ("australian_rules_football", "basketball", "cricketball", "football", "soccer", "tennis_ball")
    ),
    "bird": ("animals/birds/*.png",),
    "coin": ("symbols/money/*/coins/*.png", "symbols/money/japanese/*.png"),
    "fish": ("animals/fish/*.png",),
    "flower": ("plants/flowers/*.png",),
    "fruit": ("food/fruit/*.png",),
    "gravestone": ("seasonal/halloween/*stone*.png", "seasonal/halloween/*grave*.png"),
    "hat": ("clothes/hats/*.png",),
    "hoofed animal": tuple(f"animals/mammals/{name}/*.png" for name in ("bovines", "equines", "deer", "camel")),
    "insect": ("animals/insects/*.png",),
    "musical instrument": ("hobbies/music/*/*.png",),
    "planet": ("space/planets/*.png",),
    "road sign": ("town/roadsigns/*.png",),
    "tool": ("household/tools/*.png",),
    "vegetable": ("food/vegetables/*.png",),
    "vehicle": (
        "vehicles/*.png",
        *(f"vehicles/{name}/*.png" for name in ("auto", "construction", "emergency", "masstransit", "race")),
    ),
}
"""Name of each class -> glob patterns of its cut-outs below `STAMPS`."""
LEFT_OUT = ("_mirror", "7spoke", "wheel_tractor", "0_sun")
"""Parts of the names of files that match but are duplicates or show something else."""

VAL_SHARE = 0.3
"""Share of the cut-outs and backgrounds that only validation images have."""
MAX_OBJECTS = 5
"""Largest number of objects in an image."""
EMPTY_SHARE = 0.05
"""Share of the images without objects."""
SIDES = (0.14, 0.6)
"""Smallest and largest longer side of an object, as a share of the image's side."""
MIN_BACKGROUND_BYTES = 10_000
"""Smaller files are plain colours and are not used as backgrounds."""
MIN_VISIBLE = 0.4
"""Share of an object's pixels that later objects must leave visible."""


class Placed(NamedTuple):
    """An object on an image: class index, opaque pixels and visible pixels (both bool, H x W)."""

    label: int
    whole: np.ndarray
    visible: np.ndarray


def find_cutouts(root: Path) -> dict[str, list[Path]]:
    """Return the sorted cut-out files of each class."""
    found = {}
    for name, patterns in CLASSES.items():
        files = {path for pattern in patterns for path in (root / STAMPS).glob(pattern)}
        found[name] = sorted(path for path in files if not any(part in path.name for part in LEFT_OUT))
    return found


def find_backgrounds(root: Path) -> list[Path]:
    """Return one file per wallpaper: the one of median size."""
    by_wallpaper: dict[Path, list[Path]] = {}
    for folder in BACKGROUNDS:
        for path in sorted((root / folder).rglob("*")):
            if (
                path.suffix in (".jpg", ".png", ".webp")
                and "screenshot" not in path.name
                and path.stat().st_size >= MIN_BACKGROUND_BYTES
            ):
                wallpaper = path if folder.endswith("gnome") else path.parent
                by_wallpaper.setdefault(wallpaper, []).append(path)
    return [
        sorted(paths, key=lambda path: path.stat().st_size)[len(paths) // 2] for paths in by_wallpaper.values()
    ]


def divide(items: list[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """Divide items into training and validation items by a seed, at least two in validation."""
    order = sorted(items)
    random.Random(f"{seed} {order[0].parent.name} {len(order)}").shuffle(order)
    count = max(2, round(len(order) * VAL_SHARE))
    return order[count:], order[:count]


def opened(path: Path, mode: str) -> Image.Image:
    """Return an image file in a Pillow mode."""
    with open_image(path) as image:
        return image.convert(mode)


def background(image: Image.Image, size: int, rng: random.Random) -> Image.Image:
    """Return a random square crop of a photograph, resized and flipped at random."""
    side = round(min(image.size) * rng.uniform(0.35, 1.0))
    left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
    window = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else window


def transformed(cutout: Image.Image, size: int, rng: random.Random) -> Image.Image:
    """Return a cut-out with random flip, rotation, size and brightness."""
    if rng.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cutout = cutout.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
    cutout = cutout.crop(cutout.getchannel("A").point(lambda value: 255 * (value > 127)).getbbox())
    low, high = SIDES
    scale = size * low * (high / low) ** rng.random() / max(cutout.size)
    cutout = cutout.resize([max(4, round(side * scale)) for side in cutout.size], Image.Resampling.LANCZOS)
    lit = ImageEnhance.Brightness(cutout.convert("RGB")).enhance(rng.uniform(0.75, 1.2))
    lit.putalpha(cutout.getchannel("A"))
    return lit


def compose(
    photograph: Image.Image, cutouts: list[tuple[int, Image.Image]], size: int, rng: random.Random
) -> tuple[Image.Image, list[Placed]]:
    """Return an image of `size` x `size` pixels and its objects from back to front."""
    image = background(photograph, size, rng)
    objects: list[Placed] = []
    for label, cutout in cutouts:
        for _ in range(10):
            piece = transformed(cutout, size, rng)
            left, top = rng.randint(0, max(0, size - piece.width)), rng.randint(0, max(0, size - piece.height))
            alpha = Image.new("L", (size, size))
            alpha.paste(piece.getchannel("A"), (left, top))
            whole = np.asarray(alpha) > 127
            behind = [Placed(o.label, o.whole, o.visible & ~whole) for o in objects]
            if whole.any() and all(o.visible.sum() >= MIN_VISIBLE * o.whole.sum() for o in behind):
                image.paste(piece, (left, top), piece)
                objects = [*behind, Placed(label, whole, whole)]
                break
    return image, objects


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed run lengths: in column-major order, zeros first."""
    flat = np.asfortranarray(mask).ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return [int(length) for length in np.diff(np.concatenate([[0], changes]))]


def palette() -> list[int]:
    """Return a palette: gray for the background and one colour per class."""
    colours = Image.new("HSV", (len(CLASSES), 1))
    for index in range(len(CLASSES)):
        colours.putpixel((index, 0), (round(255 * index * 0.618) % 256, 190, (240, 165)[index % 2]))
    values = np.asarray(colours.convert("RGB")).ravel().tolist()
    return [110, 110, 110, *values, *[0] * (768 - 3 - len(values))]


def write_split(
    out: Path,
    split: str,
    count: int,
    cutouts: dict[str, list[Path]],
    photographs: list[Path],
    size: int,
    seed: int,
) -> int:
    """Write images, masks and annotations of a split; return its number of objects."""
    loaded = {path: opened(path, "RGBA") for paths in cutouts.values() for path in paths}
    scenes = []
    for path in photographs:
        reduced = opened(path, "RGB")
        reduced.thumbnail((4 * size, 4 * size))
        scenes.append(reduced)
    for folder in ("images", "masks"):
        (out / folder / split).mkdir(parents=True, exist_ok=True)
    names = list(CLASSES)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        rng = random.Random(f"{seed} {split} {number}")
        wanted = 0 if rng.random() < EMPTY_SHARE else rng.randint(1, MAX_OBJECTS)
        labels = [rng.randrange(len(names)) for _ in range(wanted)]
        chosen = [(label, loaded[rng.choice(cutouts[names[label]])]) for label in labels]
        image, objects = compose(rng.choice(scenes), chosen, size, rng)
        stem = f"{number:05d}"
        image.save(out / "images" / split / f"{stem}.jpg", quality=92)
        mask = np.zeros((size, size), np.uint8)
        for item in objects:
            mask[item.visible] = item.label + 1
            rows, columns = np.flatnonzero(item.visible.any(1)), np.flatnonzero(item.visible.any(0))
            left, top = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": item.label + 1,
                    "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                    "area": int(item.visible.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [size, size], "counts": run_lengths(item.visible)},
                }
            )
        picture = Image.fromarray(mask)
        picture.putpalette(palette())
        picture.save(out / "masks" / split / f"{stem}.png")
        images.append({"id": number + 1, "file_name": f"{stem}.jpg", "width": size, "height": size})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    (out / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return len(annotations)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compose photographs with instances and masks.")
    parser.add_argument("out", type=Path, help="output folder; new or empty")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), help="folder into which the packages were unpacked"
    )
    parser.add_argument("--train", type=int, default=1500, help="number of training images")
    parser.add_argument("--val", type=int, default=300, help="number of validation images")
    parser.add_argument("--size", type=int, default=320, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out, root = arguments.out, arguments.root
    if out.exists() and any(out.iterdir()):
        print(f"error: {out} is not empty; give another folder", file=sys.stderr)
        return 1
    cutouts, photographs = find_cutouts(root), find_backgrounds(root)
    missing = [name for name, paths in cutouts.items() if len(paths) < 4]
    if missing or len(photographs) < 10:
        what = f"no cut-outs of {', '.join(missing)}" if missing else "no backgrounds"
        print(f"error: {what} below {root}; install: apt-get install {' '.join(PACKAGES)}", file=sys.stderr)
        return 1
    divided = {name: divide(paths, arguments.seed) for name, paths in cutouts.items()}
    scenes = divide(photographs, arguments.seed)
    for index, (split, count) in enumerate((("train", arguments.train), ("val", arguments.val))):
        chosen = {name: both[index] for name, both in divided.items()}
        objects = write_split(out, split, count, chosen, scenes[index], arguments.size, arguments.seed)
        pieces = sum(map(len, chosen.values()))
        print(
            f"{split}: {count} images with {objects} objects of {len(CLASSES)} classes, "
            f"from {pieces} cut-outs on {len(scenes[index])} backgrounds"
        )
    (out / "classes.txt").write_text("\n".join(["background", *CLASSES]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
