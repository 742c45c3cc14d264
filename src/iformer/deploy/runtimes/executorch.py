"""ExecuTorch: one `.pte` file whose operations run in XNNPACK, and running it."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.dependencies import require
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.runtimes.xnnpack import for_xnnpack
from iformer.deploy.spec import ExportSpec, Written, operation_counts
from iformer.errors import UserError

EXTRA = "executorch"


def write(graph: ExportSpec, path: Path) -> Written:
    """Convert a network; the record lists, by operation, what XNNPACK does not take."""
    exir = require("executorch.exir", extra=EXTRA)
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", extra=EXTRA)
    debug = require("executorch.devtools.backend_debug", extra=EXTRA)
    graph = for_xnnpack(graph)
    example = (graph.example("NHWC"),)
    module: Any = torch.export.export(graph.module("NHWC"), example).module()
    if graph.precision == "int8":
        module = _quantized(module, graph)
    elif not graph.plain:
        module = _in_forms_that_xnnpack_takes(module)
    program = torch.export.export(module, example)
    lowered = exir.to_edge_transform_and_lower(
        program, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods=graph.embedded()
    )
    delegation = debug.get_delegation_info(lowered.exported_program().graph_module)
    delegated, left = {}, {}
    for name, counts in delegation.delegation_by_operator.items():
        if name == "getitem":  # picks an output of another operation; nothing is computed
            continue
        if counts.delegated:
            delegated[name] = counts.delegated
        if counts.non_delegated:
            left[name] = counts.non_delegated
    with open(path, "wb") as file:
        lowered.to_executorch().write_to_file(file)
    return Written(
        input_dtype="float32" if graph.raw else "uint8",
        input_layout="NCHW" if graph.raw else "NHWC",
        graph=operation_counts(delegated, not_delegated=left, delegates=delegation.num_delegated_subgraphs),
    )


def _in_forms_that_xnnpack_takes(module: Any) -> Any:
    """Splits as slices, and pooling that keeps the sides; otherwise each cuts the graph into one more delegate."""
    aten = torch.ops.aten
    nodes: torch.fx.Graph = module.graph
    for node in list(nodes.nodes):
        if node.target == aten.split_with_sizes.default:
            source, sizes, axis = (*node.args, 0)[:3]
            starts = list(accumulate(sizes, initial=0))
            for user in list(node.users):
                part = user.args[1]
                with nodes.inserting_before(user):
                    piece = nodes.call_function(aten.slice.Tensor, (source, axis, starts[part], starts[part + 1]))
                user.replace_all_uses_with(piece)
                nodes.erase_node(user)
            nodes.erase_node(node)
        elif node.target == aten.mean.dim and list(node.args[1]) == [2, 3] and not node.args[2:]:
            with nodes.inserting_before(node):
                pooled = nodes.call_function(aten.mean.dim, (node.args[0], [2, 3], True))
                flat = nodes.call_function(aten.view.default, (pooled, list(node.meta["val"].shape)))
            node.replace_all_uses_with(flat)
            nodes.erase_node(node)
    module.recompile()
    return module


def _quantized(module: Any, graph: ExportSpec) -> Any:
    """PT2E with XNNPACK's quantizer: a scale for each channel of weights, one for each activation."""
    xnnpack = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", extra=EXTRA)
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", extra=EXTRA)
    assert graph.calibration is not None
    kept = tuple(f".{name}" for name in graph.calibration.kept)

    def is_quantized(node: Any) -> bool:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        return not (kept and stack and f".{stack[-1][0]}".endswith(kept))

    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(is_quantized)
    prepared = pt2e.prepare_pt2e(module, quantizer)
    for fed in graph.calibration_inputs("NHWC"):
        prepared(fed)
    return pt2e.convert_pt2e(prepared)


def load(path: Path, *, threads: int = 0) -> ExecuTorchRunner:
    """An artifact in ExecuTorch; the threads are those of the whole process."""
    return ExecuTorchRunner(path, threads=threads)


load_for_check = load


class ExecuTorchRunner(ArtifactRunner):
    """An ExecuTorch artifact in the runtime's Python binding."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load an artifact and its record.

        Raises:
            MissingDependencyError: executorch is not installed.
            UserError: the file cannot be loaded, or what is written in it is not what its record says.
        """
        runtime = require("executorch.runtime", extra=EXTRA)
        if threads:
            bindings = require("executorch.extension.pybindings.portable_lib", extra=EXTRA)
            bindings._unsafe_reset_threadpool(threads)  # unsafe while a program runs; none does yet
        super().__init__(path)
        try:
            # from memory: a program that was loaded from a file reads it again at later calls
            self.program = runtime.Runtime.get().load_program(path.read_bytes())
            self.method = self.program.load_method("forward")
            names = self.program.method_names & {"class_names", "preprocessing"}
            found = {name: str(self.program.load_method(name).execute([])[0]) for name in names}
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} cannot be loaded by ExecuTorch: {error}") from None
        self.check_embedded(found)

    def run(self, fed: Tensor) -> Any:
        """What a benchmark times: the input as `prepare` makes it (contiguous) to logits, B x K."""
        return self.method.execute([fed])[0].numpy()
