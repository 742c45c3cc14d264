"""ONNX export, and the comparison of the artifact with the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iformer.data.images import read_image
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy.artifact import ArtifactInfo, artifact_hash, read_record, record_path, write_record
from iformer.deploy.export import export_artifact
from iformer.deploy.parity import compare
from iformer.deploy.runtimes import onnx as onnx_export
from iformer.deploy.runtimes.onnx import OnnxRunner
from iformer.deploy.spec import ExportSpec, embedded_hash
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.tasks.export import exportable
from tiny.packages import need_packages

onnx = pytest.importorskip("onnx")
need_packages("onnxscript", "onnxruntime")


def export_onnx(model: Classifier, path: Path, **options: Any) -> ArtifactInfo:
    return export_artifact(exportable(model), path, "onnx", **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for the one export that the tests of this file copy."""
    return tmp_path_factory.mktemp("exported")


@pytest.fixture
def artifact(model: Classifier, tmp_path: Path, exported: Path) -> Path:
    """A fresh copy of the tiny network's artifact; the network is the same in every test."""
    if not (exported / "tiny.onnx").exists():
        export_onnx(model, exported / "tiny.onnx")
    for file in exported.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / "tiny.onnx"


def expected_logits(model: Classifier, paths: list[Path]) -> torch.Tensor:
    preprocessing = model.metadata.preprocessing
    decode = eval_transform(preprocessing)
    pixels = torch.stack([decode(read_image(path)) for path in paths])
    with torch.inference_mode():
        logits: torch.Tensor = model(Normalize(preprocessing)(pixels))
    return logits


def test_the_artifact_is_the_network_on_photographs(
    model: Classifier, tmp_path: Path, photographs: list[Path]
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    info = export_onnx(model, tmp_path / "tiny.onnx", images=photographs)
    assert info.parity is not None
    assert info.parity["images"] == len(photographs) + info.parity["generated_images"]
    assert info.parity["max_relative_error"] < 1e-4
    assert info.parity["top1_agreement"] == 1.0
    assert not info.parity["failures"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.onnx", "tiny.onnx.json"]


def test_bytes_go_straight_into_a_cast_and_the_format_is_the_oldest_that_fits(artifact: Path) -> None:
    """TensorRT takes uint8 inputs only then, and ONNX Runtime 1.17 no format above 9."""
    model = onnx.load(artifact)
    readers = [node.op_type for node in model.graph.node if "image" in node.input]
    assert readers == ["Cast"]
    assert model.ir_version == onnx.helper.find_min_ir_version_for(list(model.opset_import)) <= 9


@pytest.mark.parametrize(
    "opset",
    [
        *(pytest.param(opset, marks=pytest.mark.sweep) for opset in (17, 20)),
        *(pytest.param(opset, marks=pytest.mark.full) for opset in (18, 19)),
    ],
)
def test_every_operator_set(model: Classifier, tmp_path: Path, photographs: list[Path], opset: int) -> None:
    """Below 20 there is no GELU: it is decomposed."""
    info = export_onnx(model, tmp_path / "tiny.onnx", opset=opset, images=photographs)
    assert info.parity is not None
    assert info.parity["max_relative_error"] < 1e-4
    proto = onnx.load(tmp_path / "tiny.onnx")
    assert [(entry.domain, entry.version) for entry in proto.opset_import if entry.domain == ""] == [("", opset)]
    assert proto.ir_version == {17: 8, 18: 8, 19: 9, 20: 9}[opset]
    operations = {node.op_type for node in proto.graph.node}
    assert ("Gelu" in operations) == (opset >= 20)


def test_wrong_operator_sets(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="opset is 16; expected a number from 17 to 20"):
        export_onnx(model, tmp_path / "tiny.onnx", opset=16)
    with pytest.raises(UserError, match="opset is 17; only ONNX has operator sets, not OpenVINO"):
        export_artifact(exportable(model), tmp_path / "tiny.openvino", "openvino", opset=17)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_of_uint8_images(model: Classifier, artifact: Path, photographs: list[Path], count: int) -> None:
    """What a user of ONNX Runtime does: decode, resize, feed N x H x W x 3 bytes."""
    import onnxruntime

    decode = eval_transform(model.metadata.preprocessing)
    images = np.stack([decode(read_image(path)).permute(1, 2, 0).numpy() for path in photographs[:count]])
    session = onnxruntime.InferenceSession(artifact)
    (fed,) = session.get_inputs()
    assert (fed.name, fed.type, fed.shape[1:]) == ("image", "tensor(uint8)", [64, 64, 3])
    (logits,) = session.run(None, {"image": images})
    torch.testing.assert_close(
        torch.from_numpy(logits), expected_logits(model, photographs[:count]), rtol=1e-4, atol=1e-4
    )
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["class_names"]) == list(model.metadata.class_names)
    assert json.loads(meta["preprocessing"])["mean"] == list(model.metadata.preprocessing.mean)


@pytest.mark.parametrize("options", [{"raw": True}, {"batch": 3}, {"size": (64, 96)}, {"batch": 1, "raw": True}])
def test_other_forms_of_the_artifact(
    model: Classifier, tmp_path: Path, photographs: list[Path], options: dict[str, Any]
) -> None:
    path = tmp_path / "tiny.onnx"
    info = export_onnx(model, path, images=photographs, **options)
    assert info.input_dtype == ("float32" if options.get("raw") else "uint8")
    assert info.batch == options.get("batch")
    assert info.preprocessing.size == options.get("size", (64, 64))
    assert read_record(path) == info
    graph = onnx.load(path).graph
    shape = [dimension.dim_value or None for dimension in graph.input[0].type.tensor_type.shape.dim]
    assert tuple(shape) == info.input_shape


@pytest.mark.sweep
def test_half_precision_begins_behind_the_normalisation(
    model: Classifier, tmp_path: Path, photographs: list[Path]
) -> None:
    info = export_onnx(model, tmp_path / "tiny.onnx", precision="fp16", images=photographs)
    assert info.parity is not None
    assert 1e-5 < info.parity["max_relative_error"] < info.parity["tolerance"] == 2e-2
    graph = onnx.load(tmp_path / "tiny.onnx").graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [weights[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert {weight.data_type for weight in convolutions} == {onnx.TensorProto.FLOAT16}
    normalisation = [tensor for tensor in graph.initializer if tuple(tensor.dims) == (3, 1, 1)]
    assert {tensor.data_type for tensor in normalisation} == {onnx.TensorProto.FLOAT}
    assert [output.type.tensor_type.elem_type for output in graph.output] == [onnx.TensorProto.FLOAT]


def test_the_file_says_nothing_about_this_machine(artifact: Path) -> None:
    content = artifact.read_bytes()
    assert str(Path(onnx_export.__file__).parent).encode() not in content
    assert b"site-packages" not in content


def tamper(path: Path, change: Callable[[Any], None]) -> None:
    """Change the graph and make the record fit the file again, as an attacker or a slip of ours would."""
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, path)
    write_record(replace(read_record_unchecked(path), sha256=artifact_hash(path)), path)


def read_record_unchecked(path: Path) -> Any:
    return ArtifactInfo.from_plain(json.loads(record_path(path).read_text()))


def change_initializer(proto: Any, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the first initializer of a shape."""
    for initializer in proto.graph.initializer:
        if tuple(initializer.dims) == shape:
            value = onnx.numpy_helper.to_array(initializer)
            initializer.CopyFrom(onnx.numpy_helper.from_array(change(value.copy()), initializer.name))
            return
    raise AssertionError(f"no initializer of shape {shape}")


def one_weight(proto: Any) -> None:
    def change(weight: np.ndarray) -> np.ndarray:
        weight[0, 0] += 0.5
        return weight

    change_initializer(proto, (5, 32), change)


def red_for_blue(proto: Any) -> None:
    change_initializer(proto, (4, 3, 5, 5), lambda weight: weight[:, ::-1].copy())


def mean_for_std(proto: Any) -> None:
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = [i for i in proto.graph.initializer if tuple(i.dims) == (3, 1, 1)]
    assert len(found) == 2
    for initializer in found:
        is_shift = onnx.numpy_helper.to_array(initializer).min() < 0
        value = -std / mean if is_shift else 1 / (255 * mean)
        initializer.CopyFrom(onnx.numpy_helper.from_array(value, initializer.name))


@pytest.mark.parametrize("change", [one_weight, red_for_blue, mean_for_std])
def test_a_tampered_graph_is_caught(
    model: Classifier, artifact: Path, photographs: list[Path], change: Callable[[Any], None]
) -> None:
    assert not compare(exportable(model), OnnxRunner(artifact), photographs).failures
    tamper(artifact, change)
    parity = compare(exportable(model), OnnxRunner(artifact), photographs)
    assert parity.failures
    with pytest.raises(UserError, match="does not agree with the network"):
        parity.require(artifact)


def test_red_for_blue_is_caught_without_any_colour_photograph(model: Classifier, artifact: Path) -> None:
    tamper(artifact, red_for_blue)
    assert compare(exportable(model), OnnxRunner(artifact)).failures


def test_exchanged_class_names_are_caught(model: Classifier, artifact: Path) -> None:
    names = ["bee", "ant", "cat", "dog", "elk"]

    def exchange(proto: Any) -> None:
        found = {entry.key: entry.value for entry in proto.metadata_props} | {"class_names": json.dumps(names)}
        onnx.helper.set_model_props(proto, found | {"checksum": embedded_hash(found)})

    tamper(artifact, exchange)
    with pytest.raises(UserError, match="class_names inside the file and in its record differ"):
        OnnxRunner(artifact)
    write_record(replace(read_record_unchecked(artifact), class_names=tuple(names)), artifact)
    assert "its class names are not the network's" in compare(exportable(model), OnnxRunner(artifact)).failures


def test_a_file_changed_after_export_is_refused(artifact: Path) -> None:
    proto = onnx.load(artifact)
    one_weight(proto)
    onnx.save(proto, artifact)
    with pytest.raises(UserError, match="was changed after its export"):
        OnnxRunner(artifact)


def test_an_artifact_of_another_network_is_caught(model: Classifier, artifact: Path) -> None:
    other = Classifier(model.config).eval()
    torch.manual_seed(5)
    other.metadata = model.metadata
    assert "it was made from other weights" in compare(exportable(other), OnnxRunner(artifact)).failures


def test_a_failed_check_leaves_what_was_there(
    model: Classifier, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = artifact.read_bytes()
    write = onnx_export.write

    def wrong(spec: ExportSpec, path: Path) -> dict[str, Any]:
        graph = write(spec, path)
        proto = onnx.load(path)
        one_weight(proto)
        onnx.save(proto, path)
        return graph

    monkeypatch.setattr(onnx_export, "write", wrong)
    with pytest.raises(UserError, match="does not agree with the network: logits differ"):
        export_onnx(model, artifact)
    assert artifact.read_bytes() == before
    assert sorted(path.name for path in artifact.parent.iterdir()) == ["tiny.onnx", "tiny.onnx.json"]


def test_a_record_is_needed_and_has_to_be_one(artifact: Path) -> None:
    record_path(artifact).write_text("{}")
    with pytest.raises(UserError, match="is not the record of an artifact"):
        OnnxRunner(artifact)
    record_path(artifact).unlink()
    with pytest.raises(UserError, match="is missing"):
        OnnxRunner(artifact)


def test_a_file_that_is_no_onnx_is_refused(artifact: Path) -> None:
    info = read_record(artifact)
    artifact.write_bytes(b"not a graph")
    write_record(replace(info, sha256=artifact_hash(artifact)), artifact)
    with pytest.raises(UserError, match="cannot be loaded by ONNX Runtime"):
        OnnxRunner(artifact)
