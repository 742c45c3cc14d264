"""The exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from iformer.training.network.ema import ModelEma


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def change(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    model.train()
    model(torch.randn(2, 3, 8, 8))  # changes the running statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_average_follows_its_formula_for_weights_and_statistics() -> None:
    model = network()
    average = ModelEma(model, decay=0.9)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(1, 60):
        change(model, step)
        average.update(step)
        decay = min(0.9, 1 - (1 + step) ** (-2 / 3))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
    for name, tensor in average.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-5)
    assert average.module[1].num_batches_tracked == model[1].num_batches_tracked  # type: ignore[index]


def test_warmup_is_timms() -> None:
    from timm.utils import ModelEmaV3

    model = network()
    ours, theirs = ModelEma(model, decay=0.99), ModelEmaV3(model, decay=0.99, use_warmup=True)
    for step in (1, 5, 100, 998, 999, 1000, 100_000):
        # timm counts from 0, and takes the first weights as they are
        assert ours.decay_at(step) == theirs.get_decay(step + 1)


def test_average_is_apart_from_the_network() -> None:
    model = network()
    average = ModelEma(model, decay=0.5)
    assert not average.module.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = average.module[0].weight.clone()  # type: ignore[index,union-attr,operator]
    change(model, 1)
    assert torch.equal(average.module[0].weight, before)  # type: ignore[index,union-attr,arg-type]
