"""The suite of benchmarks and the records of several machines, in miniature."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_machine_is_described() -> None:
    machine = importlib.import_module("machine")
    found = machine.describe(size=32)
    assert found["fingerprint"] == machine.fingerprint(found["cpu"], found["cores"], found["instructions"])
    assert all(rate > 0 for rate in found["matrix product, GFLOP/s"].values())
    assert json.loads(json.dumps(found)) == found


def test_products_of_onnx_runtime_are_right() -> None:
    pytest.importorskip("onnxruntime")
    machine = importlib.import_module("machine")
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    (product,) = machine._onnx_product(a, b)()
    torch.testing.assert_close(torch.from_numpy(product), a @ b)


def test_records_are_appended_by_machine_and_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = importlib.import_module("machine")
    path = tmp_path / "results" / "one.json"

    def run_on(fingerprint: str, figure: int) -> None:
        monkeypatch.setattr(machine, "describe", lambda: {"fingerprint": fingerprint})
        machine.append_record(path, {"figure": figure})

    run_on("aaaa", 1)
    run_on("bbbb", 2)
    run_on("aaaa", 3)  # the same command, machine and day
    found = json.loads(path.read_text())["records"]
    assert [(row["machine"]["fingerprint"], row["figures"]["figure"]) for row in found] == [
        ("bbbb", 2),
        ("aaaa", 3),
    ]
    found[1]["created"] = "2020-01-01T00:00:00+00:00"
    path.write_text(json.dumps({"records": found}))
    run_on("aaaa", 4)
    assert [row["figures"]["figure"] for row in json.loads(path.read_text())["records"]] == [2, 3, 4]


@pytest.mark.sweep
def test_scripts_take_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = importlib.import_module("suite")
    parse = argparse.ArgumentParser.parse_args

    for step in suite.STEPS:
        script = importlib.import_module(step.script)
        for settings in (step.quick, step.full):

            def parse_settings(parser: argparse.ArgumentParser, *_: Any, settings: str = settings) -> None:
                parse(parser, [*shlex.split(settings), "--out", "record.json"])
                raise StopIteration

            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_settings)
            with pytest.raises(StopIteration):
                script.main()


def test_every_step_has_records_of_its_own() -> None:
    suite = importlib.import_module("suite")
    assert len({step.result or step.script for step in suite.STEPS}) == len(suite.STEPS)


def test_a_failure_does_not_stop_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = importlib.import_module("suite")
    commands: list[list[str]] = []

    class Finished:
        returncode = 1

    def start(command: list[str], **_options: Any) -> Finished:
        commands.append(command)
        return Finished()

    monkeypatch.setattr(suite.subprocess, "run", start)
    steps = suite.STEPS[:2]
    assert len(suite.run(steps, tmp_path, quick=True)) == 2
    assert [command[-1] for command in commands] == [str(tmp_path / f"{step.script}.json") for step in steps]


@pytest.mark.sweep
def test_suite_writes_records(tmp_path: Path) -> None:
    suite = importlib.import_module("suite")
    step = suite.Step(script="inference", quick="--models iformer_t --size 64 --rounds 1 --threads 1 2")
    assert suite.run([step], tmp_path, quick=True) == []
    (record,) = json.loads((tmp_path / "inference.json").read_text())["records"]
    assert list(record["figures"]) == ["iformer_t", "iformer_t, 2 threads"]
    assert all(found["iformer folded"]["median_ms"] > 0 for found in record["figures"].values())
    assert record["threads"] == 1
    assert record["machine"]["matrix product, GFLOP/s"]["torch linear"] > 0
