"""Values of the command line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from iformer.cli.main import main
from iformer.cli.pretrain import pretrain
from iformer.cli.recipe_options import recipe_options
from iformer.cli.train import train
from iformer.config.recipe import RUN_OPTIONS
from iformer.config.reference import recipe_fields
from iformer.errors import OutputError
from iformer.files import output_folder
from iformer.locks import reserved
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.registry import load_recipe


def test_checking_whether_a_folder_is_writable_changes_no_file(tmp_path: Path) -> None:
    mine = tmp_path / ".iformer-write-test"
    mine.write_text("mine")
    assert output_folder(tmp_path) == tmp_path
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine]
    assert list(output_folder(tmp_path / "new" / "folder").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_user_s_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OutputError, match=f"cannot write into {out}: "):
            output_folder(out)
        with pytest.raises(OutputError, match="cannot write into "), reserved(out / "folder" / "lock", "in use"):
            pass


def test_generated_options_have_plain_types() -> None:
    """Older releases of typer refuse an annotation within an annotation, and all verbs with it."""
    names = [row.name for row in recipe_fields(ClassificationRecipe)]

    @recipe_options(ClassificationRecipe, {f"o{number}": name for number, name in enumerate(names)}, groups={})
    def verb(**fields: object) -> None: ...

    hints = {name: get_args(hint)[0] for name, hint in verb.__annotations__.items()}
    assert len(hints) == len(names)
    scalars = {name: hint for name, hint in hints.items() if "tuple" not in str(hint)}
    assert len(scalars) > 40
    assert [name for name, hint in scalars.items() if "Annotated" in str(hint)] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "elpv", "--data", "elpv", "--out", ""], "--out is empty; give a path"),
        (["predict", "a.png", "--weights", "elpv", "--out="], "--out is empty; give a path"),
        (["bench", "elpv", "--threads", "99999"], "less than or equal to 1024"),
        (["export", "elpv", "--to", "onnx", "--accuracy-control"], "--accuracy-control is for OpenVINO in int8"),
    ],
)
def test_values_that_mean_nothing_good(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", [train, pretrain])
def test_options_that_are_no_fields_are_known_as_such(verb: Callable[..., None]) -> None:
    fields = {name for row in recipe_fields(ClassificationRecipe) for name in (row.name.split("."))}
    names = set(inspect.signature(verb).parameters) - {"set_", "json", "debug", "multi_label"} - fields
    assert "val_split" in names
    assert names - {"teacher", "teacher_weights"} <= RUN_OPTIONS.keys()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "--mixup-alpha", "0.1"], "it may be a field of the recipe: --set augment.mixup_alpha=VALUE"),
        (["train", "--augment-hflip=0.1"], "--set augment.hflip=VALUE"),
        (["train", "--clip-gard=3"], "--set clip_grad=VALUE"),
        (["pretrain", "--eval-every=3"], "--set eval_every=VALUE"),
        (["train", "--bogus"], ""),
        (["eval", "--mixup-alpha", "0.1"], ""),
    ],
)
def test_an_unknown_option_that_is_a_field_is_explained(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert ("--set" in error) == bool(hint)


@pytest.mark.parametrize("name", ["classify", "finetune"])
def test_info_lists_the_fields_of_a_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--recipe", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    recipe = load_recipe("finetune")
    assert f"epochs={recipe.epochs}" in lines
    assert lines[lines.index("patience=null") + 1].startswith("    Stop after this number of epochs")
    assert {line.partition("=")[0] for line in lines} >= {row.name for row in recipe_fields(type(recipe))}
    assert main(["info", "--recipe", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recipe": "finetune", "fields": recipe.to_plain()}
