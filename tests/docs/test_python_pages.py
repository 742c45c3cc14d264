"""Every Python block of the pages that show the package's use from Python runs as it stands there."""

from __future__ import annotations

import importlib.util

import pytest

from tiny.pages import Block, blocks

OPTIONAL = {"segmentation_models_pytorch": "segmentation-models-pytorch", "transformers": "transformers"}


def python_blocks(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


def marked(page: str) -> list[object]:
    """Blocks that import a large library belong to the sweep."""
    return [
        pytest.param(block, marks=[pytest.mark.sweep] if any(name in block.code for name in OPTIONAL) else [])
        for block in python_blocks(page)
    ]


@pytest.mark.parametrize("block", marked("how-to/other-libraries.md"))
def test_other_libraries(block: Block) -> None:
    for name in OPTIONAL:
        if name in block.code and importlib.util.find_spec(name) is None:
            pytest.skip(f"{OPTIONAL[name]} is not installed")
    exec(compile(block.code, "docs/how-to/other-libraries.md", "exec"), {"__name__": "snippet"})
