"""Latency and compute units of Core ML, with stand-ins for coremltools' benchmarker and its devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from iformer import save
from iformer.bench import core_ml
from iformer.bench.core_ml import measure_core_ml
from iformer.bench.subjects import BenchSubject, prepare_subject
from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.deploy.export import export_artifact
from iformer.deploy.runtimes.registry import find_runtime
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.tasks.export import exportable
from tiny.networks import tiny_config
from tiny.packages import need_packages

need_packages("coremltools")

COREML = find_runtime("coreml")


class MLNeuralEngineComputeDevice:
    """Named as coremltools' class is."""


class MLCPUComputeDevice:
    """Named as coremltools' class is."""


def operation(kind: str, unit: type | None) -> Any:
    usage = None if unit is None else SimpleNamespace(preferred_compute_device=unit())
    return SimpleNamespace(spec=SimpleNamespace(type=kind), compute_device_usage=usage)


class Benchmarker:
    """coremltools' `MLModelBenchmarker`: the nth one takes n + 1 milliseconds."""

    made: list[Benchmarker]

    def __init__(self, model: Any, device: Any = None) -> None:
        self.inputs = {feature.name: feature.type.multiArrayType for feature in model.get_spec().description.input}
        self.device = device
        self.made.append(self)
        self.ms = float(len(self.made))

    async def benchmark_load(self, iterations: int = 1) -> Any:
        return SimpleNamespace(samples=[100.0] * iterations)

    async def benchmark_predict(self, inputs: Any = None, iterations: int = 1, warmup: bool = False) -> Any:
        assert warmup
        assert {name: list(value.shape) for name, value in inputs.items()} == {
            name: list(kind.shape) for name, kind in self.inputs.items()
        }
        assert all(value.dtype == np.float32 for value in inputs.values())
        return SimpleNamespace(samples=[self.ms] * iterations)

    async def benchmark_operation_execution(
        self, inputs: Any = None, iterations: int = 1, warmup: bool = False
    ) -> list[Any]:
        ane, cpu = MLNeuralEngineComputeDevice, MLCPUComputeDevice
        kinds = [("ios16.conv", ane), ("ios16.conv", ane), ("gelu", ane), ("ios16.reshape", cpu), ("const", None)]
        return [operation(kind, unit) for kind, unit in kinds]


@dataclass
class Phone:
    """coremltools' `Device`."""

    name: str
    os_version: str = "18.1"
    credentials: list[Any] = field(default_factory=list)

    async def prepare_for_model_debugging(self, credentials: Any = None) -> Phone:
        self.credentials.append(credentials)
        return self


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> list[Phone]:
    """A Mac with two phones; the stand-ins have the names of the real modules' members, which have to exist."""
    from coremltools.models.ml_program.experimental import perf_utils, remote_device

    phones = [Phone("first"), Phone("second")]
    Benchmarker.made = []
    monkeypatch.setattr(core_ml, "require_mac", lambda: None)
    monkeypatch.setattr(perf_utils, "MLModelBenchmarker", Benchmarker)
    monkeypatch.setattr(remote_device.Device, "get_connected_devices", lambda _kind: phones)
    return phones


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[BenchSubject]:
    folder = tmp_path_factory.mktemp("coreml")
    model = Classifier(tiny_config())
    model.metadata = Metadata(class_names=tuple("abcde"), preprocessing=Preprocessing(size=(64, 64)))
    save(model, folder / "tiny.safetensors")
    checkpoint = str(folder / "tiny.safetensors")
    return [
        prepare_subject(checkpoint, COREML, folder, label="a"),
        prepare_subject(checkpoint, COREML, folder, size=(32, 32), label="b"),
    ]


def test_times_on_this_mac_and_the_unit_of_each_operation(mac: list[Phone], subjects: list[BenchSubject]) -> None:
    said: list[str] = []
    first, second = measure_core_ml(subjects, rounds=3, calls=2, report=said.append)
    assert (first.label, first.device, first.median_ms, first.load_ms) == ("a", "this Mac", 1.0, 100.0)
    assert second.times_as_fast == pytest.approx(0.5)
    assert first.units == {"Neural Engine": {"conv": 2, "gelu": 1}, "CPU": {"reshape": 1}}
    assert first.elsewhere == {"reshape": 1}
    assert [worker.device for worker in Benchmarker.made] == [None, None]
    assert said == ["a loaded on this Mac", "b loaded on this Mac"]
    assert subjects[0].precision == "fp16", "the Neural Engine needs it"


def test_a_connected_iphone_by_its_name(mac: list[Phone], subjects: list[BenchSubject]) -> None:
    (report,) = measure_core_ml(subjects[:1], iphone="second", team="TEAM123", rounds=1, calls=1)
    assert report.device == "second (iOS 18.1)"
    assert Benchmarker.made[0].device is mac[1]
    (credentials,) = mac[1].credentials
    assert credentials.development_team == "TEAM123"
    (report,) = measure_core_ml(subjects[:1], iphone="any", team="TEAM123", rounds=1, calls=1)
    assert report.device == "first (iOS 18.1)"


@pytest.mark.parametrize(
    ("iphone", "team", "message"),
    [
        ("third", "TEAM123", "no iPhone named 'third' is connected; connected are: first, second"),
        ("first", None, "give the identifier of your developer team by --team"),
    ],
)
def test_what_an_iphone_needs(
    mac: list[Phone], subjects: list[BenchSubject], iphone: str, team: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        measure_core_ml(subjects, iphone=iphone, team=team)


def test_an_artifact_that_takes_images_is_refused(
    mac: list[Phone], subjects: list[BenchSubject], tmp_path: Path
) -> None:
    model = Classifier(tiny_config()).eval()
    model.metadata = Metadata(class_names=tuple("abcde"), preprocessing=Preprocessing(size=(32, 32)))
    export_artifact(exportable(model), tmp_path / "images.mlpackage", "coreml")
    subject = prepare_subject(str(tmp_path / "images.mlpackage"), COREML, tmp_path)
    with pytest.raises(UserError, match=r"images.mlpackage takes images, .*; export it with --raw"):
        measure_core_ml([subject])


def test_other_systems_are_told_so(subjects: list[BenchSubject], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match="Core ML is timed on macOS only"):
        measure_core_ml(subjects)
