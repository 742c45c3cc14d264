"""The page on the paper: its example operator works as it stands there, and its map names what exists."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import iformer
from iformer.config.operators import ATTENTION_OPERATORS
from iformer.errors import ConfigError
from iformer.layers.operator import operator_class
from iformer.models.complexity import count_macs
from iformer.models.folding import fold
from tiny.networks import randomize

PAGE = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")


def code(label: str) -> str:
    """The one block of code with this label."""
    (block,) = re.findall(rf"^```python {label}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return str(block)


@pytest.fixture
def linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's file and row, as a reader would add them."""
    (tmp_path / "linear_attention.py").write_text(code("operator-file"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "linear_attention", raising=False)
    before = dict(ATTENTION_OPERATORS)
    exec(code("operator-row"), {})
    yield
    ATTENTION_OPERATORS.clear()
    ATTENTION_OPERATORS.update(before)
    sys.modules.pop("linear_attention", None)


@pytest.mark.usefixtures("linear")
def test_one_file_and_one_row_make_an_operator(tmp_path: Path) -> None:
    scope: dict[str, object] = {}
    exec(code("operator-use"), scope)
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
    from iformer.config.operators import Operator

    monkeypatch.setitem(ATTENTION_OPERATORS, "wrong", Operator(location="torch.nn:Linear"))
    with pytest.raises(TypeError, match=r"torch\.nn:Linear is no AttentionOperator"):
        operator_class("wrong")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(iformer\.[a-z_]+\.[A-Za-z_.]+)", PAGE))))
def test_every_name_on_the_page_exists(name: str) -> None:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            found = getattr(found, attribute)
        return
    pytest.fail(f"{name} does not exist")


def test_the_example_of_the_paper_in_python() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    scope: dict[str, object] = {}
    exec(block, scope)
    assert scope["single_head"].config.stages[2].attention.operator == "sha"  # type: ignore[attr-defined]


def test_every_table_and_figure_is_on_the_map() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "`iformer paper" in line]
    named = " ".join(line.split("|")[1] for line in rows)
    numbers = {
        int(number) for line in re.findall(r"Tables? ([\d, and]+)", named) for number in re.findall(r"\d+", line)
    }
    assert numbers == set(range(1, 19))
    assert set(re.findall(r"Figure (\d)", named)) == {"1", "2", "3"}
