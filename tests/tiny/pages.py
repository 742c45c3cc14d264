"""The code blocks of the documentation's pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"^```(?P<language>\w+) ?(?P<label>[\w-]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: "```python label" and its code."""

    language: str
    label: str
    code: str

    def commands(self) -> list[str]:
        """Return the command lines of a shell block, without comments; `\\` joins lines."""
        joined = self.code.replace("\\\n", " ")
        lines = [re.sub(r"\s+#.*$", "", line).strip() for line in joined.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]


def page(name: str) -> str:
    """Return the text of a page by its path below `docs`."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks_of(text: str) -> list[Block]:
    """Return the code blocks of a Markdown text in their order."""
    return [Block(**match.groupdict()) for match in _BLOCK.finditer(text)]


def blocks(name: str) -> list[Block]:
    """Return the code blocks of a page in their order."""
    return blocks_of(page(name))


def code(name: str, label: str) -> str:
    """Return the one block of a page with this label."""
    (block,) = (block for block in blocks(name) if block.label == label)
    return block.code
