"""Reader of XML from untrusted sources as a tree; document types, which could declare entities, are refused."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from iformer.data.sources.annotations.split import read_bytes
from iformer.errors import DataError, one_line

_MAX_BYTES = 2**24
_MAX_DEPTH = 32


class _RefusedError(Exception):
    """XML that this reader does not accept."""


def read_xml(path: Path) -> Element:
    """Read an XML file of at most 16 MiB and 32 levels.

    Raises:
        DataError: the file is not XML, exceeds a limit, or has a document type, which could declare entities.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise _RefusedError(f"is nested more than {_MAX_DEPTH} levels deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*declared: object) -> None:
        raise _RefusedError("declares a document type (DOCTYPE), which annotations do not need")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    contents = read_bytes(path, max_bytes=_MAX_BYTES)
    try:
        parser.Parse(contents, True)
        return builder.close()
    except _RefusedError as error:
        raise DataError(f"{path}: {error}; remove it") from None
    except (expat.ExpatError, ValueError, AssertionError, LookupError) as error:
        raise DataError(f"{path}: is not XML ({one_line(error)})") from None
