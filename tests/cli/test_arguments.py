"""Values of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

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
