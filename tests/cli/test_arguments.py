"""Values of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from iformer.cli.main import main
from iformer.cli.recipe_options import recipe_options
from iformer.config.reference import recipe_fields
from iformer.errors import OutputError
from iformer.files import output_folder
from iformer.locks import reserved
from iformer.tasks.classification.config import ClassificationRecipe


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
