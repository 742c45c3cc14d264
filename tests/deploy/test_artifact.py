"""Artifacts and their records: invalid ones are errors of one line, and exports leave no folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from iformer.cli.main import main
from iformer.deploy import artifact as artifact_module
from iformer.deploy.artifact import MAX_BATCH, read_record, record_path, staged
from iformer.deploy.export import export_artifact
from iformer.deploy.runner import open_artifact
from iformer.deploy.runtimes.litert import _labels
from iformer.deploy.spec import Calibration, make_spec
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.tasks.export import exportable
from tiny.networks import labelled_classifier
from tiny.packages import need_packages
from tiny.programs import Forked

need_packages("onnxruntime", "onnxscript")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny network's ONNX artifact; tests change copies."""
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    export_artifact(exportable(labelled_classifier()), path, "onnx")
    return path


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of the artifact with its record."""
    for file in (exported, record_path(exported)):
        shutil.copy(file, tmp_path)
    return tmp_path / exported.name


def change(artifact: Path, **fields: Any) -> None:
    """Change fields of the record, whose checksum is taken away, as in records of early versions."""
    record = json.loads(record_path(artifact).read_text())
    record_path(artifact).write_text(json.dumps(record | fields | {"record_sha256": ""}))


HOSTILE_TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "list": "[]",
    "number": "1" * 5000,
    "deep": "[" * 100_000,
    "deep object": '{"format": ' * 100_000,
    "nan": "NaN",
    "latin-1": '{"network": "é"}'.encode("latin-1"),
    "binary": bytes(range(256)),
    "huge": b" " * 16_000_001,
}


@pytest.mark.parametrize("kind", list(HOSTILE_TEXTS))
def test_a_record_that_is_none(artifact: Path, kind: str) -> None:
    content = HOSTILE_TEXTS[kind]
    record_path(artifact).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match="is not the record of an artifact") as caught:
        read_record(artifact)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 10**9}, "record.batch is 1000000000"),
        ({"batch": True}, "record.batch"),
        ({"num_classes": 4}, "record.class_names"),
        ({"num_classes": 10**18}, "record.num_classes"),
        ({"num_classes": float("nan")}, "record.num_classes"),
        ({"class_names": ["a"] * 5}, "5 distinct"),
        ({"class_names": [["a"], "b", "c", "d", "e"]}, "record.class_names"),
        ({"sha256": "0" * 63}, "record.sha256"),
        ({"runtime": ["onnx"]}, "record.runtime"),
        ({"input_layout": "HWCN"}, "record.input_layout"),
        ({"network": "x" * 10_000_000}, "record.network"),
        ({"preprocessing": {"size": [200000, 200000]}}, "record.preprocessing.size"),
        ({"preprocessing": {"size": [2048, 2048]}, "batch": 4096}, "record.batch is 4096; expected fewer images"),
        ({"preprocessing": {"crop_pct": 1e-9}}, "crop_pct"),
        ({"preprocessing": {"std": [0, 0, 0]}}, "std"),
        ({"surprise": 1}, "record has no field"),
        ({"format": "iformer-artifact-2"}, "record.format"),
    ],
)
def test_a_record_with_absurd_values(artifact: Path, fields: dict[str, Any], message: str) -> None:
    change(artifact, **fields)
    with pytest.raises(UserError, match="is not the record of an artifact") as caught:
        read_record(artifact)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_name": "scores"}, "cannot be run by ONNX Runtime"),
        ({"input_name": "pixels"}, "cannot be run by ONNX Runtime"),
        ({"input_layout": "NCHW"}, "cannot be run by ONNX Runtime"),
        ({"normalized_by": "caller"}, "normalized_by inside the file and in its record differ"),
        ({"precision": "fp16"}, "precision inside the file and in its record differ"),
        ({"network": "iformer_x"}, "network inside the file and in its record differ"),
        ({"num_classes": 7, "class_names": []}, "class_names inside the file"),
        ({"runtime": "litert"}, "LiteRT"),
        ({"runtime": "openvino"}, "OpenVINO"),
        ({"runtime": "nothing"}, "unknown runtime"),
    ],
)
def test_a_record_that_describes_another_artifact(artifact: Path, fields: dict[str, Any], message: str) -> None:
    change(artifact, **fields)
    with pytest.raises(UserError, match=message):
        open_artifact(artifact)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_mutated_records_are_refused_or_read(artifact: Path) -> None:
    """300 records with flipped bits, cut ends and extreme values: a `UserError` or a record, no other error."""
    original, generator = record_path(artifact).read_bytes(), random.Random(0)
    refused = longest = 0
    for _ in range(300):
        content = bytearray(original)
        kind = generator.randrange(3)
        if kind == 0:
            for _ in range(generator.randrange(1, 9)):
                content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del content[generator.randrange(len(content)) :]
        else:
            record = json.loads(original)
            extremes = [None, -1, 10**30, 1e308, float("inf"), "", "\x00", "x" * 100_000, [], {}, [[[]]], True]
            record[generator.choice(list(record))] = generator.choice(extremes)
            content = bytearray(json.dumps(record).encode())
        record_path(artifact).write_bytes(content)
        try:
            read_record(artifact)
        except UserError as error:
            refused += 1
            longest = max(longest, len(str(error)))
    assert refused > 150
    assert longest < 1000


def test_every_mutated_artifact_is_refused(artifact: Path) -> None:
    original, generator = artifact.read_bytes(), random.Random(0)
    for _ in range(100):
        content = bytearray(original)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        artifact.write_bytes(content)
        with pytest.raises(UserError, match="was changed after its export"):
            open_artifact(artifact)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_record_that_is_a_pipe_is_refused_unread(artifact: Path) -> None:
    record_path(artifact).unlink()
    os.mkfifo(record_path(artifact))
    with pytest.raises(UserError, match=r"cannot be read \(not a regular file\)"):
        read_record(artifact)


def test_an_artifact_without_its_record_says_so(
    artifact: Path, photographs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    record_path(artifact).unlink()
    assert main(["predict", str(photographs[0]), "--weights", str(artifact), "--json"]) == 1
    assert f"{artifact}.json is missing; copy it together with the artifact" in capsys.readouterr().err


def test_weights_outside_an_onnx_file_are_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could be changed later without a change of the file's hash."""
    onnx = pytest.importorskip("onnx")
    onnx.save(onnx.load(artifact), artifact, save_as_external_data=True, location="weights.bin")
    change(artifact, sha256=artifact_module.artifact_hash(artifact))
    monkeypatch.chdir(artifact.parent)
    with pytest.raises(UserError, match="keeps weights in another file"):
        open_artifact(artifact)


# ------------------------------------------------------------------------------------------------ several exports


def wait_for(ready: Path, process: Forked) -> None:
    """Wait until a program has created its file `ready`."""
    deadline = time.monotonic() + 200
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_folders_of_killed_exports_are_removed_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    program, ready, folder = tmp_path / "program.py", tmp_path / "ready", tmp_path / "folder"
    folder.mkdir()
    program.write_text(
        "import sys, time; from pathlib import Path; from iformer.deploy.artifact import staged\n"
        "with staged(Path(sys.argv[1]) / 'a.onnx') as path: Path(sys.argv[2]).touch(); time.sleep(600)"
    )
    process = Forked(str(program), str(folder), str(ready))
    wait_for(ready, process)
    with staged(folder / "b.onnx") as path:
        path.write_text("b")
        record_path(path).write_text("{}")
    assert len(list(folder.glob(".iformer-export-*"))) == 1, "the running export's folder"
    process.kill()
    process.communicate()
    with staged(folder / "c.onnx") as path:
        path.write_text("c")
        record_path(path).write_text("{}")
    assert sorted(file.name for file in folder.iterdir()) == ["b.onnx", "b.onnx.json", "c.onnx", "c.onnx.json"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)])
def test_a_signal_during_an_export_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    ready, out = tmp_path / "ready", tmp_path / "new" / "a.onnx"
    process = Forked("tiny.unfinished_export", str(ready), "export", "elpv", "--out", str(out))
    wait_for(ready, process)
    process.send_signal(number)
    process.communicate(60)
    assert process.returncode == code
    assert [file.name for file in tmp_path.iterdir()] == ["ready"]


def test_int8_never_replaces_an_fp32_artifact(artifact: Path, model: Classifier, photographs: list[Path]) -> None:
    from iformer.deploy.quantize import Quantization

    options = Quantization(images=photographs, measure=lambda _forward: {"top1": 1.0})
    with pytest.raises(UserError, match="is an artifact in fp32; choose another name for the one in int8"):
        export_artifact(exportable(model), artifact, "onnx", precision="int8", quantization=options)


@pytest.mark.parametrize("text", ["", "²", "1" * 5000, "-1", "1.0", "some"])
def test_batches_that_are_no_numbers(text: str) -> None:
    from iformer.cli.export import _batch

    with pytest.raises(UserError, match=r"--batch is '.*'; expected dynamic or a whole number"):
        _batch(text)


def test_names_of_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iformer.api.export import artifact_name, artifact_paths
    from iformer.deploy.runtimes.registry import find_runtime

    onnx, ncnn = find_runtime("onnx"), find_runtime("ncnn")
    assert artifact_paths(None, [onnx], "last", None) == [Path("last.onnx")]
    assert artifact_paths(None, [onnx], "last", "int8") == [Path("last_int8.onnx")]
    (tmp_path / "best.safetensors").touch()
    names = [str(tmp_path / "best.safetensors"), str(tmp_path), "hf-hub:user/net", "timm/iformer_m.in1k", "elpv"]
    assert [artifact_name(name) for name in names] == ["best", tmp_path.name, "net", "iformer_m.in1k", "elpv"]
    monkeypatch.chdir(tmp_path)
    assert artifact_name(".") == tmp_path.name
    new = tmp_path / "not" / "yet"
    assert artifact_paths(new, [onnx], "last", "int8") == [new / "last_int8.onnx"]
    assert artifact_paths(new, [onnx, ncnn], "last", "fp32") == [new / "last.onnx", new / "last.ncnn"]
    assert artifact_paths(tmp_path / "own.onnx", [onnx], "last", "int8") == [tmp_path / "own.onnx"]
    (tmp_path / "dotted.folder").mkdir()
    assert artifact_paths(tmp_path / "dotted.folder", [onnx], "last", None) == [
        tmp_path / "dotted.folder" / "last.onnx"
    ]
    with pytest.raises(UserError, match=r"artifacts of ncnn end with \.ncnn"):
        artifact_paths(tmp_path / "own.onnx", [ncnn], "last", None)
    for wrong in ("own.safetensors", "own.pth", "own.onnx.json"):
        with pytest.raises(UserError, match=r"artifacts of ONNX Runtime end with \.onnx"):
            artifact_paths(tmp_path / wrong, [onnx], "last", None)
    with pytest.raises(UserError, match=r"own\.onnx'; several runtimes need a folder"):
        artifact_paths(tmp_path / "own.onnx", [onnx, ncnn], "last", None)
    for out, name in ((Path(os.fsdecode(b"\xff")), "last"), (None, os.fsdecode(b"\xff"))):
        with pytest.raises(UserError, match="the name is not UTF-8"):
            artifact_paths(out, [onnx], name, None)


# ------------------------------------------------------------------------------------------------ calibration


def test_a_batch_larger_than_the_calibration_images(model: Classifier) -> None:
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 64, 64)
    spec = make_spec(exportable(model), batch=2, precision="int8", calibration=Calibration(images=images))
    assert [fed[:, 0, 0, 0].tolist() for fed in spec.calibration_inputs("NHWC")] == [[0, 1], [2, 0]]
    spec = make_spec(exportable(model), batch=8, precision="int8", calibration=Calibration(images=images))
    assert [fed[:, 0, 0, 0].tolist() for fed in spec.calibration_inputs("NHWC")] == [[0, 1, 2, 0, 1, 2, 0, 1]]


def test_class_names_with_line_breaks_have_one_line_each() -> None:
    names = ("a\u2028b", "c\nd", "e\x85f", "g")
    assert _labels(names) == "a b\nc d\ne f\ng\n"


@pytest.mark.parametrize("batch", [0, MAX_BATCH + 1, 10**9])
def test_absurd_batches(model: Classifier, tmp_path: Path, batch: int) -> None:
    with pytest.raises(UserError, match=f"batch is {batch}; expected 'dynamic' or a whole number from 1 to"):
        export_artifact(exportable(model), tmp_path / "a.onnx", "onnx", batch=batch)


def test_two_exports_to_one_artifact_leave_a_matching_pair(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one wins; a record never stays beside the other one's artifact."""
    import threading

    replace = os.replace
    barrier = threading.Barrier(2)

    def slow(source: Any, target: Any) -> None:
        time.sleep(0.05 * random.random())
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    target = tmp_path / "tiny.onnx"

    def export(content: bytes) -> None:
        with staged(target) as path:
            path.write_bytes(content)
            record = json.loads(record_path(exported).read_text())
            fields = {"sha256": artifact_module.artifact_hash(path), "record_sha256": ""}
            record_path(path).write_text(json.dumps(record | fields))
            barrier.wait()

    for _ in range(5):
        threads = [threading.Thread(target=export, args=(content,)) for content in (b"one", b"two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        read_record(target)
        assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_export_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    with pytest.raises(UserError) as caught, staged(target) as path:
        raise UserError(f"{path} cannot be run by ONNX Runtime")
    assert str(caught.value) == f"{target} cannot be run by ONNX Runtime"
    assert not list(tmp_path.iterdir())
