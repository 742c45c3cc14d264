"""`iformer doctor` on the command line."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tiny.command_line import run


def test_doctor_names_what_is_missing_and_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else find(name, *rest)
    )
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    findings = json.loads(out)
    onnx = next(part for part in findings["parts"] if part["name"] == "onnx")
    assert onnx["missing"] == ["onnxruntime"]
    assert onnx["install"] == "pip install 'iformer[onnx]'"
    assert findings["hub"] is None, "the network is asked only with --online"
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "pip install 'iformer[onnx]'" in " ".join(out.split())


def test_doctor_online_says_when_the_hub_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, out, _ = run(capsys, "doctor", "--online", "--json")
    assert code == 0
    hub = json.loads(out)["hub"]
    assert hub["reachable"] is False
    assert hub["reason"]
