"""The batch norm for GPUs. Triton's interpreter runs its kernels on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from iformer.training.network import batch_norm
from iformer.training.network.batch_norm import BatchNormPass, train_norms_fast

pytest.importorskip("triton")


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_kernels")


@pytest.mark.skipif(INTERPRETED, reason="starts the other tests")
def test_kernels() -> None:
    """Triton reads the variable when it is imported, so the tests of the kernels run in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "8 passed" in done.stdout


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several small tiles and parts, as large batches have; the interpreter is slow."""
    monkeypatch.setattr(batch_norm, "_ELEMENTS", 256)
    monkeypatch.setattr(batch_norm, "_PARTS", (4, 2))


def both(x: Tensor, gradient: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, gradients and running statistics of `nn.BatchNorm2d` in fp64 and of the kernels."""
    torch.manual_seed(1)
    channels = x.shape[1]
    expected = nn.BatchNorm2d(channels)
    nn.init.uniform_(expected.weight, 0.5, 2)
    nn.init.normal_(expected.bias)
    nn.init.normal_(expected.running_mean)
    nn.init.uniform_(expected.running_var, 0.5, 2)
    found = nn.BatchNorm2d(channels)
    found.load_state_dict(expected.state_dict())
    expected.double()
    results = []
    for norm, images in ((expected, x.double()), (found, x.clone())):
        images.requires_grad_()
        if norm is expected:
            output = norm(images)
        else:
            output = BatchNormPass.apply(
                images, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, norm.momentum
            )
        output.backward(gradient.to(output.dtype))
        results.append(
            {
                "output": output.detach(),
                "input": images.grad,
                "weight": norm.weight.grad,
                "bias": norm.bias.grad,
                "mean": norm.running_mean,
                "variance": norm.running_var,
            }
        )
    return results[0], results[1]


@interpreted
@pytest.mark.parametrize(
    ("shape", "mean"),
    [((3, 24, 5, 7), 0.0), ((2, 3, 9, 4), 3.0), ((2, 96, 3, 3), -2.0), ((4, 130, 1, 1), 0.5), ((1, 8, 6, 6), 0.0)],
)
def test_outputs_gradients_and_statistics_are_those_of_torch(shape: tuple[int, ...], mean: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 2 + mean).contiguous(memory_format=torch.channels_last)
    expected, found = both(x, torch.randn(shape))  # the gradient is NCHW
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].double(), value, rtol=1e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert found["output"].is_contiguous(memory_format=torch.channels_last)


@interpreted
def test_a_mean_far_from_zero_costs_no_digits() -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, 8, 6, 6) + 1000).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(8)
    nn.init.constant_(norm.running_mean, 999.0)
    output = BatchNormPass.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, 1e-5, 0.1)
    expected = nn.functional.batch_norm(x.double(), None, None, training=True)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-3)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_inputs_and_outputs_only(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(3, 16, 4, 4).to(dtype)
    expected, found = both(x, gradient)
    assert found["output"].dtype == found["input"].dtype == dtype
    for name in ("weight", "bias", "mean", "variance"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=2e-5)
    step = torch.finfo(dtype).eps  # the interpreter cuts digits off where a GPU rounds
    for name in ("output", "input"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=step, atol=1e-5)


@pytest.mark.skipif(INTERPRETED, reason="does not use the kernels")
def test_only_plain_batch_norms_change_and_only_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    network = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.SyncBatchNorm(4),
        nn.BatchNorm1d(4),
    )
    keys = list(network.state_dict())
    train_norms_fast(network, torch.device("cpu"))
    assert type(network[0]) is nn.BatchNorm2d
    train_norms_fast(network, torch.device("cuda"))
    assert [type(norm) for norm in network[1:]] == [
        nn.BatchNorm2d,
        nn.BatchNorm2d,
        nn.SyncBatchNorm,
        nn.BatchNorm1d,
    ]
    assert type(network[0]) is not nn.BatchNorm2d
    assert isinstance(network[0], nn.BatchNorm2d)
    assert list(network.state_dict()) == keys
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(network[0](x), nn.BatchNorm2d(4)(x))  # on a CPU: as usual


P = "*fp32"
KERNELS: list[tuple[str, dict[str, str], dict[str, int | bool]]] = [
    *(
        (
            "column_sums",
            {**dict.fromkeys(("x_ptr", "y_ptr"), "*bf16"), "shift_ptr": P, "sums_ptr": P, "parts": "i32"},
            {"ROWS": 64, "COLUMNS": 64, "HAS_Y": has_y},
        )
        for has_y in (False, True)
    ),
    *(
        (
            "scale_columns",
            {**dict.fromkeys(("x_ptr", "y_ptr", "out_ptr"), "*bf16"), "factors_ptr": P},
            {"ROWS": 16, "COLUMNS": 128, "HAS_Y": has_y},
        )
        for has_y in (False, True)
    ),
    (
        "finish_forward",
        {
            **dict.fromkeys(("sums_ptr", "weight_ptr", "bias_ptr", "mean_ptr", "var_ptr", "out_ptr"), P),
            "eps": "fp32",
            "momentum": "fp32",
        },
        {"PARTS": 512, "COLUMNS": 16},
    ),
    (
        "finish_backward",
        dict.fromkeys(("sums_ptr", "statistics_ptr", "weight_ptr", "out_ptr"), P),
        {"PARTS": 128, "COLUMNS": 16},
    ),
]


@pytest.mark.skipif(INTERPRETED, reason="compiles")
@pytest.mark.parametrize(("name", "types", "constants"), KERNELS)
def test_kernels_compile_for_an_h100(name: str, types: dict[str, str], constants: dict[str, int | bool]) -> None:
    """The interpreter takes more than the compiler, which needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from iformer.training.network import norm_kernels

    kernel = getattr(norm_kernels, name)
    types = {"rows": "i32", "columns": "i32", **types}
    signature = {arg: types.get(arg, "constexpr") for arg in kernel.arg_names}
    constexprs = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    compiled = compile(ASTSource(kernel, signature, constexprs), target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 1000
