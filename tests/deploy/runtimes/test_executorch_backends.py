"""Programs for ExecuTorch's other backends: what is converted, what the record says, and who refuses them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from iformer.cli.main import main
from iformer.deploy.artifact import read_record
from iformer.deploy.export import export_artifact
from iformer.deploy.runner import open_artifact
from iformer.deploy.runtimes import registry
from iformer.deploy.runtimes.registry import find_runtime
from iformer.deploy.spec import ExportSpec, operation_counts
from iformer.errors import MissingDependencyError, UnknownNameError, UserError
from iformer.models.classifier import Classifier
from iformer.models.weights.checkpoint import save
from iformer.tasks.export import exportable
from tiny.dense import BUILDERS
from tiny.networks import labelled_classifier
from tiny.packages import need_packages

need_packages("executorch")

ONLY_THE_CAST = {"dim_order_ops__to_dim_order_copy_default": 1}
"""Of the pixels to floats."""


@pytest.fixture(scope="module")
def vulkan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact for Vulkan from the verb, whose program is a few bytes: converting takes long. Read only."""
    from iformer.deploy.runtimes import executorch

    def write(spec: ExportSpec, path: Path) -> dict[str, Any]:
        assert (spec.backend, spec.precision) == ("vulkan", "fp32")
        path.write_bytes(b"a program")
        return operation_counts({"aten_convolution_default": 33}, not_delegated=ONLY_THE_CAST, delegates=1)

    folder = tmp_path_factory.mktemp("vulkan")
    save(labelled_classifier(), folder / "tiny.safetensors")
    arguments = ["--to", "executorch", "--executorch-backend", "vulkan", "--out", f"{folder}/"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executorch, "write", write)
        assert main(["export", str(folder / "tiny.safetensors"), *arguments]) == 0
    return folder / "tiny_vulkan.pte"


def test_the_record_says_that_nothing_was_compared(vulkan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = read_record(vulkan)
    assert (info.runtime, info.backend, info.precision) == ("executorch", "vulkan", "fp32")
    assert (info.status, info.checked_by, info.parity) == ("converted, not run here", "", None)
    assert main(["info", str(vulkan)]) == 0
    shown = capsys.readouterr().out
    assert "executorch, fp32, for the backend vulkan" in shown
    assert "converted, not run here" in shown
    assert "nothing: its answers were not compared" in shown
    assert main(["info", str(vulkan), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["backend"], plain["parity"]) == ("vulkan", None)


@pytest.mark.parametrize("verb", ["eval", "predict", pytest.param("bench", marks=pytest.mark.sweep)])
def test_verbs_that_would_run_it_refuse_in_one_line(
    verb: str, vulkan: Path, images: Path, photographs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = {
        "eval": ["eval", str(vulkan), "--data", str(images)],
        "predict": ["predict", str(photographs[0]), "--weights", str(vulkan)],
        "bench": ["bench", str(vulkan), "--on", "executorch"],
    }[verb]
    assert main(command) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "ExecuTorch with Vulkan does not run on this machine; it was converted, not run here" in line


def test_a_program_for_one_backend_does_not_replace_that_for_another(model: Classifier, vulkan: Path) -> None:
    before = vulkan.read_bytes()
    with pytest.raises(UserError, match="for the backend vulkan; choose another name for the one for xnnpack"):
        export_artifact(exportable(model), vulkan, "executorch")
    assert vulkan.read_bytes() == before


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        pytest.param("coreml", "fp16", marks=pytest.mark.sweep),
        pytest.param("vulkan", "fp16", marks=pytest.mark.full),
        pytest.param("coreml", "fp32", marks=pytest.mark.full),
        pytest.param("vulkan", "fp32", marks=pytest.mark.full),
    ],
)
def test_the_backend_gets_everything_but_the_cast(
    model: Classifier, tmp_path: Path, backend: str, precision: str
) -> None:
    if backend == "coreml":
        pytest.importorskip("coremltools")
    path = tmp_path / "tiny.pte"
    info = export_artifact(exportable(model), path, "executorch", executorch_backend=backend, precision=precision)
    assert (info.backend, info.precision) == (backend, precision)
    assert (info.graph["delegates"], info.graph["not_delegated"]) == (1, ONLY_THE_CAST)
    assert sum(count for name, count in info.graph["operations"].items() if "conv" in name) == 33
    assert (info.parity is None) == (backend == "vulkan")
    if info.parity is not None:
        assert info.parity["max_relative_error"] < {"fp16": 5e-3, "fp32": 1e-5}[precision]
    if sys.platform != "darwin" or backend == "vulkan":
        assert info.status == "converted, not run here"
        assert ("computed by PyTorch" in info.checked_by) == (backend == "coreml")
        with pytest.raises(UserError, match="does not run on this machine"):
            open_artifact(path)


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac runs Core ML")
@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_core_ml_for_the_other_tasks(kind: str, tmp_path: Path) -> None:
    """A segmenter's delegate can be evaluated; a detector's also takes its strides, so it is not compared."""
    pytest.importorskip("coremltools")
    path = tmp_path / "tiny.pte"
    info = export_artifact(exportable(BUILDERS[kind]()), path, "executorch", executorch_backend="coreml")
    assert (info.status, info.graph["delegates"]) == ("converted, not run here", 1)
    assert set(info.graph["not_delegated"]) == set(ONLY_THE_CAST)
    assert (info.parity is None) == (kind == "detector")


# ------------------------------------------------------------------------------------------ what cannot work


def test_options_that_do_not_fit_are_said_before_the_work(model: Classifier, tmp_path: Path) -> None:
    path, network = tmp_path / "new" / "tiny.pte", exportable(model)
    with pytest.raises(UserError, match="only ExecuTorch has backends, not ONNX Runtime"):
        export_artifact(network, path, "onnx", executorch_backend="vulkan")
    with pytest.raises(UnknownNameError, match="unknown backend 'vulcan'; did you mean vulkan"):
        export_artifact(network, path, "executorch", executorch_backend="vulcan")
    with pytest.raises(UserError, match="precision is 'int8'; ExecuTorch with Core ML supports fp16, fp32"):
        export_artifact(network, path, "executorch", executorch_backend="coreml", precision="int8")
    with pytest.raises(UserError, match="executorch-backend is 'qnn'; it needs soc-model too"):
        export_artifact(network, path, "executorch", executorch_backend="qnn")
    with pytest.raises(UserError, match="soc-model is 'SM8650'; it is for ExecuTorch's backend qnn"):
        export_artifact(network, path, "executorch", soc_model="SM8650")
    assert not path.parent.exists()


def test_qnn_needs_the_vendors_sdk(model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check ExecuTorch downloads the SDK, whose licence nobody has accepted."""
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    path, network = tmp_path / "tiny.pte", exportable(model)
    with pytest.raises(UnknownNameError, match="unknown soc-model 'SM865'; did you mean SM8650"):
        export_artifact(network, path, "executorch", executorch_backend="qnn", soc_model="SM865")
    with pytest.raises(UserError, match="QNN_SDK_ROOT is not set; install Qualcomm's AI Engine Direct SDK"):
        export_artifact(network, path, "executorch", executorch_backend="qnn", soc_model="SM8650")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_remedy(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from iformer import dependencies

    real = dependencies.importlib.import_module

    def import_module(name: str) -> object:
        if name.partition(".")[0] == "coremltools":
            raise ModuleNotFoundError(f"No module named '{name}'", name="coremltools")
        if name.startswith("executorch.backends.vulkan"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name)

    monkeypatch.setattr(dependencies.importlib, "import_module", import_module)
    with pytest.raises(
        MissingDependencyError, match=r"coremltools is not installed; run: pip .*iformer\[coreml\]"
    ):
        export_artifact(exportable(model), tmp_path / "a.pte", "executorch", executorch_backend="coreml")
    with pytest.raises(MissingDependencyError, match="the installed ExecuTorch has no usable backend vulkan"):
        export_artifact(exportable(model), tmp_path / "a.pte", "executorch", executorch_backend="vulkan")
    assert not list(tmp_path.iterdir())


def test_every_backend_can_be_chosen_and_has_a_way_down() -> None:
    from iformer.deploy.runtimes import executorch

    names = [backend.name for backend in registry.BACKENDS]
    assert sorted(names) == sorted(executorch.LOWER) == sorted(registry.ExecuTorchBackend.__args__)
    row = find_runtime("executorch")
    assert row.with_backend("xnnpack") == row.with_backend(None) == row
    assert row.with_backend("qnn").title == "ExecuTorch with QNN"
