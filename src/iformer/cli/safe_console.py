"""A rich console that shows control characters; in a separate module, because importing rich takes 0.1 s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.segment import Segment

from iformer.errors import printable_lines


class SafeConsole(Console):
    """A rich console that shows control characters as escape sequences."""

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Render as rich does, but escape control characters in text. Control segments (cursor movements) stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable_lines(segment.text), segment.style)
