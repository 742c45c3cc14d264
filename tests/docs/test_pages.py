"""Names on the docs pages exist: modules, files, recipe fields, verbs. The paper's map is complete."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from iformer.cli.main import VERBS
from tiny.pages import DOCS, ROOT, blocks, blocks_of, page

PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
TEXTS = {**{name: page(name) for name in PAGES}, "README.md": (ROOT / "README.md").read_text(encoding="utf-8")}


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def named(pattern: str) -> set[tuple[str, str]]:
    """Return every match of a pattern with the page that has it."""
    return {(name, found) for name, text in TEXTS.items() for found in re.findall(pattern, text)}


def test_every_module_and_object_exists() -> None:
    pairs = named(r"`(iformer(?:_paper)?\.[a-z_]+(?:\.[A-Za-z_]+)*)")
    assert len(pairs) > 30
    assert not {(name, dotted) for name, dotted in pairs if not dotted.endswith(".json") and not exists(dotted)}


ADDED = re.compile(r"regression|/pt2\.py")
"""Files that a reader of "Extend" writes."""


def test_every_file_of_the_project_exists() -> None:
    pairs = named(r"`((?:src|tests|benchmarks|examples|reproduction|docs)/[\w./-]+)`")
    assert len(pairs) > 10
    assert not {(name, path) for name, path in pairs if not (ROOT / path).exists() and not ADDED.search(path)}


def test_every_verb_exists() -> None:
    shell = [block for text in TEXTS.values() for block in blocks_of(text) if block.language in ("sh", "console")]
    lines = [line for block in shell for line in block.commands()]
    verbs = {verb for line in lines for verb in re.findall(r"(?:^|&& |-m |\$ |exec )iformer (\w+)", line)}
    assert len(verbs) >= 9
    assert verbs <= VERBS.keys()


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", text[text.index("\nnav:") :]))
    assert set(PAGES) <= listed


PAPER = page("paper/index.md")


def test_the_example_of_the_paper_in_python() -> None:
    (block,) = (block for block in blocks("paper/index.md") if block.language == "python")
    scope: dict[str, object] = {}
    exec(block.code, scope)
    assert scope["single_head"].config.stages[2].attention.operator == "sha"  # type: ignore[attr-defined]


def test_every_table_and_figure_is_on_the_map() -> None:
    rows = [line for line in PAPER.splitlines() if line.startswith("| ") and "`iformer paper" in line]
    named = " ".join(line.split("|")[1] for line in rows)
    numbers = {
        int(number) for line in re.findall(r"Tables? ([\d, and]+)", named) for number in re.findall(r"\d+", line)
    }
    assert numbers == set(range(1, 19))
    assert set(re.findall(r"Figure (\d)", named)) == {"1", "2", "3"}


def test_images_are_used_and_exist() -> None:
    targets = {
        (Path(name).parent / target).as_posix() if name in PAGES else target.removeprefix("docs/")
        for name, text in TEXTS.items()
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    }
    resolved = {str((DOCS / target).resolve().relative_to(DOCS.resolve())) for target in targets}
    stored = {str(path.relative_to(DOCS)) for path in (DOCS / "images").iterdir()}
    assert resolved <= stored
    assert stored - resolved <= {"images/cell.png"}  # what the start page predicts on
