"""Errors of every runtime's artifacts relative to PyTorch: networks of several sizes, on photographs, in fp32.

The networks have random weights and random statistics in every batch norm, the worst case for folding. iFormer-M
is also exported at 512 pixels with Chunk Hybrid SHMA, and the trained network of the package as it is.
`export_artifact` compares all logits. An error above 1e-3 of the largest logit is a failure; the script then
exits with 1.

    python benchmarks/parity.py --images photographs/ --out benchmarks/results/parity.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iformer.bench.record import write_record
from iformer.data.sources import load_data
from iformer.data.stream import find_images
from iformer.deploy.artifact import artifact_bytes
from iformer.deploy.export import export_artifact
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.models.factory import create_model
from iformer.models.weights.resolve import load_classifier
from iformer.tasks.export import exportable

NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, int] | None]] = {
    "T": ("iformer_t", {}, None),
    "S": ("iformer_s", {}, None),
    "M": ("iformer_m", {}, None),
    "L": ("iformer_l", {}, None),
    "M at 512, chunked": ("iformer_m", {"attention": "chunk_hybrid"}, (512, 512)),
    "T trained on ELPV": ("elpv", {}, None),
}


def network(name: str, options: dict[str, Any]) -> Classifier:
    """Return the shipped network, or a network with random weights and random statistics."""
    torch.manual_seed(0)
    if name == "elpv":
        return load_classifier(name)
    model = create_model(name, **options).eval()
    assert isinstance(model, Classifier)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def main() -> None:
    """Export all networks, print one line per artifact and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", nargs="+", default=[], help="photographs in addition to 16 of ELPV")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cells = load_data("elpv").val.files[:16]
    photographs = [*cells, *(find_images(options.images) if options.images else [])]
    figures: dict[str, Any] = {"photographs": len(photographs)}
    failed = False
    for label in options.networks:
        name, settings, size = NETWORKS[label]
        model = network(name, settings)
        for runtime in options.runtimes:
            row = RUNTIMES[runtime]
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"network{row.suffix}"
                try:
                    info = export_artifact(
                        exportable(model), path, runtime, size=size, batch=1, precision="fp32", images=photographs
                    )
                except UserError as error:
                    failed = True
                    figures.setdefault(label, {})[runtime] = {"failed": str(error)}
                    print(f"{label:18} {runtime:10} failed: {error}", flush=True)
                    continue
                megabytes = artifact_bytes(path) / 1e6
            assert info.parity is not None
            difference = info.parity["max_relative_error"]
            figures.setdefault(label, {})[runtime] = {
                "max relative error": difference,
                "min cosine": info.parity["min_cosine"],
                "top-1 agreement": info.parity["top1_agreement"],
                "clear images": info.parity["clear_images"],
                "megabytes": megabytes,
                "status": info.status,
            }
            print(f"{label:18} {runtime:10} {difference:.1e} of the largest logit, {info.status}", flush=True)
    if options.out:
        write_record(options.out, figures)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
