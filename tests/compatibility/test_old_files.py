"""What an older version wrote still works: networks, runs, artifacts, recipes and shards. See data/README."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import v2

import iformer
from iformer.cli.main import main
from iformer.config.recipe import Recipe
from iformer.data.images import read_image
from iformer.data.transforms import Normalize, eval_transform
from iformer.tasks.registry import load_recipe
from iformer.tasks.segmentation import dataset
from tiny.digests import assert_same, digest

DATA = Path(__file__).with_name("data")
CLASSES = ("blue", "green", "red")

LIKE_THE_MAKERS = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
"""Whether this CPU rounds as the one that made the data. Elsewhere a gradient near zero may have another sign,
which Adam turns into a step of the learning rate, and Muon iterates in fp32."""


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files, which is the working directory: the runs name their data by relative paths."""
    folder = tmp_path / "old"
    shutil.copytree(DATA, folder)
    monkeypatch.chdir(folder)
    return folder


def expected(name: str) -> Any:
    return json.loads((DATA / "expected" / f"{name}.json").read_text())


def expected_logits() -> tuple[list[Path], Tensor]:
    rows = expected("logits")
    return [DATA / name for name in rows], torch.tensor(list(rows.values()))


def test_a_classifier_loads_and_gives_the_same_logits() -> None:
    network = iformer.load(DATA / "networks" / "classify.safetensors").eval()
    assert network.metadata.class_names == CLASSES
    preprocessing = network.metadata.preprocessing
    assert preprocessing is not None
    paths, logits = expected_logits()
    pixels = torch.stack([eval_transform(preprocessing)(read_image(path)) for path in paths])
    with torch.inference_mode():
        torch.testing.assert_close(network(Normalize(preprocessing)(pixels)), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_an_artifact_is_verified_and_gives_the_same_answers(
    capsys: pytest.CaptureFixture[str], runtime: str
) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "tflite": "ai_edge_litert"}[runtime])
    paths, logits = expected_logits()
    artifact = DATA / "artifacts" / f"classify.{runtime}"
    assert main(["predict", *map(str, paths), "--weights", str(artifact), "--top-k", "3", "--json"]) == 0
    said = capsys.readouterr()
    assert f"{artifact}.json has no checksum, as in early versions" in said.err
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [Path(answer["file"]) for answer in answers] == paths
    for answer, probabilities in zip(answers, logits.softmax(1), strict=True):
        found = {row["name"]: row["probability"] for row in answer["classes"]}
        assert found == pytest.approx(dict(zip(CLASSES, probabilities.tolist(), strict=True)), abs=2e-5)


def is_trained(state: Mapping[str, Tensor], weights: Mapping[str, list[float]], *, error: float) -> bool:
    """Return whether a run's state has the weights of the trained network already."""
    prefix = "average/" if any(name.startswith("average/") for name in state) else "model/"
    before = digest(
        {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    )
    names = before.keys() & weights.keys()
    assert len(names) > 50
    try:
        assert_same({name: before[name] for name in names}, {name: weights[name] for name in names}, error=error)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(("name", "steps"), [("classify", 9), ("distill", 9), ("detect", 6), ("segment", 6)])
def test_a_stopped_run_ends_as_it_did(old: Path, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classification on images, with a teacher on shards, detection and segmentation."""
    # the augmentation of segmenters has changed on purpose since: early versions exchanged colour channels
    monkeypatch.setattr(dataset, "PhotometricDistortion", lambda hue: v2.RandomPhotometricDistort())
    folder = Path("stopped", name)
    log = (folder / "log.jsonl").read_text().splitlines()
    error = 2e-6 if LIKE_THE_MAKERS else 2e-4
    assert not is_trained(load_file(folder / "resume.safetensors"), expected(name)["weights"], error=5 * error)
    assert main(["train", "--resume", "--out", str(folder), "--device", "cpu", "--no-tensorboard"]) == 0
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert lines[: len(log)] == log  # it went on, and did not begin again
    records = list(map(json.loads, lines))
    assert [record["step"] for record in records if record["event"] == "step"] == list(range(1, steps + 1))
    assert_same(digest(load_file(folder / "last.safetensors")), expected(name)["weights"], error=error)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    for metric, value in expected(name)["metrics"].items():
        assert metrics[metric] == pytest.approx(value, abs=1e-4 if LIKE_THE_MAKERS else 0.05), metric


@pytest.mark.parametrize(("task", "metric"), [("detect", "box_ap"), ("segment", "miou")])
def test_a_detector_and_a_segmenter_load_and_predict(
    old: Path, capsys: pytest.CaptureFixture[str], task: str, metric: str
) -> None:
    checkpoint = f"stopped/{task}/last.safetensors"
    assert main(["eval", checkpoint, "--data", "shapes", "--json", "--device", "cpu"]) == 0
    assert metric in json.loads(capsys.readouterr().out)["metrics"]
    assert main(["predict", "shapes/images/val", "--weights", checkpoint, "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_shards_are_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(DATA / "shards"), "--verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == {"train": 12, "val": 6}
    assert found["verified"] is True


def assert_has(recipe: Recipe, flat: Mapping[str, Any]) -> None:
    """Check the fields that an older version wrote; one that the task no longer has must have had its default."""
    settings = json.loads(json.dumps(recipe.to_plain()))
    for name, value in recipe.nested(flat).items():
        if isinstance(value, dict):
            assert {field: settings[name][field] for field in value} == value
        else:
            assert settings[name] == value, name


@pytest.mark.parametrize("name", ["classification", "detection"])
def test_a_recipe_with_flat_fields_gives_the_same_settings(name: str) -> None:
    recipe = load_recipe(str(DATA / "recipes" / f"{name}.yaml"), {})
    assert_has(recipe, expected(f"recipe-{name}"))
    assert_has(recipe, yaml.safe_load((DATA / "recipes" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", ["finetune", "imagenet-300", "coco-1x", "ade20k-40k"])
def test_a_recipe_known_by_name_has_the_same_settings(name: str) -> None:
    assert_has(load_recipe(name, {}), expected(f"recipe-{name}"))
