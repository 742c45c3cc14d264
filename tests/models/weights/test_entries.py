"""Weights in the files of training scripts: nested, wrapped or averaged."""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from iformer.errors import WeightsError
from iformer.models.factory import build
from iformer.models.weights.checkpoint import save
from iformer.models.weights.dialects import to_timm
from iformer.models.weights.entries import select_entry
from iformer.models.weights.pickles import read_pickle
from iformer.models.weights.resolve import load
from tiny.networks import tiny_config

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    config = tiny_config()
    return to_timm(build(config).state_dict(), config)


@pytest.fixture(scope="module")
def other(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


WRAPPED: dict[str, Callable[[State, State], dict[str, Any]]] = {
    "plain": lambda state, other: state,
    "PyTorch's tutorials": lambda state, other: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "net": lambda state, other: {"net": state, "acc": 93.1},
    "an unknown key": lambda state, other: {"student_weights": state, "epoch": 4},
    "DeepSpeed": lambda state, other: {"module": state, "lr_scheduler": {}},
    "Lightning": lambda state, other: {
        "state_dict": prefixed("model.", state) | {"criterion.weight": torch.ones(5)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"EMA": {"decay": 0.9}},
    },
    "Lightning, another attribute": lambda state, other: {"state_dict": prefixed("classifier_net.", state)},
    "DDP": lambda state, other: prefixed("module.", state),
    "DDP in compile": lambda state, other: {"model": prefixed("_orig_mod.module.", state)},
    "compile in DDP": lambda state, other: {"model": prefixed("module._orig_mod.", state)},
    "compile in Lightning": lambda state, other: {"state_dict": prefixed("model._orig_mod.", state)},
    "AveragedModel": lambda state, other: {
        "model_ema": prefixed("module.", state) | {"n_averaged": torch.tensor(3)}
    },
    "weights before their average": lambda state, other: {"model_ema": other, "model": state},
    "the average under state_dict_ema": lambda state, other: {"state_dict_ema": other, "state_dict": state},
    "average and weights as prefixes": lambda state, other: {
        "state_dict": prefixed("ema_model.module.", other) | prefixed("model.", state)
    },
    "ema alone": lambda state, other: {"ema": state, "updates": 10},
    "nested": lambda state, other: {"checkpoint": {"states": {"network": state}}, "epoch": 3},
    "teacher and student": lambda state, other: {
        "state_dict": prefixed("teacher.", other) | prefixed("student.", state)
    },
    "a teacher inside the network": lambda state, other: {"model": state | prefixed("teacher.", other)},
    "ordered": lambda state, other: {"state_dict": collections.OrderedDict(state)},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_the_weights_themselves_are_found(case: str, state: State, other: State) -> None:
    found = select_entry(WRAPPED[case](state, other)).state_dict
    assert same(found, state)


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ("model_ema", lambda state, other: {"model_ema": prefixed("module.", other), "model": state}),
        ("ema_model", lambda state, other: {"state_dict": prefixed("ema_model.module.", other) | state}),
        ("state_dict.teacher", lambda state, other: {"state_dict": prefixed("teacher.", other) | state}),
        ("a.b", lambda state, other: {"a": {"b": other, "c": state}}),
        ("second", lambda state, other: {"first": state, "second": other}),
    ],
)
def test_an_entry_is_taken_by_its_name(
    entry: str, content: Callable[[State, State], dict[str, Any]], state: State, other: State
) -> None:
    found = select_entry(content(state, other), entry).state_dict
    assert same(found, other)


def test_what_cannot_be_decided_is_asked(state: State, other: State) -> None:
    with pytest.raises(WeightsError, match="holds several networks: first, second; choose one with --entry"):
        select_entry({"first": state, "second": other})
    with pytest.raises(WeightsError, match="no state dict 'third'; it has first, second"):
        select_entry({"first": state, "second": other}, "third")


def test_keys_beside_the_network_are_named(state: State) -> None:
    loss = {"criterion.weight": torch.ones(5)}
    beside = select_entry({"state_dict": prefixed("model.", state) | loss}).beside
    assert beside == ("criterion.weight",)
    beside = select_entry(prefixed("module.", state) | {"n_averaged": torch.tensor(3)}).beside
    assert beside == ()


def test_a_missing_key_is_an_error_whatever_the_wrapper(tmp_path: Path) -> None:
    model = build(tiny_config())
    state = model.state_dict()
    del state["stem.conv2.conv.weight"]
    torch.save({"state_dict": prefixed("model.", state)}, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match=r"do not fit any size; .*missing"):
        load(tmp_path / "a.ckpt")


def test_content_that_holds_itself_ends(state: State) -> None:
    content: dict[str, Any] = {str(index): {} for index in range(300)}
    for value in content.values():
        value.update(content)
    content["deep"] = state
    found = select_entry(content).state_dict
    assert same(found, state)


def test_wrappers_of_torch_itself(tmp_path: Path) -> None:
    """The files are written by the wrappers, not by this test's idea of their keys."""
    torch.manual_seed(0)
    from iformer import create_model

    model = create_model("iformer_t", num_classes=2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    compiled = torch.compile(nn.Sequential(collections.OrderedDict(model=model)))
    beside = {"args": argparse.Namespace(lr=0.1), "epoch": 1}
    for content in (averaged.state_dict(), compiled.state_dict(), {"model_ema": averaged.state_dict(), **beside}):
        torch.save(content, tmp_path / "a.pth")
        loaded = load(tmp_path / "a.pth")
        assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels_have_a_mean_and_std_each(channels: int, tmp_path: Path) -> None:
    network = timm.create_model("iformer_t", num_classes=2, in_chans=channels).eval()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth")
    expected = {1: (0.449,), 4: (0.485, 0.456, 0.406, 0.485)}[channels]
    assert loaded.metadata.preprocessing.mean == expected
    assert len(loaded.metadata.preprocessing.std) == channels
    x = torch.randn(1, channels, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), atol=1e-5, rtol=1e-4)
    save(loaded, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").metadata.preprocessing.mean == expected


def test_plain_values_beside_the_weights_are_allowed(state: State, tmp_path: Path) -> None:
    content = {
        "state_dict": collections.defaultdict(None, state),
        "args": argparse.Namespace(out=Path("runs")),
        "best": np.float64(3.0),
    }
    torch.save(content, tmp_path / "a.pth")
    found = select_entry(read_pickle(tmp_path / "a.pth")).state_dict
    assert same(found, state)
