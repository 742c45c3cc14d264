"""The machine that a benchmark ran on, and records of several machines in one file.

A file of `benchmarks/results` that depends on the machine is `{"records": [...]}`, oldest first. Each record has a
`machine` with a `fingerprint`: it is equal on machines with the same processor name, cores and instruction sets.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from iformer.bench.record import record, write_json
from iformer.training.records.provenance import cpu_name

LOAD = os.getloadavg()
"""Processes that wanted to run in the last 1, 5 and 15 minutes, when the benchmark started."""

_INSTRUCTIONS = ("avx", "amx", "fma", "asimd", "neon", "sve")
_LIBRARIES = ("onnxruntime", "openvino", "executorch", "ai-edge-litert", "ncnn")


def fingerprint(cpu: str, cores: int | None = None, instructions: list[str] | None = None) -> str:
    """Return 8 hexadecimal digits for a kind of processor; load and versions do not change them.

    Args:
        cpu: the processor's name.
        cores: the number of logical cores; None where a record does not say it.
        instructions: the instruction sets; None where a record does not say them.
    """
    return hashlib.sha256(json.dumps([cpu, cores, instructions]).encode()).hexdigest()[:8]


@functools.cache
def describe(size: int = 1024) -> dict[str, Any]:
    """Return what decides the speed of this machine; it measures for about a second.

    Args:
        size: the matrix products are those of `size` x `size` matrices in fp32.
    """
    cpu, cores = cpu_name(), os.cpu_count() or 1
    capabilities = torch.cpu.get_capabilities()
    instructions = sorted(
        name for name, has in capabilities.items() if has is True and name.startswith(_INSTRUCTIONS)
    )
    return {
        "fingerprint": fingerprint(cpu, cores, instructions),
        "cpu": cpu,
        "architecture": platform.machine(),
        "cores": cores,
        "instructions": instructions,
        "caches": _caches(),
        "libraries": _libraries(),
        "load": list(LOAD),
        "matrix product, GFLOP/s": matrix_products(size),
    }


@torch.inference_mode()
def matrix_products(size: int, repeats: int = 9) -> dict[str, float]:
    """Return 10^9 operations per second of a product of `size` x `size` matrices by library, on torch's threads.

    PyTorch's `linear` uses the library for matrix products that it was built with (MKL on x86), its convolution
    oneDNN.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    calls: dict[str, Callable[[], Any]] = {"torch linear": lambda: F.linear(a, b)}
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        rows = a.T.reshape(1, size, size, 1).contiguous(memory_format=torch.channels_last)
        weight = b.reshape(size, size, 1, 1).contiguous(memory_format=torch.channels_last)
        calls["oneDNN convolution"] = lambda: torch.mkldnn_convolution(
            rows, weight, None, (0, 0), (1, 1), (1, 1), 1
        )
    onnx = _onnx_product(a, b)
    if onnx is not None:
        calls["ONNX Runtime"] = onnx
    rates = {}
    for name, call in calls.items():
        call()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        rates[name] = round(2e-9 * size**3 / statistics.median(seconds), 1)
    return rates


def append_record(path: Path, figures: dict[str, Any], *, device: torch.device | None = None) -> None:
    """Add figures with their provenance and this machine to the records of a file, and print its path.

    A record of the same machine, day and command is replaced.
    """
    new = {**record(figures, device=device), "machine": describe()}
    records = json.loads(path.read_text())["records"] if path.is_file() else []
    write_json(path, {"records": [*(old for old in records if _run(old) != _run(new)), new]})
    print(f"{path}: record of machine {new['machine']['fingerprint']}")


def _run(found: dict[str, Any]) -> tuple[str, str, str]:
    return found["machine"]["fingerprint"], found["created"][:10], found["command"]


def _onnx_product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any] | None:
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    shape = list(a.shape)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(b.numpy(), "b")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"a": a.numpy()}
    return lambda: session.run(None, given)


def _caches() -> dict[str, str]:
    """Sizes of the first core's caches as Linux says them; empty elsewhere."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level} {kind.lower()}"] = size
    return found


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
