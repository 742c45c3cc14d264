"""ExecuTorch: export to one `.pte` file for one backend (by default XNNPACK, on the CPU), and the runner."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.dependencies import require
from iformer.deploy.artifact import read_record
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.runtimes.coreml import read_program
from iformer.deploy.runtimes.mil import evaluate_program
from iformer.deploy.runtimes.registry import BACKENDS, find_runtime
from iformer.deploy.runtimes.xnnpack import for_xnnpack
from iformer.deploy.spec import EMBEDDED, Calibration, ExportSpec, operation_counts
from iformer.errors import MissingDependencyError, UnknownNameError, UserError, one_line

EXTRA = "executorch"


REGISTERED = {"xnnpack": "XnnpackBackend", "coreml": "CoreMLBackend", "vulkan": "VulkanBackend"}
"""Name of each backend in ExecuTorch's registry. QNN is left out: some builds list it, but it runs on Qualcomm's
chips only."""

CAST = "dim_order_ops__to_dim_order_copy_default"
"""Name, in the record's `graph`, of the operation that casts the pixels to floats."""


def write(spec: ExportSpec, path: Path) -> dict[str, Any]:
    """Convert a network to a program; the record's `graph` lists the operations that the backend does not run."""
    require("executorch.exir", extra=EXTRA)
    debug = require("executorch.devtools.backend_debug", extra=EXTRA)
    lowered = LOWER[spec.backend or BACKENDS[0].name](spec)
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
        **({"soc_model": spec.soc_model} if spec.soc_model else {}),
    )


def _lower_to_xnnpack(spec: ExportSpec) -> Any:
    xnnpack = _backend_module("xnnpack.partition.xnnpack_partitioner")
    spec = for_xnnpack(spec)
    module: Any = torch.export.export(spec.module("NHWC"), (spec.example("NHWC"),)).module()
    if spec.calibration is not None:
        module = _quantized(module, spec, spec.calibration)
    elif not spec.plain:
        module = _rewritten(module)
    return _lowered(spec, module, xnnpack.XnnpackPartitioner())


def _lower_to_coreml(spec: ExportSpec) -> Any:
    coremltools = require("coremltools", extra="coreml")
    compiler = _backend_module("apple.coreml.compiler")
    partition = _backend_module("apple.coreml.partition")
    kinds = coremltools.precision
    options = compiler.CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=coremltools.target.iOS16,
        compute_precision=kinds.FLOAT16 if spec.precision == "fp16" else kinds.FLOAT32,
    )
    # Core ML has no uint8 tensors, so the cast of the pixels stays outside
    cast = ["dim_order_ops._to_dim_order_copy.default"]
    partitioner = partition.CoreMLPartitioner(compile_specs=options, skip_ops_for_coreml_delegation=cast)
    return _lowered(spec, spec.module("NHWC", float_first=True), partitioner)


def _lower_to_vulkan(spec: ExportSpec) -> Any:
    vulkan = _backend_module("vulkan.partitioner.vulkan_partitioner")
    partitioner = vulkan.VulkanPartitioner({"force_fp16": spec.precision == "fp16"})
    module: Any = torch.export.export(spec.module("NHWC", float_first=True), (spec.example("NHWC"),)).module()
    return _lowered(spec, _rewritten(module), partitioner)


def _lower_to_qnn(spec: ExportSpec) -> Any:
    """Lower to Qualcomm's NPU with Qualcomm's SDK, which has its own licence and must be installed by the user."""
    schema = _backend_module("qualcomm.serialization.qc_schema")
    chips = schema.QcomChipset.__members__
    if spec.soc_model not in chips:
        raise UnknownNameError("soc-model", str(spec.soc_model), chips)
    if not os.environ.get("QNN_SDK_ROOT"):
        raise UserError(
            "QNN_SDK_ROOT is not set; install Qualcomm's AI Engine Direct SDK and set it to the SDK's folder"
        )
    qnn = _backend_module("qualcomm.utils.utils")
    options = qnn.generate_qnn_executorch_compiler_spec(
        soc_model=chips[spec.soc_model], backend_options=qnn.generate_htp_compiler_spec(use_fp16=True)
    )
    return qnn.to_edge_transform_and_lower_to_qnn(
        spec.module("NHWC"), (spec.example("NHWC"),), options, constant_methods=spec.embedded()
    )


LOWER = {
    "xnnpack": _lower_to_xnnpack,
    "coreml": _lower_to_coreml,
    "vulkan": _lower_to_vulkan,
    "qnn": _lower_to_qnn,
}


def _lowered(spec: ExportSpec, module: Any, partitioner: Any) -> Any:
    """Lower a module to a backend. Operations that the partitioner leaves out run in ExecuTorch's own kernels."""
    exir = require("executorch.exir", extra=EXTRA)
    return exir.to_edge_transform_and_lower(
        torch.export.export(module, (spec.example("NHWC"),)),
        partitioner=[partitioner],
        constant_methods=spec.embedded(),
    )


def _backend_module(name: str) -> Any:
    """Import a module of `executorch.backends`.

    Raises:
        MissingDependencyError: the installed build of ExecuTorch has no such backend.
    """
    try:
        return require(f"executorch.backends.{name}", extra=EXTRA)
    except MissingDependencyError as error:
        backend = name.partition(".")[0]
        raise MissingDependencyError(
            f"the installed ExecuTorch has no usable backend {backend} ({one_line(error)}); install another build"
        ) from error


class ExecuTorchRunner(ArtifactRunner):
    """Runner of ExecuTorch artifacts. The number of threads applies to the whole process."""

    @classmethod
    def for_check(cls, path: Path) -> ArtifactRunner | None:
        """Load an artifact, or for Core ML its stand-in; None if this machine can run neither."""
        info = read_record(path)
        if _runs_here(info.backend):
            return cls(path)
        # the strides of a detector are cast outside the delegate too and become further inputs of it
        is_whole = info.graph["delegates"] == 1 and info.graph["not_delegated"] in ({}, {CAST: 1})
        return CoreMLDelegateReference(path) if info.backend == "coreml" and is_whole else None

    def open(self, threads: int) -> Mapping[str, str]:
        """Load the program into memory and return its metadata."""
        runtime = require("executorch.runtime", extra=EXTRA)
        if not _runs_here(self.info.backend):
            title = find_runtime("executorch").with_backend(self.info.backend).title
            raise UserError(f"{self.path}: {title} does not run on this machine; it was converted, not run here")
        if threads:
            bindings = require("executorch.extension.pybindings.portable_lib", extra=EXTRA)
            bindings._unsafe_reset_threadpool(threads)  # unsafe only while a program runs
        # from bytes: a program loaded from a path reads the file again at later calls
        self.program = runtime.Runtime.get().load_program(self.path.read_bytes())  # outlives its methods
        self.method = self.program.load_method("forward")
        return _stored_metadata(self.program)

    def run(self, fed: Tensor) -> Sequence[Any]:
        """Run the program once; see `ArtifactRunner.run`."""
        return [output.numpy() for output in self.method.execute([fed])]


class CoreMLDelegateReference(ArtifactRunner):
    """Stand-in for a Core ML delegate: the cast to floats, then the delegate's program evaluated in PyTorch.

    Like `CoreMLReference`, it detects wrong conversions and damaged weights, but does not show Core ML's rounding.
    """

    stand_in: str | None = (
        "the definition of Core ML's program, computed by PyTorch; Core ML runs on Apple's devices only"
    )

    def open(self, threads: int) -> Mapping[str, str]:
        """Read Core ML's program from the artifact's only delegate, and return the artifact's metadata."""
        serialized = require("executorch.exir._serialize._program", extra=EXTRA)
        package = _backend_module("apple.coreml.executorchcoreml")
        content = self.path.read_bytes()
        (delegate,) = serialized.deserialize_pte_binary(content).program.backend_delegate_data
        with tempfile.TemporaryDirectory() as folder:
            package.unflatten_directory_contents(bytes(delegate.data), folder)
            unpacked = Path(folder) / "lowered_module"
            self.names: dict[str, Any] = json.loads((unpacked / "metadata.json").read_text())
            _, self.function = read_program(unpacked / "model.mlpackage")
        runtime = require("executorch.runtime", extra=EXTRA)
        return _stored_metadata(runtime.Runtime.get().load_program(content))

    def run(self, fed: Tensor) -> Sequence[Any]:
        """Evaluate the delegate's program once; see `ArtifactRunner.run`."""
        (name,) = self.names["inputNames"]
        found = evaluate_program(self.function, {name: fed.float()})
        return [found[name].numpy() for name in self.names["outputNames"]]


RUNNER = ExecuTorchRunner


def _stored_metadata(program: Any) -> dict[str, str]:
    """Return a program's metadata from its constant methods, which run without a backend; see `EMBEDDED`."""
    names = program.method_names & set(EMBEDDED)
    return {name: str(program.load_method(name).execute([])[0]) for name in names}


def _runs_here(backend: str | None) -> bool:
    """Return whether the installed ExecuTorch can run programs of a backend on this machine."""
    registry = require("executorch.runtime", extra=EXTRA).Runtime.get().backend_registry
    name = REGISTERED.get(backend or BACKENDS[0].name)
    return name is not None and bool(registry.is_available(name))


def _rewritten(module: Any) -> Any:
    """Replace splits by slices, and global pooling by pooling that keeps the axes.

    XNNPACK supports neither in its original form, and Vulkan does not support the pooling. Each unsupported
    operation would split the program into one more delegate.
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


def _after_exponentials(nodes: torch.fx.Graph) -> set[torch.fx.Node]:
    """Return the exponentials of a graph and all nodes that depend on them, such as a detector's boxes.

    Their values span several powers of ten: in 8 bits, all but the largest boxes would be lost.
    """
    found: set[torch.fx.Node] = set()
    for node in nodes.nodes:
        if node.target == torch.ops.aten.exp.default or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _quantized(module: Any, spec: ExportSpec, calibration: Calibration) -> Any:
    """Quantize a module with PT2E and XNNPACK's quantizer: one scale per weight channel, one per activation."""
    xnnpack = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", extra=EXTRA)
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", extra=EXTRA)
    kept = tuple(f".{name}" for name in calibration.kept)

    def is_quantized(node: Any) -> bool:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        return not (kept and stack and f".{stack[-1][0]}".endswith(kept))

    base: Any = xnnpack.XNNPACKQuantizer

    class Quantizer(base):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            model = super().annotate(model)
            for node in _after_exponentials(model.graph):  # the filter does not reach concatenations
                node.meta.pop("quantization_annotation", None)
            return model

    quantizer = Quantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(is_quantized)
    prepared = pt2e.prepare_pt2e(module, quantizer)
    for fed in spec.calibration_inputs("NHWC"):
        prepared(fed)
    return pt2e.convert_pt2e(prepared)
