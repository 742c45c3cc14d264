"""Throughput of `iformer predict` on a folder of photographs as a share of the network's throughput.

In one process, each round does both in random order: it predicts the folder, from files to top-k classes, and
calls the same folded network on as many images from a tensor in memory, at the same batch size. The figure is
the median over rounds of the ratio of the throughputs.

    python benchmarks/predict_rate.py --model iformer_m --images 256 --batch-size 32 --rounds 7
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from machine import append_record

from iformer import create_model, fold
from iformer.bench.timing import interleaved
from iformer.data.stream import find_images
from iformer.dependencies import require
from iformer.device import resolve_device
from iformer.models.classifier import Classifier
from iformer.tasks.classification.predict import Predictor


def main() -> None:
    """Measure, print the throughputs and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="iformer_m")
    parser.add_argument("--folder", help="folder of photographs; those of the elpv-dataset package by default")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    folder = options.folder or Path(require("elpv_dataset", extra="elpv").__file__).parent
    paths = find_images([folder])[: options.images]
    paths = paths[: len(paths) // options.batch_size * options.batch_size]
    model = create_model(options.model).eval()
    assert isinstance(model, Classifier)
    device = resolve_device(options.device)
    network = fold(model).to(device)
    predictor = Predictor(
        model,
        batch_size=options.batch_size,
        workers=options.workers,
        device=device,
    )
    height, width = predictor.preprocessing.size
    batch = torch.randn(options.batch_size, 3, height, width).to(device)
    batch = batch.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(len(paths) // options.batch_size):
            network(batch)

    def predict() -> None:
        for _ in predictor.predict(paths):
            pass

    cuda = device.type == "cuda"
    timings = interleaved(
        {"predict": predict, "bare": bare},
        rounds=options.rounds,
        warmup=1,
        synchronize=torch.cuda.synchronize if cuda else None,
    )
    figures = {
        "model": options.model,
        "batch_size": options.batch_size,
        "images": len(paths),
        "predict_images_per_second": len(paths) / timings.median("predict"),
        "bare_images_per_second": len(paths) / timings.median("bare"),
        "share_of_bare_rate": timings.ratio("bare", "predict"),
        "timings": timings.to_plain(),
    }
    print(
        f"{options.model}: predict {figures['predict_images_per_second']:.1f} images/s, bare network "
        f"{figures['bare_images_per_second']:.1f}, share {figures['share_of_bare_rate']:.3f}"
    )
    if options.out:
        append_record(options.out, figures, device=device)


if __name__ == "__main__":
    main()
