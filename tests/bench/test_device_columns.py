"""`bench --records`: what several devices measured, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iformer.bench.device_columns import Network, networks, read_columns
from iformer.bench.latency import Latency
from iformer.bench.record import write_record
from iformer.bench.subjects import MATRIX_PRODUCT
from iformer.cli.main import main
from iformer.errors import UserError
from iformer.web.bench import WebResult
from iformer.web.report import Device, WebRow

COMPUTER = {"precision": "fp32", "size": (224, 224), "p10_ms": 1.0, "p90_ms": 99.0, "rounds": 3, "load_ms": 1.0}
PHONE = {"precision": "fp32", "size": (224, 224), "runtime": "onnx", "file_mb": 1.0}


def latency(label: str, milliseconds: float, batch: int = 1) -> dict[str, Any]:
    return Latency(
        label=label, runtime="onnx", device="this machine", batch=batch, median_ms=milliseconds, times_as_fast=1.0,
        file_mb=1.0, gmacs=None, gflops=None, **COMPUTER,  # type: ignore[arg-type]
    ).to_plain()  # fmt: skip


@pytest.fixture
def computer(tmp_path: Path) -> Path:
    rows = [latency("iformer_t", 6.5), latency("iformer_m", 18.25), latency(MATRIX_PRODUCT, 9.0)]
    write_record(tmp_path / "computer.json", {"onnx": [*rows, latency("iformer_t", 24.0, batch=4)]})
    return tmp_path / "computer.json"


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    device = Device(
        browser="Chrome 156", user_agent="", system="Android 16", model="Phone\x1b[31m 7", gpu="", cores=8,
        gpu_is_software=False, threads=4, memory_gb=8.0, secure_context=True, cross_origin_isolated=True,
        screen="",
    )  # fmt: skip
    rows = [
        WebRow(label="iformer_t", backend="WebAssembly", threads=1, median_ms=31.5, **PHONE),  # type: ignore[arg-type]
        WebRow(label="iformer_t", backend="WebGPU", threads=1, reason="wrong", **PHONE),  # type: ignore[arg-type]
    ]
    write_record(tmp_path / "phone.json", {"web": WebResult(device=device, rows=tuple(rows)).to_plain()})
    return tmp_path / "phone.json"


def test_a_column_for_each_device_and_backend(computer: Path, phone: Path) -> None:
    columns = read_columns([computer, phone])
    assert [column.where for column in columns] == [
        "ONNX Runtime",
        "ONNX Runtime, batch 4",
        "WebAssembly, 1 thread",
    ]
    assert columns[2].device == r"Phone\x1b[31m 7, Android 16, Chrome 156"
    small, large = (Network(label=name, precision="fp32", size=(224, 224)) for name in ("iformer_t", "iformer_m"))
    assert networks(columns) == [small, large]
    assert [column.median_ms for column in columns] == [{small: 6.5, large: 18.25}, {small: 24.0}, {small: 31.5}]


def test_two_records_of_one_device_stay_apart(computer: Path) -> None:
    others = [computer.parent / name / computer.name for name in ("b1", "b2")]  # as --out b1 and --out b2 write
    for other in others:
        other.parent.mkdir()
        other.write_text(computer.read_text())
    titles = [column.title for column in read_columns([computer, *others])]
    assert len(set(titles)) == 6
    assert titles[2].endswith(f"({others[0]})")


def test_on_the_command_line(
    computer: Path,
    phone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "200")
    command = ["bench", "--records", str(computer), "--records", str(phone)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    (line,) = (line for line in shown.splitlines() if line.startswith("iformer_t "))
    assert line.split() == ["iformer_t", "fp32", "224", "x", "224", "6.50", "24.00", "31.50"]
    assert "\x1b[31m" not in shown
    for name in ("pareto.png", "pareto_narrow.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["median_ms"] for row in rows] == [6.5, 18.25, 24.0, 31.5]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"device": 1, "figures": {}}', '{"device": "", "figures": {}}']
)
def test_what_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match="is not a record of iformer bench; expected the bench"):
        read_columns([tmp_path / "a.json"])
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_columns([tmp_path / "b.json"])
    with pytest.raises(UserError, match="cannot be read: not a regular file"):
        read_columns([Path("/dev/zero")])


def test_records_of_other_networks_have_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_record(tmp_path / "mine.json", {"onnx": [latency("mine", 6.5)]})
    assert main(["bench", "--records", str(tmp_path / "mine.json"), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "6.50" in shown.out
    assert "no picture: none of these networks is in the paper's Tables 3 and 18" in shown.err
    assert not (tmp_path / "out").exists()


def test_records_measure_nothing(computer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "iformer_t", "--records", str(computer)]) == 1
    assert "it takes no networks and no --peers" in capsys.readouterr().err
