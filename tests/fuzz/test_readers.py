"""Changed files are read or refused with a readable error, in bounded time and memory."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from fuzz.forked import Outcome, call
from fuzz.mutations import mutate
from fuzz.readers import READERS, make_files

SAMPLE, MORE, MOST = range(3), range(3, 15), range(15, 60)
"""Seeds of the mutations in the fast tests, of those that the sweep adds, and of those that `-m full` adds."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("fuzz") / "files")


def outcomes(name: str, files: Path, seeds: range) -> list[tuple[str, Outcome]]:
    """Change the reader's file by each seed and read it; the sound file is there again afterwards."""
    reader = READERS[name]
    if reader.needs:
        pytest.importorskip(reader.needs)
    path = files / reader.file
    sound = path.read_bytes()
    assert call(partial(reader.read, path)).kind == "accepted", f"{name}: the sound file is not read"
    found: list[tuple[str, Outcome]] = []
    for seed in seeds:
        try:
            mutation = mutate(path, reader.mutations, seed)
            outcome = call(partial(reader.read, path))
            if outcome.kind == "accepted" and reader.checked and path.read_bytes() != sound:
                outcome = outcome._replace(kind="accepted in spite of its checksum")
        finally:
            path.write_bytes(sound)
        found.append((f"{name}, seed {seed}, {mutation}", outcome))
    return found


def assert_sound(found: list[tuple[str, Outcome]]) -> None:
    if report := os.environ.get("FUZZ_REPORT"):  # the figures of docs/concepts/robustness.md come from here
        with open(report, "a") as file:
            file.writelines(json.dumps([what, *outcome]) + "\n" for what, outcome in found)
    wrong = [f"{what}: {one.kind}: {one.text}" for what, one in found if one.kind not in ("accepted", "refused")]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", list(READERS))
def test_a_sample_of_changed_files(name: str, files: Path) -> None:
    assert_sound(outcomes(name, files, SAMPLE))


@pytest.mark.sweep
@pytest.mark.parametrize("name", list(READERS))
def test_many_changed_files(name: str, files: Path) -> None:
    assert_sound(outcomes(name, files, MORE))


@pytest.mark.full
@pytest.mark.parametrize("name", list(READERS))
def test_most_changed_files(name: str, files: Path) -> None:
    assert_sound(outcomes(name, files, MOST))
