"""Parameters and multiply-accumulates of the six sizes, compared with the specification and another counter."""

from __future__ import annotations

import warnings

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from iformer.config.variants import network_config
from iformer.models.complexity import count_macs, count_parameters
from iformer.models.factory import build
from iformer.models.folding import fold

# (parameters in millions with norms folded, GMACs at 224), to the digits that are published.
# H was counted with its layer scales as parameters of their own.
PUBLISHED = {
    "iformer_t": (2.873, 0.5305),
    "iformer_s": (6.540, 1.0924),
    "iformer_m": (8.879, 1.6399),
    "iformer_l": (14.738, 2.8267),
    "iformer_l2": (24.455, 4.5311),
    "iformer_h": (99.436, 15.5296),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
@pytest.mark.parametrize("distillation", [False, True])
def test_published_sizes(name: str, distillation: bool) -> None:
    with torch.device("meta"):
        model = build(network_config(name).with_options(distillation=distillation))
    folded = fold(model)
    layer_scales = sum(p.numel() for key, p in model.named_parameters() if key.endswith("gamma"))
    assert (layer_scales > 0) == (name == "iformer_h")
    parameters, gmacs = PUBLISHED[name]
    assert round((count_parameters(folded) + layer_scales) / 1e6, 3) == parameters
    assert round(count_macs(folded, (224, 224)) / 1e9, 4) == gmacs


def test_folding_costs_no_operation() -> None:
    """Norms, scales and sums are not counted, so only the head may differ: two classifiers become one."""
    with torch.device("meta"):
        model = build(network_config("iformer_t"))
    assert count_macs(model, (224, 224)) == count_macs(fold(model), (224, 224))


@pytest.mark.parametrize("name", ["iformer_t", "iformer_m"])
@pytest.mark.parametrize("size", [(224, 224), (192, 256)])
def test_fvcore_agrees(name: str, size: tuple[int, int]) -> None:
    folded = fold(build(network_config(name)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(folded, torch.zeros(1, 3, *size))
        analysis.unsupported_ops_warnings(False)
        # fvcore names what it counts by operator; the pool and the norms are not in our count
        counted = analysis.by_operator()
    ours = count_macs(folded, size)
    theirs = sum(counted[op] for op in ("conv", "linear", "matmul", "bmm", "addmm") if op in counted)
    assert ours == theirs
