"""Files are written completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from iformer.errors import OutputError
from iformer.files import replacing, write_text


def test_replacing_shows_nothing_until_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "new"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("none/file", "does not exist"), ("plain/file", "is not a folder"), (".", "not a plain file")],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "plain").write_text("old")
    with pytest.raises(OutputError, match=rf"cannot write .*{reason}"):
        write_text(tmp_path / place, "new")
    assert (tmp_path / "plain").read_text() == "old"
    assert [left.name for left in tmp_path.iterdir()] == ["plain"]
