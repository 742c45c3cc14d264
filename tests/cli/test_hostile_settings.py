"""Invalid recipes, `--set` values and stored settings of a run: each is one line, and no files are left."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from iformer.cli.main import main

RECIPE = "epochs: 1\nlr: 1.0e-3\n"

LEVELS = zip("abcdefg", "bcdefgh", strict=True)
ALIASES = "\n".join(["a: &a [1]", *(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in LEVELS)])

FILES: dict[str, tuple[str | bytes, str]] = {
    "task of a list": ("task: [a]", "unknown task"),
    "task of a mapping": ("task: {a: b}", "unknown task"),
    "date": (RECIPE + "seed: 2024-01-31", "recipe.seed is '2024-01-31'"),
    "long integer": (RECIPE + "seed: " + "9" * 5000, "is not YAML"),
    "huge integer": ("lr: 1.0\nepochs: 99999999999999999999999999", "recipe.epochs is 99999999999999999999999999"),
    "huge batch": (RECIPE + "batch_size: 100000000000", "recipe.batch_size is 100000000000"),
    "huge float": (RECIPE + "weight_decay: 1.0e+300", "recipe.weight_decay is 1e+300"),
    "not a number": (RECIPE + "weight_decay: .nan", "recipe.weight_decay is nan"),
    "section of a number": (RECIPE + "augment: 3", "recipe.augment is 3"),
    "section of a list": (RECIPE + "augment: [hflip]", "recipe.augment is ['hflip']"),
    "deep value": (RECIPE + "betas: " + "[" * 500 + "]" * 500, "nested too deeply"),
    "set": (RECIPE + "betas: !!set {a, b}", "recipe.betas is "),
    "number as key": (RECIPE + "3: 4", "has no field 3"),
    "null as key": (RECIPE + "~: 4", "has no field None"),
    "by_model of numbers": (RECIPE + "by_model: 3", "by_model is 3"),
    "latin-1": ("# café\nepochs: 1".encode("latin-1"), "is not a text file in UTF-8"),
    "binary": (bytes(range(256)), "is not a text file in UTF-8"),
    "aliases": (ALIASES, "too large"),
}


def only_error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["train", "--data", "nowhere", *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 1000
    return lines[0]


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, complaint = FILES[name]
    file = tmp_path / "own.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = only_error(capsys, "--recipe", file, "--out", tmp_path / "run")
    assert complaint in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lr=!!int abc", "--set lr: '!!int abc' is not YAML"),
        ("lr=" + "9" * 5000, "--set lr: "),
        ("lr=" + "[" * 5000, "--set lr: "),
        ("lr=2024-01-31", "recipe.lr is '2024-01-31'"),
        ("lr=[1, 2]", "recipe.lr is [1, 2]"),
        ("lr=1e26", "recipe.lr is 1e+26"),
        ("epochs=1e26", "recipe.epochs is "),
        ("workers=100000", "recipe.workers is 100000"),
        ("augment.hflip=7", "recipe.augment.hflip is 7"),
        ("augment.hflop=0", "has no field 'augment.hflop'; did you mean augment.hflip"),
        ("batch-size=8", "has no field 'batch-size'; did you mean batch_size? iformer info --recipe classify"),
        ("zzzzz=8", "has no field 'zzzzz'; iformer info --recipe classify lists all fields"),
        ("val_split=0.1", "it is an option and not a field: --val-split (in Python val_split=)"),
        ("val_spilt=0.1", "did you mean --val-split (in Python val_split=)?"),
        ("folds=5", "--folds (in Python iformer.cross_validate)"),
        ("augment={hflop: 0}", "recipe.augment has no field 'hflop'; did you mean hflip"),
        ("\x1b[2J=3", r"has no field '\x1b[2J'"),
        ("lr", "--set 'lr': expected field=value"),
    ],
)
def test_an_override(text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint in only_error(capsys, "--set", text, "--out", tmp_path / "run")


STORED: dict[str, Any] = {
    "task": "classify",
    "data": "nowhere",
    "model": "iformer_t",
    "recipe_name": "quickstart",
    "val_split": 0.2,
    "recipe": {"epochs": 1, "lr": 1e-3},
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data": 5}, "config.data is 5"),
        ({"data": None}, "config.data is None"),
        ({"model": ["a"]}, "config.model is ['a']"),
        ({"recipe_name": ""}, "config.recipe_name is ''"),
        ({"task": "pose"}, "unknown task 'pose'"),
        ({"task": [1]}, "config.task is [1]"),
        ({"val_split": "half"}, "config.val_split is 'half'"),
        ({"val_split": 7.0}, "config.val_split is 7.0"),
        ({"recipe": [1]}, "is damaged"),
    ],
)
def test_stored_settings_with_a_wrong_field(
    change: dict[str, Any], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**STORED, **change}))
    error = resume_error(capsys, tmp_path)
    assert complaint in error
    assert "config.yaml is damaged" in error


@pytest.mark.parametrize("name", ["data", "model", "recipe_name", "recipe"])
def test_stored_settings_without_a_field(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = {key: value for key, value in STORED.items() if key != name}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    error = resume_error(capsys, tmp_path)
    assert "config.yaml is damaged" in error
    assert name == "recipe" or f"needs {name}" in error


def resume_error(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    before = sorted(path.name for path in folder.iterdir())
    assert main(["train", "--resume", "--out", str(folder)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert sorted(path.name for path in folder.iterdir()) == before
    return lines[0]


def test_stored_settings_with_a_bad_recipe_name_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe, complaint in (
        ({"epochs": 1}, "recipe needs lr"),
        ({"epochs": 0, "lr": 1.0}, "recipe.epochs is 0"),
    ):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({**STORED, "recipe": recipe}))
        assert complaint in resume_error(capsys, folder)
