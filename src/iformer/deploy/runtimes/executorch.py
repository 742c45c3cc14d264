"""ExecuTorch: export to one `.pte` file that runs in XNNPACK, and ExecuTorch on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.dependencies import require
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.runtimes.xnnpack import for_xnnpack
from iformer.deploy.spec import EMBEDDED, Calibration, ExportSpec, operation_counts

EXTRA = "executorch"


def write(spec: ExportSpec, path: Path) -> dict[str, Any]:
    """Convert a network; the record lists the operations that do not run in XNNPACK."""
    exir = require("executorch.exir", extra=EXTRA)
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", extra=EXTRA)
    debug = require("executorch.devtools.backend_debug", extra=EXTRA)
    spec = for_xnnpack(spec)
    example = (spec.example("NHWC"),)
    module: Any = torch.export.export(spec.module("NHWC"), example).module()
    if spec.calibration is not None:
        module = _quantized(module, spec, spec.calibration)
    elif not spec.plain:
        module = _rewritten_for_xnnpack(module)
    lowered = exir.to_edge_transform_and_lower(
        torch.export.export(module, example),
        partitioner=[xnnpack.XnnpackPartitioner()],
        constant_methods=spec.embedded(),
    )
    delegation = debug.get_delegation_info(
        lowered.exported_program().graph_module
    )  # before the program is changed below
    with open(path, "wb") as file:
        lowered.to_executorch().write_to_file(file)
    counts = dict(delegation.delegation_by_operator)
    counts.pop("getitem", None)  # selects one output of another operation
    return operation_counts(
        {name: count.delegated for name, count in counts.items() if count.delegated},
        not_delegated={name: count.non_delegated for name, count in counts.items() if count.non_delegated},
        delegates=delegation.num_delegated_subgraphs,
    )


class ExecuTorchRunner(ArtifactRunner):
    """An ExecuTorch artifact on the CPU; the number of threads holds for the whole process."""

    def open(self, threads: int) -> Mapping[str, str]:
        """Load the program into memory."""
        runtime = require("executorch.runtime", extra=EXTRA)
        if threads:
            bindings = require("executorch.extension.pybindings.portable_lib", extra=EXTRA)
            bindings._unsafe_reset_threadpool(threads)  # unsafe only while a program runs
        # from bytes: a program loaded from a path reads the file again at later calls
        self.program = runtime.Runtime.get().load_program(self.path.read_bytes())  # must outlive its methods
        self.method = self.program.load_method("forward")
        names = self.program.method_names & set(EMBEDDED)
        return {name: str(self.program.load_method(name).execute([])[0]) for name in names}

    def run(self, fed: Tensor) -> Sequence[Any]:
        """See `ArtifactRunner.run`."""
        return [output.numpy() for output in self.method.execute([fed])]


RUNNER = ExecuTorchRunner


def _rewritten_for_xnnpack(module: Any) -> Any:
    """Replace splits by slices, and pooling by pooling that keeps the axes.

    XNNPACK takes neither in its original form; each would split the program into one more delegate.
    """
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


def _quantized(module: Any, spec: ExportSpec, calibration: Calibration) -> Any:
    """Quantize with PT2E and XNNPACK's quantizer: one weight scale per channel, one scale per activation."""
    xnnpack = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", extra=EXTRA)
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", extra=EXTRA)
    kept = tuple(f".{name}" for name in calibration.kept)

    def is_quantized(node: Any) -> bool:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        return not (kept and stack and f".{stack[-1][0]}".endswith(kept))

    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(is_quantized)
    prepared = pt2e.prepare_pt2e(module, quantizer)
    for fed in spec.calibration_inputs("NHWC"):
        prepared(fed)
    return pt2e.convert_pt2e(prepared)
