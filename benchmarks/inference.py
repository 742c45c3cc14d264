"""Latency of folded iFormers and of timm's networks after `fuse()`: eager PyTorch, one thread and batch 1 or more.

Both have the same weights. In one process, each round calls every form once in random order. The figure is the
median over rounds of the speedup relative to timm's fused network in NCHW.

    python benchmarks/inference.py --threads 1 2 --batches 1 8 --out benchmarks/results/inference.json
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from machine import append_record
from torch import nn

from iformer.bench.timing import interleaved
from iformer.config.variants import network_config
from iformer.models.factory import build
from iformer.models.folding import fold
from iformer.models.weights.dialects import from_timm


def forms(name: str, batch: int, size: int) -> dict[str, Callable[[], Any]]:
    """Return calls of the networks by label, after a check that their outputs agree."""
    oracle = timm.create_model(name).eval()
    config = network_config(name)
    ours = build(config)
    ours.load_state_dict(from_timm(oracle.state_dict(), config))
    folded = fold(ours)
    networks: dict[str, tuple[nn.Module, bool]] = {"timm fused": (_fused(name, oracle), False)}
    networks["timm fused, channels-last"] = (_fused(name, oracle).to(memory_format=torch.channels_last), True)
    networks["iformer, not folded"] = (ours.eval(), False)
    networks["iformer folded"] = (folded, False)
    x = torch.randn(batch, 3, size, size)
    expected = oracle(x)
    calls: dict[str, Callable[[], Any]] = {}
    for label, (network, channels_last) in networks.items():
        given = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        torch.testing.assert_close(network(given), expected, atol=1e-4, rtol=1e-4)
        calls[label] = partial(network, given)
    return calls


def _fused(name: str, oracle: nn.Module) -> nn.Module:
    network: Any = timm.create_model(name).eval()
    network.load_state_dict(oracle.state_dict())
    network.fuse()
    return cast(nn.Module, network)


def case(network: str, threads: int, batch: int) -> str:
    """The key of a record's figures: the network's name, and the settings that are not 1."""
    named = f"{threads} threads" if threads > 1 else "", f"batch {batch}" if batch > 1 else ""
    return ", ".join(filter(None, (network, *named)))


@torch.inference_mode()
def main() -> None:
    """Measure, print a table and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["iformer_t", "iformer_s", "iformer_m", "iformer_l"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="images in one call")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    figures = {}
    for threads, batch, network in itertools.product(options.threads, options.batches, options.models):
        torch.set_num_threads(threads)
        name = case(network, threads, batch)
        timings = interleaved(forms(network, batch, options.size), rounds=options.rounds, warmup=5)
        figures[name] = {
            label: timing | {"speedup over timm fused": timings.ratio("timm fused", label)}
            for label, timing in timings.to_plain().items()
        }
        for label, timing in figures[name].items():
            print(f"{name}  {label:26}  {timing['median_ms']:7.2f} ms  {timing['speedup over timm fused']:.3f}x")
    torch.set_num_threads(options.threads[0])  # the record describes the machine with them
    if options.out:
        append_record(options.out, figures)


if __name__ == "__main__":
    main()
