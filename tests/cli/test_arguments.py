"""Values of the command line."""

from __future__ import annotations

from pathlib import Path

from iformer.cli.arguments import output_folder


def test_looking_whether_a_folder_can_be_written_touches_no_file_in_it(tmp_path: Path) -> None:
    mine = tmp_path / ".iformer-write-test"
    mine.write_text("mine")
    assert output_folder(tmp_path) == tmp_path
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [mine]
    assert list(output_folder(tmp_path / "new" / "folder").iterdir()) == []
