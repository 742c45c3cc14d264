"""What a device reports: it is checked, compared, and never trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from iformer.deploy.artifact import read_record
from iformer.web.manifest import PageArtifact
from iformer.web.report import Collector

DEVICE: dict[str, Any] = {
    "browser": "Chromium 156",
    "user_agent": "Mozilla/5.0",
    "system": "Android 16",
    "model": "Pixel 9",
    "gpu": "arm valhall",
    "gpu_is_software": False,
    "threads": 8,
    "cores": 8,
    "memory_gb": 8,
    "secure_context": True,
    "cross_origin_isolated": True,
    "screen": "412x915@2.6",
}
ROW = {"artifact": 0, "backend": "wasm", "threads": 1}
RIGHT = [{"logits": [0.0, 1.0, 2.0]}, {"logits": [3.0, 1.0, 2.0]}]


@pytest.fixture
def artifact(tiny_onnx: Path) -> PageArtifact:
    outputs = tuple({"logits": torch.tensor([named["logits"]])} for named in RIGHT)
    return PageArtifact(label="tiny", path=tiny_onnx, info=read_record(tiny_onnx), outputs=outputs)


def answers(row: dict[str, Any] = ROW, **fields: Any) -> dict[str, Any]:
    return {"kind": "answers", "row": row, "load_ms": 5, "first_ms": 2.5, "outputs": RIGHT, "error": None} | fields


def samples(row: dict[str, Any] = ROW, values: Any = (4.0, 2.0, 3.0), error: Any = None) -> dict[str, Any]:
    return {"kind": "samples", "row": row, "samples_ms": list(values), "error": error}


def started(*artifacts: PageArtifact, report: Any = lambda line: None) -> Collector:
    collector = Collector(artifacts, threads=[2], report=report)
    assert collector.receive({"kind": "device", "device": DEVICE}) is None
    return collector


def test_right_answers_get_a_latency(artifact: PageArtifact) -> None:
    collector = started(artifact, replace(artifact, label="other"))
    other = ROW | {"artifact": 1}
    gpu = ROW | {"backend": "webgpu"}
    for message in (
        answers(),
        answers(other),
        answers(gpu, error="no kernel", outputs=[]),
        {"kind": "alive"},
        samples(),
        samples(other, (2.0, 1.0, 1.0)),
        samples(gpu, (), "no kernel"),
        {"kind": "done"},
    ):
        assert collector.receive(message) is None
    assert collector.done.is_set()
    assert collector.receive({"kind": "alive"}) == "the benchmark is over"
    tiny, faster, failed = collector.rows()
    assert (tiny.label, tiny.backend, tiny.median_ms, tiny.rounds, tiny.times_as_fast) == (
        "tiny",
        "WebAssembly",
        pytest.approx(3),
        3,
        1,
    )
    assert (tiny.max_relative_error, tiny.same_class, tiny.load_ms, tiny.reason) == (0, True, 5, "")
    assert faster.times_as_fast == 2
    assert (failed.backend, failed.reason, failed.median_ms) == ("WebGPU", "no kernel", None)
    assert failed.to_plain()["size"] == [32, 32]


@pytest.mark.parametrize(
    ("outputs", "precision", "reason"),
    [
        ([{"logits": [0.0, 1.0, 2.001]}, RIGHT[1]], "fp32", "wrong: differs by 0.0005 of the largest value"),
        ([{"logits": [0.0, 1.0, 2.0001]}, RIGHT[1]], "fp32", ""),
        ([{"logits": [0.0, 1.2, 2.3]}, RIGHT[1]], "int8", ""),
        ([RIGHT[0], {"logits": [1.9, 1.0, 2.0]}], "int8", "wrong: another first class on a reference picture"),
    ],
)
def test_latency_counts_where_the_answer_is_right(
    artifact: PageArtifact, outputs: Any, precision: Any, reason: str
) -> None:
    collector = started(replace(artifact, info=replace(artifact.info, precision=precision)))
    assert collector.receive(answers(outputs=outputs)) is None
    assert collector.receive(samples()) is None
    (row,) = collector.rows()
    assert row.reason.startswith(reason)
    assert (row.median_ms is None) == bool(reason)


def test_a_failure_without_a_message_is_none_the_less_one(artifact: PageArtifact) -> None:
    collector = started(artifact)
    assert collector.receive(answers(outputs=[], error="")) is None
    assert collector.receive(samples()) is None
    (row,) = collector.rows()
    assert (row.reason, row.median_ms) == ("failed without a message", None)


def test_a_page_that_ends_early_leaves_rows_with_the_reason(artifact: PageArtifact) -> None:
    collector = started(artifact)
    assert collector.receive(answers()) is None
    (row,) = collector.rows()
    assert (row.reason, row.median_ms) == ("the page ended before the benchmark did", None)


@pytest.mark.parametrize(
    "message",
    [
        None,
        5,
        [],
        {},
        {"kind": "nothing"},
        {"kind": ["device"]},
        {"kind": "device", "device": DEVICE},
        answers(error=5),
        answers(load_ms=-1),
        answers(load_ms="5e3; rm"),
        answers(load_ms=float("inf")),
        answers(more=1),
        answers(outputs=[]),
        answers(outputs=[RIGHT[0]]),
        answers(outputs=[{"logits": [1.0]}, RIGHT[1]]),
        answers(outputs=[{"logits": [1.0, 2.0, float("nan")]}, RIGHT[1]]),
        answers(outputs=[{"logits": [1.0, 2.0, True]}, RIGHT[1]]),
        answers(outputs=[{"logits": [1.0, 2.0, 10**400]}, RIGHT[1]]),
        answers(outputs=[{"other": [0.0, 1.0, 2.0]}, RIGHT[1]]),
        answers(outputs=[{"logits": "123"}, RIGHT[1]]),
        answers(ROW | {"artifact": 7}),
        answers(ROW | {"threads": 3}),
        answers(ROW | {"backend": "litert-wasm"}),
        answers(ROW | {"backend": "<script>"}),
        samples(),
    ],
)
def test_wrong_messages_change_nothing(artifact: PageArtifact, message: Any) -> None:
    collector = started(artifact)
    wrong = collector.receive(message)
    assert wrong
    assert len(wrong) <= 200
    assert collector.rows() == []


def test_nothing_before_the_device_and_no_row_twice(artifact: PageArtifact) -> None:
    collector = Collector([artifact], threads=[1])
    assert collector.receive(answers()) == "expected the device first"
    assert collector.receive({"kind": "device", "device": DEVICE | {"threads": 10**9}})
    assert collector.device is None
    collector = started(artifact)
    assert [collector.receive(answers()), collector.receive(answers())] == [None, "the row exists"]
    assert [collector.receive(samples()), collector.receive(samples())] == [None, "the row is not expected"]


def test_nothing_that_a_device_says_reaches_the_terminal_as_it_is(artifact: PageArtifact) -> None:
    said: list[str] = []
    collector = Collector([artifact], threads=[1], report=said.append)
    hostile = "\x1b]0;owned\x07<img src=x onerror=alert(1)>\u202e\n# heading"
    assert collector.receive({"kind": "device", "device": DEVICE | {"model": hostile}}) is None
    assert collector.receive(answers(error=hostile, outputs=[])) is None
    (row,) = collector.rows()
    for text in (*said, row.reason):
        assert text.isprintable()
    assert "\\x1b]0;owned\\x07" in row.reason
    from iformer.tables import markdown_table

    assert "<img" not in markdown_table(["reason"], [[row.reason]])
