"""The examples of "Extend" run as printed."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import iformer
import iformer.tasks
from iformer.cli.main import main
from iformer.config.network import ATTENTION_OPERATORS, Operator
from iformer.config.variants import VARIANTS, list_models
from iformer.data.transforms import Normalize
from iformer.deploy import runtimes
from iformer.deploy.runner import open_artifact
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import ConfigError
from iformer.layers.operator import operator_class
from iformer.models.complexity import count_macs
from iformer.models.folding import fold
from iformer.models.weights.header import NETWORKS
from iformer.tasks.registry import TASKS
from tiny.dense import light_detector
from tiny.networks import randomize, tiny_variant
from tiny.pages import DOCS, ROOT, blocks, code

SIZE, OPERATOR, TASK, RUNTIME = (f"extend/{name}.md" for name in ("size", "attention-operator", "task", "runtime"))


@pytest.fixture
def restored() -> Iterator[None]:
    """The package's tables are as before after the test."""
    tables: tuple[dict[str, object], ...] = (VARIANTS, ATTENTION_OPERATORS, TASKS, RUNTIMES)
    before, networks = [dict(table) for table in tables], list(NETWORKS)
    yield
    NETWORKS[:] = networks
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
def test_one_row_makes_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    golden = Path("tests/models/golden_state_dict.json")
    (tmp_path / golden).parent.mkdir(parents=True)
    shutil.copy(ROOT / golden, tmp_path / golden)
    monkeypatch.chdir(tmp_path)
    exec(code(SIZE, "size-golden"), {})
    before, after = ((folder / golden).read_text().splitlines() for folder in (ROOT, tmp_path))
    assert after[: len(before) - 2] == before[:-2]
    assert set(json.loads(golden.read_text())) == set(list_models())


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
    with pytest.raises(TypeError, match=r"torch\.nn:Linear is not an AttentionOperator"):
        operator_class("wrong")


@pytest.mark.usefixtures("restored")
def test_one_folder_and_its_rows_make_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "added" / "regression"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("config", "training", "evaluate", "predict"):
        (package / f"{name}.py").write_text(code(TASK, f"task-{name}"))
    monkeypatch.setattr(iformer.tasks, "__path__", [*iformer.tasks.__path__, str(package.parent)])
    for label in ("task-row", "task-network"):
        exec(code(TASK, label), {})
    VARIANTS["iformer_tiny"] = tiny_variant()
    for split, count in (("train", 16), ("val", 8)):
        lines = []
        for number in range(count):
            value = number / count
            image = np.full((40, 40, 3), 255 * value, np.uint8)
            Image.fromarray(image).save(tmp_path / f"{split}{number}.png")
            lines.append(f"{split}{number}.png,{value}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    recipe, run = tmp_path / "regression.yaml", tmp_path / "run"
    recipe.write_text(code(TASK, "task-recipe"))
    command = ["train", "--task", "regress", "--recipe", str(recipe), "--data", str(tmp_path), "--out", str(run)]
    options = "--model iformer_tiny --epochs 20 --batch-size 8 --size 32 --weights none --lr 0.08 --device cpu"
    settings = "--set workers=0 --set precision=fp32 --set eval_every=20 --no-tensorboard"
    assert main([*command, *options.split(), *settings.split()]) == 0
    assert "R2" in (run / "report.md").read_text()
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [record["train_loss"] for record in records if record["event"] == "epoch"]
    assert losses[-1] < losses[0] / 2
    weights = str(run / "last.safetensors")
    assert iformer.load(weights).metadata.task == "regress"
    capsys.readouterr()
    assert main(["eval", weights, "--data", str(tmp_path), "--device", "cpu", "--workers", "0", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["images"] == 8
    assert metrics["r2"] == pytest.approx(iformer.load(weights).metadata.metrics["r2"], abs=0.01)
    assert main(["predict", str(tmp_path / "val7.png"), "--weights", weights, "--device", "cpu", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)["value"]
    assert isinstance(value, float)
    (tmp_path / "broken.png").write_bytes(b"no image")
    pictures = [str(tmp_path / name) for name in ("broken.png", "val7.png")]
    assert (
        main(["predict", *pictures, "--weights", weights, "--device", "cpu", "--out", str(tmp_path / "out")]) == 1
    )
    printed = capsys.readouterr()
    assert printed.out.split() == ["val7.png", f"{value:.2f}"]
    assert "broken.png" in printed.err
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [set(record) for record in records] == [{"file", "error"}, {"file", "value"}]


@pytest.mark.usefixtures("restored")
@pytest.mark.sweep
def test_one_file_and_one_row_make_a_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pt2.py").write_text(code(RUNTIME, "runtime-file"))
    monkeypatch.setattr(runtimes, "__path__", [*runtimes.__path__, str(tmp_path)])
    exec(code(RUNTIME, "runtime-row"), {})
    (shell,) = (block for block in blocks(RUNTIME) if block.language == "sh")
    export, predict = (shlex.split(line)[1:] for line in shell.commands())
    (tmp_path / "docs/images").mkdir(parents=True)
    shutil.copy(DOCS / "images/cell.png", tmp_path / "docs/images")
    monkeypatch.chdir(tmp_path)
    assert main([*export, "--size", "64"]) == 0
    record = json.loads((tmp_path / "elpv.pt2.json").read_text())
    assert record["status"] == "run here"
    assert record["parity"]["max_relative_error"] < 1e-4
    capsys.readouterr()
    assert main([*predict, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"][0]["name"] in record["class_names"]
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    network = iformer.load("elpv")
    expected = network(Normalize(network.metadata.preprocessing)(images))
    torch.testing.assert_close(
        open_artifact(tmp_path / "elpv.pt2")(images)["logits"], expected, atol=1e-4, rtol=1e-4
    )
    detector = iformer.export(
        light_detector(), "pt2", out=tmp_path / "detector.pt2"
    )  # several outputs, postprocess
    assert detector.info.status == "run here"
    assert {"boxes", "scores"} <= set(open_artifact(detector.path).info.outputs)
