"""Latency of artifacts, each in its own process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from iformer import save
from iformer.bench.energy import EnergyMeter
from iformer.bench.latency import measure
from iformer.bench.subjects import MATRIX_PRODUCT, BenchSubject, prepare_all, prepare_subject
from iformer.cli.bench import bench, unique_labels
from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.deploy.artifact import read_record, record_path, write_record
from iformer.deploy.runtimes.registry import find_runtime
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from tiny.networks import tiny_config
from tiny.packages import need_packages

need_packages("onnxruntime", "onnxscript")

ONNX = find_runtime("onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the one export that the tests of this file share."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def subject(folder: Path) -> BenchSubject:
    """The tiny network, exported from its checkpoint."""
    if not (folder / "tiny.safetensors").exists():
        model = Classifier(tiny_config())
        model.metadata = Metadata(class_names=tuple("abcde"), preprocessing=Preprocessing(size=(64, 64)))
        save(model, folder / "tiny.safetensors")
        _prepared.append(prepare_subject(str(folder / "tiny.safetensors"), ONNX, folder))
    return _prepared[0]


_prepared: list[BenchSubject] = []


def test_what_was_prepared_is_described(subject: BenchSubject) -> None:
    assert (subject.label, subject.runtime, subject.precision, subject.size) == ("tiny", "onnx", "fp32", (64, 64))
    assert subject.gmacs is not None
    assert 0 < subject.gmacs < 0.1
    assert subject.file_mb > 0.1
    again = prepare_subject(str(subject.artifact), ONNX, subject.artifact.parent, label="the artifact")
    assert (again.label, again.artifact) == ("the artifact", subject.artifact)


def test_networks_whose_names_end_alike_keep_their_artifacts(
    subject: BenchSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported files were named by the last 100 characters, with "_" for "/"."""

    def copied(_network: object, path: Path, *_: object, **__: object) -> object:
        shutil.copy(subject.artifact, path)
        shutil.copy(record_path(subject.artifact), record_path(path))
        return read_record(path)

    monkeypatch.setattr("iformer.bench.subjects.export_artifact", copied)
    found = []
    for name in ("a_b", "a/b", f"1{'/long' * 25}", f"2{'/long' * 25}"):
        file = tmp_path / name / "best.safetensors"
        file.parent.mkdir(parents=True)
        save(Classifier(tiny_config()), file)
        found.append(prepare_subject(str(file), ONNX, tmp_path).artifact)
    assert len(set(found)) == 4


def test_labels_are_unique() -> None:
    assert unique_labels(["runs/a.onnx", "b"]) == ["a", "b"]
    assert unique_labels(["x/best.onnx", "y/best.onnx", "c"]) == ["x/best.onnx", "y/best.onnx", "c"]
    names = ["a.b", "p/a.b.c", "q/a"]
    assert len(set(unique_labels(names))) == 3
    assert unique_labels(["x/iFormer-T.onnx"], taken={"iFormer-T"}) == ["x/iFormer-T.onnx"]


class Steady(EnergyMeter):
    """A meter that goes on by 0.2 J from turn to turn, and by 0.4 J in a turn."""

    readings = 0

    def joules(self) -> float:
        self.readings += 1
        return 0.4 * (self.readings // 2) + 0.2 * (self.readings // 2 + self.readings % 2)


@pytest.mark.sweep
def test_rounds_in_two_processes(subject: BenchSubject, tmp_path: Path) -> None:
    """Four images in one call of the network, and one in a matrix product of the same size."""
    from dataclasses import replace

    said: list[str] = []
    four = prepare_subject(str(subject.artifact.with_name("tiny.safetensors")), ONNX, tmp_path, batch=4)
    product = replace(subject, label=MATRIX_PRODUCT)
    rows = measure([four, product], rounds=3, calls=2, warmup=0, meter=Steady([]), report=said.append)
    # 0.4 J a turn of two calls: of eight images, and of two
    assert [row.energy_mj for row in rows] == [pytest.approx(50), pytest.approx(200)]
    assert [row.label for row in rows] == ["tiny", MATRIX_PRODUCT]
    assert [row.batch for row in rows] == [four.batch, subject.batch] == [4, 1]
    for row in rows:
        assert row.rounds == 3
        assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
        assert row.load_ms > 0
        assert row.gflops == pytest.approx(row.batch * 2 * row.gmacs / (row.median_ms / 1e3))  # type: ignore[operator]
    assert rows[0].times_as_fast == 1
    assert rows[1].matrix_product_share == 1
    assert said[0] == "tiny loaded"
    assert said[-1] == "round 3 of 3"
    with pytest.raises(UserError, match="takes 4 images in one call, not 1; see --batch"):
        prepare_subject(str(four.artifact), ONNX, tmp_path)


@pytest.mark.sweep
def test_invalid_subjects_are_refused(subject: BenchSubject, tmp_path: Path) -> None:
    from dataclasses import replace

    from iformer.deploy.artifact import artifact_hash, read_record

    with pytest.raises(UserError, match="something to time"):
        measure([])
    with pytest.raises(UserError, match="have the same name"):
        measure([subject, subject])
    with pytest.raises(UserError, match="is for ONNX Runtime, not for OpenVINO"):
        prepare_subject(str(subject.artifact), find_runtime("openvino"), tmp_path)
    with pytest.raises(UserError, match="timm has no network 'repvit'"):
        prepare_subject("timm/repvit", ONNX, tmp_path)
    with pytest.raises(UserError, match=r"efficientformer_l1 does not take 64 x 64 pixels .*leave out --size"):
        prepare_subject("timm/efficientformer_l1", ONNX, tmp_path, size=(64, 64))
    with pytest.raises(UserError, match="takes 64 x 64 pixels only; leave out --size"):
        prepare_all(str(subject.artifact), ONNX, tmp_path, sizes=[(32, 32)], label="tiny")
    with pytest.raises(UserError, match="is for ONNX Runtime; measure it with --on onnx"):
        bench([str(subject.artifact)], on="litert")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    write_record(replace(read_record(subject.artifact), file=broken.name, sha256=artifact_hash(broken)), broken)
    with pytest.raises(UserError, match="cannot be loaded by ONNX Runtime"):
        measure([replace(subject, artifact=broken)])


@pytest.mark.sweep
def test_networks_of_timm_are_exported_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = prepare_subject("timm/mobilenetv3_large_075", ONNX, tmp_path, label="MobileNetV3-Large 0.75x")
    assert (peer.label, peer.size) == ("MobileNetV3-Large 0.75x", (224, 224))
    assert peer.gmacs == pytest.approx(0.155, rel=0.01)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [peer.artifact.name, peer.artifact.name + ".json"]
