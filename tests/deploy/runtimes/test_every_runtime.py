"""The same tests for every runtime: the artifact computes the network, and errors in an artifact are found."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from iformer import dependencies
from iformer.api.export import artifact_paths
from iformer.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from iformer.deploy.artifact import (
    ArtifactInfo,
    artifact_hash,
    is_artifact,
    read_record,
    record_path,
    staged,
    write_record,
)
from iformer.deploy.export import export_artifact
from iformer.deploy.parity import compare
from iformer.deploy.runner import open_artifact, runtime_module
from iformer.deploy.runtimes import registry as runtimes
from iformer.deploy.runtimes.registry import RUNTIMES, find_runtime
from iformer.deploy.spec import folded_for_export
from iformer.errors import MissingDependencyError, OutputError, UnknownNameError, UserError
from iformer.models.classifier import Classifier
from iformer.models.folding import fold
from iformer.tasks.export import exportable
from tiny.networks import randomize, tiny_config

NAMES = tuple(RUNTIMES)
RUN_HERE = tuple(name for name in NAMES if name != "coreml" or sys.platform == "darwin")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one export to each runtime, which the tests of all processes copy."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def artifact(
    request: pytest.FixtureRequest, model: Classifier, photographs: list[Path], tmp_path: Path, exported: Path
) -> Path:
    """A fresh copy of the tiny network's fp32 artifact for the runtime that the test names."""
    runtime = find_runtime(request.param)
    need(runtime.name)
    path = exported / f"tiny{runtime.suffix}"
    with FileLock(exported / f"{runtime.name}.lock"):
        if not is_artifact(path):
            export_artifact(exportable(model), path, runtime.name, precision="fp32", images=photographs)
    copied = tmp_path / "copy" / path.name
    copied.parent.mkdir()
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copied)
    shutil.copy(record_path(path), copied.parent)
    return copied


SLOW_TO_IMPORT = ("executorch", "litert")
"""Their converters take 20 s to import and convert for the first time, so they are in the sweep."""
QUICK = ("onnx", "ncnn")
"""Those that do not take long for each export."""


def named(names: Sequence[str]) -> list[Any]:
    """Parameters of a test for each runtime; those that are slow to import belong to the sweep."""
    return [pytest.param(name, marks=pytest.mark.sweep if name in SLOW_TO_IMPORT else ()) for name in names]


def slow(names: Sequence[str]) -> list[Any]:
    """Parameters of a slow test for each runtime: in the sweep, or in the full tests if they take longest."""
    return [
        pytest.param(name, marks=pytest.mark.full if name in SLOW_TO_IMPORT else pytest.mark.sweep)
        for name in names
    ]


each_artifact = pytest.mark.parametrize("artifact", named(NAMES), indirect=True)
each_artifact_run_here = pytest.mark.parametrize("artifact", named(RUN_HERE), indirect=True)
each_artifact_made_again = pytest.mark.parametrize(
    "artifact", [*named(QUICK), *slow([name for name in NAMES if name not in QUICK])], indirect=True
)
each_runtime = pytest.mark.parametrize("name", named(NAMES))


def need(name: str) -> None:
    """Skip where a runtime is not installed."""
    try:
        RUNTIMES[name].require()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def check(model: Classifier, path: Path, images: list[Path] | None = None) -> tuple[str, ...]:
    """What the parity check has to say against an artifact."""
    runner = runtime_module(read_record(path).runtime).RUNNER.for_check(path)
    return compare(exportable(model), runner, images or ()).failures


# ------------------------------------------------------------------------------------------ it is the network


@each_artifact
def test_the_artifact_is_the_network(model: Classifier, artifact: Path, photographs: list[Path]) -> None:
    info = read_record(artifact)
    parity = info.parity
    assert parity is not None
    assert parity["images"] == len(photographs) + parity["generated_images"]
    assert parity["max_relative_error"] < 1e-4
    assert parity["top1_agreement"] == 1.0
    assert parity["failures"] == []
    assert info.precision == "fp32"
    assert info.class_names == model.metadata.class_names
    assert info.num_classes == 5
    assert info.normalized_by == "graph"
    assert info.graph["operations"]
    assert set(RUNTIMES[info.runtime].versions()) < set(info.versions)
    can_run = info.runtime in RUN_HERE
    assert info.status == ("run here" if can_run else "converted, not run here")
    assert (info.checked_by == RUNTIMES[info.runtime].title) == can_run
    assert str(artifact.parent).encode() not in everything_in(artifact)
    assert b"site-packages" not in everything_in(artifact)


@each_artifact_run_here
def test_any_number_of_images(model: Classifier, artifact: Path) -> None:
    """More and fewer images than the artifact takes in one call, and in either memory format."""
    from iformer.data.transforms import Normalize

    runner = open_artifact(artifact)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model(Normalize(model.metadata.preprocessing)(pixels))
    torch.testing.assert_close(runner(pixels)["logits"], expected, rtol=1e-4, atol=1e-5)
    first = runner(pixels[:1])["logits"]
    torch.testing.assert_close(first, expected[:1], rtol=1e-4, atol=1e-5)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(runner(channels_last)["logits"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, expected[:1], rtol=1e-4, atol=1e-5, msg="an earlier answer was overwritten")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("openvino", {"precision": "fp16", "batch": 3}),
        ("ncnn", {"raw": True}),
        *(
            pytest.param(name, options, marks=pytest.mark.sweep)
            for name, options in (
                ("coreml", {"precision": "fp16", "size": (64, 96)}),
                ("onnx", {"precision": "fp16", "size": (64, 96)}),
                ("executorch", {"raw": True, "batch": 2, "size": (64, 96)}),
            )
        ),
        *(
            pytest.param(name, options, marks=pytest.mark.full)
            for name, options in (
                ("coreml", {"raw": True, "precision": "fp32"}),
                ("litert", {"precision": "fp16"}),
                ("litert", {"raw": True, "batch": 2, "size": (64, 96)}),
                ("openvino", {"raw": True, "size": (64, 96)}),
                ("ncnn", {"precision": "fp16", "size": (64, 96)}),
            )
        ),
    ],
)
def test_other_forms_of_the_artifact(
    model: Classifier, tmp_path: Path, photographs: list[Path], name: str, options: dict[str, Any]
) -> None:
    need(name)
    path = tmp_path / f"tiny{RUNTIMES[name].suffix}"
    info = export_artifact(exportable(model), path, name, images=photographs, **options)
    assert read_record(path) == info
    assert info.preprocessing.size == options.get("size", (64, 64))
    assert info.precision == options.get("precision", "fp32")
    assert info.normalized_by == ("caller" if options.get("raw") else "graph")
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]


@pytest.mark.parametrize("name", slow(NAMES))
def test_the_smallest_size_of_the_family(tmp_path: Path, photographs: list[Path], name: str) -> None:
    """iFormer-T at 224 with statistics and weights that are not the initial ones, without class names."""
    from iformer.models.factory import create_model

    need(name)
    network = create_model("iformer_t", num_classes=10)
    randomize(network)
    assert isinstance(network, Classifier)
    path = tmp_path / f"t{RUNTIMES[name].suffix}"
    info = export_artifact(exportable(network.eval()), path, name, precision="fp32", images=photographs[:2])
    assert info.parity is not None
    assert info.parity["max_relative_error"] < 1e-3
    assert info.preprocessing.size == (224, 224)


@pytest.mark.sweep
@pytest.mark.parametrize("artifact", ["executorch"], indirect=True)
def test_what_xnnpack_does_not_take_is_in_the_record(artifact: Path) -> None:
    graph = read_record(artifact).graph
    assert graph["delegates"] == 1
    # 33 in the folded network, of which four are of 7 x 7 and become three each
    assert sum(count for name, count in graph["operations"].items() if "convolution" in name) == 41
    # the transposition and the cast of the pixels, before the network
    left = {"aten_permute_copy_default": 1, "dim_order_ops__to_dim_order_copy_default": 1}
    assert graph["not_delegated"] == left


@pytest.mark.parametrize("artifact", ["coreml"], indirect=True)
def test_core_ml_gets_an_image_and_gives_names(model: Classifier, artifact: Path) -> None:
    import coremltools

    package = coremltools.models.MLModel(str(artifact), skip_model_load=True)
    description = package.get_spec().description
    assert description.input[0].type.imageType.width == 64
    assert description.predictedFeatureName == "classLabel"
    assert [output.name for output in description.output] == ["classLabel", "classLabel_probs", "logits"]
    graph = read_record(artifact).graph
    assert graph["transposes"] == graph["operations"]["transpose"] > 0
    assert graph["reshapes"] > 0
    if sys.platform != "darwin":
        with pytest.raises(UserError, match="converted, not run here"):
            open_artifact(artifact)


REPEATABLE = ("onnx", "executorch", "litert", "ncnn")
"""Core ML's and OpenVINO's converters write identifiers or counters that are new every time."""


@pytest.mark.parametrize("artifact", slow(REPEATABLE), indirect=True)
def test_the_same_network_gives_the_same_bytes(
    model: Classifier, artifact: Path, photographs: list[Path], tmp_path: Path
) -> None:
    first = read_record(artifact)
    path = tmp_path / "again" / artifact.name
    again = export_artifact(exportable(model), path, first.runtime, precision="fp32", images=photographs)
    assert again.sha256 == first.sha256


# --------------------------------------------------------------------------------------------- tampering


def everything_in(path: Path) -> bytes:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return b"".join(file.read_bytes() for file in files)


def patch(path: Path, exchanges: list[tuple[bytes, bytes]]) -> int:
    """Replace bytes by others of the same length wherever they are, and make the record fit again."""
    found = 0
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        content = file.read_bytes()
        for old, new in exchanges:
            assert len(old) == len(new)
            if old != new and old in content:
                found += 1
                content = content.replace(old, new)
        file.write_bytes(content)
    info = ArtifactInfo.from_plain(json.loads(record_path(path).read_text()))
    write_record(replace(info, sha256=artifact_hash(path)), path)
    return found


def stored_forms(value: torch.Tensor, changed: torch.Tensor) -> list[tuple[bytes, bytes]]:
    """A weight's bytes and the changed one's, in every order of axes that a format may keep it in."""
    return [
        tuple(np.ascontiguousarray(t.numpy().transpose(order)).tobytes() for t in (value, changed))  # type: ignore[misc]
        for order in permutations(range(value.ndim))
    ]


@each_artifact
def test_one_changed_weight_is_caught(model: Classifier, artifact: Path, photographs: list[Path]) -> None:
    weight = folded_for_export(exportable(model)).head.weight.detach()  # type: ignore[union-attr, operator]
    changed = weight.clone()
    changed[0, 0] += 0.5
    assert not check(model, artifact, photographs)
    assert patch(artifact, stored_forms(weight, changed))
    assert any("logits differ" in failure for failure in check(model, artifact))


@each_artifact
def test_red_for_blue_is_caught(model: Classifier, artifact: Path) -> None:
    weight = folded_for_export(exportable(model)).stem.conv1.weight.detach()  # type: ignore[union-attr, operator]
    assert patch(artifact, stored_forms(weight, weight.flip(1)))
    assert any("logits differ" in failure for failure in check(model, artifact))


@each_artifact_made_again
def test_mean_and_std_exchanged_are_caught(
    model: Classifier, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made with a wrong normalisation in the graph, and with a record that has the right one."""
    from iformer.deploy import spec

    name = read_record(artifact).runtime
    right = json.loads(record_path(artifact).read_text())
    build = spec.WithPreprocessing.__init__

    def wrong(self: Any, network: Any, preprocessing: Any, *arguments: Any, **options: Any) -> None:
        build(self, network, replace(preprocessing, mean=IMAGENET_STD, std=IMAGENET_MEAN), *arguments, **options)

    monkeypatch.setattr(spec.WithPreprocessing, "__init__", wrong)
    folder = artifact.parent / "new"
    with pytest.raises(UserError, match="does not agree with the network: logits differ"):
        export_artifact(exportable(model), folder / artifact.name, name, precision="fp32")
    assert not folder.exists()
    info = ArtifactInfo.from_plain(right)
    exchanged = replace(info.preprocessing, mean=IMAGENET_STD, std=IMAGENET_MEAN)
    write_record(replace(info, preprocessing=exchanged), artifact)
    if name == "ncnn":  # its files hold no preprocessing; the record is compared with the network
        assert "its mean and std are not the network's" in check(model, artifact)
    else:
        with pytest.raises(UserError, match="preprocessing inside the file and in its record differ"):
            check(model, artifact)


@each_artifact
def test_two_exchanged_class_names_are_caught(model: Classifier, artifact: Path) -> None:
    """Inside the file, where the format has them, and in the record."""
    info = read_record(artifact)
    if info.runtime != "ncnn":  # its files hold no names
        assert patch(artifact, [(b"ant", b"xyz"), (b"bee", b"ant"), (b"xyz", b"bee")])
        with pytest.raises(UserError):
            check(model, artifact)
    write_record(
        replace(info, sha256=artifact_hash(artifact), class_names=("bee", "ant", "cat", "dog", "elk")), artifact
    )
    if info.runtime == "ncnn":  # the record is compared with the network
        assert "its class names are not the network's" in check(model, artifact)
    else:  # in LiteRT's file the checksum of the zip is wrong already
        with pytest.raises(UserError, match=r"does not fit its checksum|Bad CRC"):
            check(model, artifact)


@each_artifact
def test_an_artifact_of_another_network_is_caught(model: Classifier, artifact: Path) -> None:
    other = Classifier(tiny_config()).eval()
    other.metadata = model.metadata
    assert "it was made from other weights" in check(other, artifact)


@each_artifact
def test_an_edited_record_is_refused(artifact: Path) -> None:
    text = record_path(artifact).read_text()
    record = json.loads(text)
    size = {"preprocessing": record["preprocessing"] | {"size": [96, 96]}}
    for fields in ({"precision": "int8"}, size, {"normalized_by": "caller"}, {"status": "run here", "parity": {}}):
        record_path(artifact).write_text(json.dumps(record | fields))
        with pytest.raises(UserError, match=r"was edited after the export.* export again"):
            open_artifact(artifact)
    record_path(artifact).write_text(json.dumps(json.loads(text)))  # other spaces are no edit
    assert read_record(artifact).record_sha256


@each_artifact
def test_a_record_of_an_early_version_opens(artifact: Path) -> None:
    record = json.loads(record_path(artifact).read_text())
    del record["record_sha256"]
    record_path(artifact).write_text(json.dumps(record))
    runner = runtime_module(record["runtime"]).RUNNER
    assert runner.for_check(artifact).info.record_sha256 == ""
    if record["runtime"] == "ncnn":  # its files hold no metadata
        return
    for fields in ({"precision": "int8"}, {"normalized_by": "caller"}):
        record_path(artifact).write_text(json.dumps(record | fields))
        with pytest.raises(UserError, match="inside the file and in its record differ"):
            runner.for_check(artifact)


@each_artifact
def test_a_file_changed_after_export_is_refused(artifact: Path) -> None:
    file = artifact if artifact.is_file() else max(artifact.rglob("*.bin"))
    with open(file, "ab") as appended:
        appended.write(b"x")
    with pytest.raises(UserError, match="was changed after its export"):
        open_artifact(artifact)


@each_artifact_run_here
def test_rubbish_is_refused_in_one_line(artifact: Path) -> None:
    for file in [artifact] if artifact.is_file() else artifact.rglob("*"):
        if file.is_file():
            file.write_bytes(b"not a network")
    write_record(
        replace(
            ArtifactInfo.from_plain(json.loads(record_path(artifact).read_text())), sha256=artifact_hash(artifact)
        ),
        artifact,
    )
    with pytest.raises(UserError, match="cannot be loaded by"):
        open_artifact(artifact)


# --------------------------------------------------------------------------------------------- bad input


@each_runtime
def test_what_is_not_installed_is_named(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gone = RUNTIMES[name].packages[-1][0]
    find = dependencies.importlib.import_module

    def missing(module: str, package: str | None = None) -> Any:
        if module == gone:
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        return find(module, package)  # packages that are imported now import their own parts this way

    monkeypatch.setattr(dependencies.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=rf"{gone} is not installed; run: .*iformer\[{name}\]"):
        RUNTIMES[name].require()
    with pytest.raises(MissingDependencyError):
        export_artifact(exportable(model), tmp_path / f"a{RUNTIMES[name].suffix}", name)
    assert not list(tmp_path.iterdir())


@each_runtime
def test_impossible_options_leave_nothing(model: Classifier, tmp_path: Path, name: str) -> None:
    need(name)
    path = tmp_path / "new" / f"a{RUNTIMES[name].suffix}"
    with pytest.raises(UserError, match="32 pixels or more"):
        export_artifact(exportable(model), path, name, size=(16, 64))
    with pytest.raises(UserError, match="batch is 0"):
        export_artifact(exportable(model), path, name, batch=0)
    with pytest.raises(UserError, match=r"precision is 'int2'; .* supports"):
        export_artifact(exportable(model), path, name, precision="int2")
    if not RUNTIMES[name].any_batch:
        with pytest.raises(UserError, match="takes a fixed number of images"):
            export_artifact(exportable(model), path, name, batch="dynamic")
    if RUNTIMES[name].one_image:
        with pytest.raises(UserError, match="takes one image in one call"):
            export_artifact(exportable(model), path, name, batch=2)
    with pytest.raises(UserError, match="before folding"):
        export_artifact(exportable(fold(model)), path, name)
    model.reset_classifier(0)
    with pytest.raises(UserError, match="one class or more"):
        export_artifact(exportable(model), path, name)
    assert not path.parent.exists()


def test_an_unknown_runtime_and_a_folder_that_cannot_be_made(model: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean openvino"):
        export_artifact(exportable(model), tmp_path / "a", "openvno")
    need("onnx")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write into .*file: File exists"):
        export_artifact(exportable(model), tmp_path / "file" / "a.onnx", "onnx")


@contextmanager
def no_file_longer_than(limit: int) -> Iterator[None]:
    """What a full disk does to whoever writes, child processes too: the write fails part of the way."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        signal.signal(signal.SIGXFSZ, handler)


@each_artifact_made_again
def test_a_disk_that_fills_up_leaves_what_was_there(model: Classifier, artifact: Path) -> None:
    before = artifact_hash(artifact)
    name = read_record(artifact).runtime
    with no_file_longer_than(60_000), pytest.raises((UserError, OSError)):
        export_artifact(exportable(model), artifact, name)
    assert artifact_hash(artifact) == before
    assert read_record(artifact).runtime == name
    assert sorted(file.name for file in artifact.parent.iterdir()) == [artifact.name, f"{artifact.name}.json"]


def test_a_full_disk_is_said_before_the_work(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="No space left") as caught:
        export_artifact(exportable(model), tmp_path / "new" / "a.onnx", "onnx")
    assert caught.value.filename == str(tmp_path / "new")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------- files and folders


def write_folder(path: Path, content: str) -> None:
    path.mkdir()
    (path / "model").write_text(content)
    record_path(path).write_text(json.dumps({"file": path.name, "runtime": "ncnn", "content": content}))


def write_twice(path: Path) -> None:
    write_folder(path, "third")
    write_folder(path, "not again")


def test_a_folder_takes_the_place_of_an_artifact_only(tmp_path: Path) -> None:
    target = tmp_path / "net.ncnn"
    for content in ("first", "second"):
        with staged(target) as path:
            write_folder(path, content)
        assert (target / "model").read_text() == content
    with pytest.raises(FileExistsError), staged(target) as path:
        write_twice(path)
    assert (target / "model").read_text() == json.loads(record_path(target).read_text())["content"] == "second"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.ncnn", "net.ncnn.json"]
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "a.jpg").touch()
    for _ in range(2):
        with pytest.raises(UserError, match="is a folder and not an artifact"), staged(photographs) as path:
            write_folder(path, "any")
        assert (photographs / "a.jpg").exists()
        record_path(photographs).write_text('{"file": "another", "runtime": "ncnn"}')


def test_folders_without_a_name_are_no_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", "/", ""):
        assert not is_artifact(path)
        assert artifact_paths(Path(path), [RUNTIMES["onnx"]], "net", None) == [Path(path) / "net.onnx"]


def test_an_artifact_whose_files_are_gone(tmp_path: Path) -> None:
    target = tmp_path / "net.ncnn"
    with staged(target) as path:
        write_folder(path, "{}")
    with pytest.raises(UserError, match="is not the record of an artifact"):
        read_record(target)


def test_every_runtime_has_what_the_contract_asks_for() -> None:
    pyproject = (Path(runtimes.__file__).parents[4] / "pyproject.toml").read_text()
    for runtime in RUNTIMES.values():
        assert f"\n{runtime.name} = [" in pyproject
        extra = next(line for line in pyproject.splitlines() if line.startswith(f"{runtime.name} = "))
        for _, package in runtime.packages:
            assert f'"{package}>=' in extra
        assert runtime.suffix.startswith(".")


# ----------------------------------------------------------------------------------------- large images


@pytest.mark.parametrize(
    ("name", "padded_tokens", "size"),
    [
        *(
            pytest.param(param.values[0], "attended", (72, 104), marks=param.marks)
            for param in slow([name for name in NAMES if name != "onnx"])
        ),
        ("onnx", "attended", (72, 104)),
        pytest.param("onnx", "masked", (72, 104), marks=pytest.mark.sweep),
        *(
            pytest.param(name, padded_tokens, size, marks=pytest.mark.full)
            for name in NAMES
            for padded_tokens, size in (("attended", (128, 128)), ("attended", (104, 136)), ("masked", (104, 136)))
        ),
    ],
)
def test_attention_in_windows(
    model: Classifier, tmp_path: Path, name: str, padded_tokens: str, size: tuple[int, int]
) -> None:
    """Whole windows of 4 x 4 tokens, and padded ones in both forms, cut and joined by groups of channels."""
    from iformer.config.windows import with_design

    need(name)
    options = {"windowed_stages": (3,), "window_size": 4, "channel_chunks": 4, "global_blocks": 0}
    config = with_design(model.config, "chunk_hybrid", padded_tokens=padded_tokens, **options)  # type: ignore[arg-type]
    windowed = Classifier(config).eval()
    windowed.load_state_dict(model.state_dict())
    windowed.metadata = model.metadata
    path = tmp_path / f"windowed{RUNTIMES[name].suffix}"
    info = export_artifact(exportable(windowed), path, name, size=size, precision="fp32")
    assert info.parity is not None
    assert info.parity["max_relative_error"] < 1e-4


@each_runtime
@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.full)])
def test_images_of_other_channels(name: str, channels: int, tmp_path: Path) -> None:
    need(name)
    torch.manual_seed(0)
    network = Classifier(tiny_config(num_classes=3, in_chans=channels)).eval()
    randomize(network)
    path = tmp_path / f"a{RUNTIMES[name].suffix}"
    parity = export_artifact(exportable(network), path, name, precision="fp32").parity
    assert parity is not None
    assert parity["max_relative_error"] < 1e-4
    assert parity["failures"] == []
