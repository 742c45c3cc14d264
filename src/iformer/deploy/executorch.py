"""ExecuTorch: one `.pte` file whose operations run in XNNPACK, and running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.config.dependencies import require
from iformer.deploy.graph import Graph, Written, operation_counts
from iformer.deploy.runner import ArtifactRunner
from iformer.errors import UserError

EXTRA = "executorch"


def write(graph: Graph, path: Path) -> Written:
    """Convert a network; the record lists, by operation, what XNNPACK does not take."""
    exir = require("executorch.exir", extra=EXTRA)
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", extra=EXTRA)
    debug = require("executorch.devtools.backend_debug", extra=EXTRA)
    program = torch.export.export(graph.module("NHWC"), (graph.example("NHWC"),))
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


def load(path: Path, *, threads: int = 0) -> ExecuTorchRunner:
    """An artifact in ExecuTorch; its Python runtime has no setting for threads."""
    return ExecuTorchRunner(path)


load_for_check = load


class ExecuTorchRunner(ArtifactRunner):
    """An ExecuTorch artifact in the runtime's Python binding."""

    def __init__(self, path: Path) -> None:
        """Load an artifact and its record.

        Raises:
            MissingDependencyError: executorch is not installed.
            UserError: the file cannot be loaded, or what is written in it is not what its record says.
        """
        runtime = require("executorch.runtime", extra=EXTRA)
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
