"""The examples of "Extend" work as they stand on their pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import iformer
from iformer.config.operators import ATTENTION_OPERATORS, Operator
from iformer.config.variants import VARIANTS, list_models
from iformer.errors import ConfigError
from iformer.layers.operator import operator_class
from iformer.models.complexity import count_macs
from iformer.models.folding import fold
from tiny.networks import randomize
from tiny.pages import code

SIZE, OPERATOR = "extend/size.md", "extend/attention-operator.md"


@pytest.fixture
def restored() -> Iterator[None]:
    """The package's tables are as before after the test."""
    tables = (VARIANTS, ATTENTION_OPERATORS)
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture
def linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: None) -> Iterator[None]:
    """The example operator's file and row, as a reader would add them."""
    (tmp_path / "linear_attention.py").write_text(code(OPERATOR, "operator-file"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "linear_attention", raising=False)
    exec(code(OPERATOR, "operator-row"), {})
    yield
    sys.modules.pop("linear_attention", None)


@pytest.mark.usefixtures("restored")
def test_one_row_makes_a_size(tmp_path: Path) -> None:
    exec(code(SIZE, "size-row"), {})
    scope: dict[str, object] = {}
    exec(code(SIZE, "size-use"), scope)
    model, distilled = scope["model"], scope["distilled"]
    assert isinstance(model, torch.nn.Module)
    assert isinstance(distilled, torch.nn.Module)
    assert {"iformer_xs", "iformer_xs_distilled"} <= set(list_models())
    assert [stage.channels for stage in model.config.stages] == [24, 48, 96, 192]
    randomize(model)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fold(model.eval())(images), model(images), atol=1e-4, rtol=1e-4)
    assert len(distilled.train()(images)) == 2
    iformer.save(model, tmp_path / "xs.safetensors")
    assert iformer.load(tmp_path / "xs.safetensors").config == model.config


@pytest.mark.usefixtures("linear")
def test_one_file_and_one_row_make_an_operator(tmp_path: Path) -> None:
    scope: dict[str, object] = {}
    exec(code(OPERATOR, "operator-use"), scope)
    model = scope["model"]
    assert isinstance(model, torch.nn.Module)
    assert type(model.stages[3].blocks[0].attention).__name__ == "LinearAttention"
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    randomize(model)
    model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(images), model(images), atol=1e-4, rtol=1e-4)
    assert count_macs(model, (512, 512)) < count_macs(iformer.create_model("iformer_t", num_classes=4), (512, 512))
    iformer.save(model, tmp_path / "linear.safetensors")
    assert iformer.load(tmp_path / "linear.safetensors").config == model.config


def test_without_its_row_an_operator_is_unknown() -> None:
    with pytest.raises(ConfigError, match="operator is 'linear'; expected one of 'shma', 'sha', 'mha', 'shvit'"):
        iformer.create_model("iformer_t", operator="linear")


def test_a_row_that_names_no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTENTION_OPERATORS, "wrong", Operator(location="torch.nn:Linear"))
    with pytest.raises(TypeError, match=r"torch\.nn:Linear is no AttentionOperator"):
        operator_class("wrong")
