"""Read YAML from untrusted sources with bounded time and memory and one-line errors."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import yaml

from iformer.errors import ConfigError
from iformer.files import read_at_most

MAX_BYTES = 2**16
MAX_NODES = 500_000
"""Largest number of values in a document. Values behind an alias are counted at each use."""
MAX_DEPTH = 32
MAX_SLOW_BYTES = 2**19
"""Largest document, in bytes, for PyYAML's pure-Python parser, which takes ten seconds for a million bytes."""


def _plain(loader: Any) -> Any:
    """Return a subclass of a safe YAML loader in which dates stay strings, so that all values are plain."""
    rules = {
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in loader.yaml_implicit_resolvers.items()
    }
    return type("PlainLoader", (loader,), {"yaml_implicit_resolvers": rules})


_SLOW = _plain(yaml.SafeLoader)
_FAST = _plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader))
"""Loader based on libyaml, if installed. libyaml refuses escapes of surrogates such as `"\\udce9"`."""


def read_yaml(path: str | os.PathLike[str], source: str = "", *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a YAML file in UTF-8, or in UTF-16 with a byte order mark.

    Args:
        path: the file.
        source: name of the file in error messages; if empty, `path`.
        max_bytes: largest accepted size of the file, in bytes.

    Raises:
        ConfigError: the file is larger than `max_bytes`, or its text cannot be used; see `parse_yaml`.
        OSError: the file cannot be read.
    """
    source = source or str(path)
    contents = read_at_most(path, max_bytes)
    if contents is None:
        raise ConfigError(f"{source} is larger than {max_bytes // 1024} KiB; expected a YAML file of settings")
    return parse_yaml(contents, source)


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Parse one YAML document; return None if it is empty.

    Raises:
        ConfigError: the text is not YAML, has a key twice, or is too deeply nested or too large. The message
            starts with `source`.
    """
    loader = None
    try:
        escape = b"\\ud" if isinstance(text, bytes) else "\\ud"
        slow = escape in text.lower()  # type: ignore[operator]
        if slow and len(text) > MAX_SLOW_BYTES:
            raise ConfigError(f"{source} has names that are not UTF-8 and more than {MAX_SLOW_BYTES // 1024} KiB")
        loader = (_SLOW if slow else _FAST)(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, source)
        return loader.construct_document(node)
    except ConfigError:
        raise
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{source} is not a text file in UTF-8: {error.reason}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply; expected settings") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # a tag that does not fit its value, such as !!int before a text, can raise any of these
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())[:300]}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(root: Any, source: str) -> None:
    """Raise `ConfigError` if a document has too many nodes, too many levels or a repeated key.

    Nodes behind an alias are counted at each use. No value is built before this check.
    """
    remaining = MAX_NODES
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        remaining -= 1
        if remaining < 0 or depth > MAX_DEPTH:
            raise ConfigError(f"{source} is nested too deeply or too large; expected settings")
        if isinstance(node, yaml.MappingNode):
            counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for key, count in counts.items():
                if count > 1:
                    raise ConfigError(f"{source} has {key[:80]!r} {count} times; keep one")
            stack += [(child, depth + 1) for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(child, depth + 1) for child in node.value]
