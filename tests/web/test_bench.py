"""Benchmarks in headless Chromium, started as `--browser auto` does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iformer.cli.main import main
from iformer.errors import UserError
from iformer.web.bench import measure_web
from iformer.web.manifest import read_page_artifact, reference_pictures


def test_what_the_benchmark_refuses(capsys: pytest.CaptureFixture[str], tiny_onnx: Path) -> None:
    for arguments, expected in (
        (["elpv", "--on", "web", "--batch", "2"], "--batch is 2; in a browser a call takes one image"),
        (["elpv", "--browser", "auto"], "are for --on web"),
        (["elpv", "--lan"], "are for --on web"),
    ):
        assert main(["bench", *arguments]) == 1
        assert expected in capsys.readouterr().err
    with pytest.raises(UserError, match="expected auto or the program of a Chromium-based browser"):
        measure_web([], [], browser="/no/such/browser")


@pytest.mark.sweep
def test_every_backend_gives_a_row_or_a_reason(
    assets: str, browser: Any, tiny_onnx: Path, new_litert: Path, photographs: list[Path]
) -> None:
    """On SwiftShader LiteRT's WebGPU answers; ONNX Runtime's hangs, which ends its row only."""
    pictures = reference_pictures(photographs, read_page_artifact(tiny_onnx, []).info.preprocessing)
    artifacts = [read_page_artifact(path, pictures) for path in (tiny_onnx, new_litert)]
    result = measure_web(
        artifacts, pictures, rounds=3, calls=2, threads=[2], browser="auto", assets=assets, limit_seconds=40
    )
    rows = {(row.runtime, row.where.replace(" (software)", "")): row for row in result.rows}
    assert result.device.gpu_is_software
    for key in (
        ("onnx", "WebAssembly, 1 thread"),
        ("onnx", "WebAssembly, 2 threads"),
        ("litert", "LiteRT WebAssembly, 1 thread"),
        ("litert", "LiteRT WebAssembly, 2 threads"),
        ("litert", "LiteRT WebGPU"),
    ):
        row = rows.pop(key)
        assert row.reason == ""
        assert row.max_relative_error is not None
        assert row.max_relative_error <= 1e-4
        assert row.same_class
        assert row.rounds == 3
        assert row.median_ms is not None
        assert row.median_ms > 0
    (last,) = rows.values()
    assert (last.runtime, last.backend) == ("onnx", "WebGPU (software)")
    assert (last.median_ms is None) == bool(last.reason)


@pytest.mark.full
def test_int8_has_the_same_first_class_on_every_photograph(
    assets: str, browser: Any, tiny_int8: list[Path], photographs: list[Path]
) -> None:
    pictures = reference_pictures(photographs, read_page_artifact(tiny_int8[0], []).info.preprocessing)
    assert len(pictures) == 3
    artifacts = [read_page_artifact(path, pictures) for path in tiny_int8]
    result = measure_web(artifacts, pictures, rounds=1, calls=1, gpu=False, browser="auto", assets=assets)
    assert [row.backend for row in result.rows] == ["WebAssembly", "LiteRT WebAssembly"]
    rows = {row.runtime: row for row in result.rows}
    assert rows.keys() == {"onnx", "litert"}
    for row in rows.values():
        assert row.precision == "int8"
        assert row.reason == ""
        assert row.same_class
        assert row.median_ms is not None


@pytest.mark.full
def test_bench_on_web(
    assets: str, browser: Any, tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psutil")
    command = ["bench", str(tiny_onnx), "--on", "web", "--browser", "auto", "--assets", assets, "--rounds", "2"]
    assert main([*command, "--calls", "1", "--out", str(tmp_path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]["web"]
    assert figures["device"]["browser"].startswith(("Chromium", "HeadlessChrome", "Chrome"))
    assert figures["rows"][0]["backend"] == "WebAssembly"
    assert json.loads((tmp_path / "bench.json").read_text())["figures"]["web"] == figures
    assert "WebAssembly" in (tmp_path / "bench.csv").read_text()
