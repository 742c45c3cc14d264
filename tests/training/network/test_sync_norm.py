"""Batch norm over two processes equals batch norm over all their images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from iformer.training.network.sync_norm import synchronise_norms
from tiny.programs import Forked

SHAPES = {"2d": (6, 5, 4, 3), "1d": (6, 5)}


def make_norm(kind: str) -> nn.Module:
    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm2d(5) if kind == "2d" else nn.BatchNorm1d(5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return nn.Sequential(norm).double() if kind == "2d" else nn.Sequential(norm)


def make_batch(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float64 if kind == "2d" else torch.float32
    shape = SHAPES[kind]
    # in double precision far from zero mean, where the mean square less the squared mean would lose digits
    mean = 1000 if kind == "2d" else 0
    images = torch.randn(shape, generator=generator, dtype=dtype) + mean
    return images, torch.randn(shape, generator=generator, dtype=dtype)


def run(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    results = {}
    for kind in SHAPES:
        model = make_norm(kind)
        synchronise_norms(model, torch.device("cpu"))
        images, weights = make_batch(kind)
        share = slice(0, 2) if rank == 0 else slice(2, 6)  # not even equal shares
        own = images[share].requires_grad_()
        output = model(own)
        (output * weights[share]).sum().backward()
        model.eval()
        evaluated = model(images)
        results[kind] = (output.detach(), own.grad, dict(model.state_dict()), evaluated.detach())
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux" or not distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_with_unequal_shares_normalise_as_one(tmp_path: Path) -> None:
    # not forked from this process: one whose autograd threads have run cannot be
    processes = [Forked(__file__, str(rank), str(tmp_path)) for rank in range(2)]
    errors = [process.communicate(timeout=240)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for kind in SHAPES:
        model = make_norm(kind)
        images, weights = make_batch(kind)
        images.requires_grad_()
        output = model(images)
        (output * weights).sum().backward()
        torch.testing.assert_close(torch.cat([one[kind][0], two[kind][0]]), output.detach())
        torch.testing.assert_close(torch.cat([one[kind][1], two[kind][1]]), images.grad)
        expected = model.state_dict()
        assert one[kind][2].keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(one[kind][2][name], tensor)
            torch.testing.assert_close(one[kind][2][name], two[kind][2][name], rtol=0, atol=0)
        torch.testing.assert_close(one[kind][3], model.eval()(images).detach())


def test_every_norm_of_a_network_is_synchronised_and_keeps_its_kind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4)))
    names = list(model.state_dict())
    synchronise_norms(model, torch.device("cpu"))
    assert isinstance(model[1], nn.BatchNorm2d)
    assert isinstance(model[2][0], nn.BatchNorm1d)
    assert type(model[1]) is not nn.BatchNorm2d
    assert list(model.state_dict()) == names


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]))
