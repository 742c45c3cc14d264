"""YAML of users: plain data or an error of one line, in bounded time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from iformer.errors import ConfigError
from iformer.safe_yaml import MAX_BYTES, parse_yaml, read_yaml


def nested_aliases(use: str) -> str:
    """Nine levels of ten references each: a thousand million values if they were copied."""
    lines = ["a: &a {k: 1}"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} {use.format(', '.join([f'*{before}'] * 10))}")
    return "\n".join(lines)


REFUSED: dict[str, str | bytes] = {
    "nested aliases": nested_aliases("[{}]"),
    "nested merges": nested_aliases("{{<<: [{}]}}"),
    "recursion": "a: &a [*a]",
    "deep list": "[" * MAX_BYTES,
    "deep mapping": "{a: " * 10_000,
    "deep blocks": "- " * 10_000,
    "long integer": "a: " + "9" * 5000,
    "tagged integer": "a: !!int abc",
    "tagged float": "a: !!float abc",
    "tagged bool": "a: !!bool abc",
    "tagged timestamp": "a: !!timestamp abc",
    "tagged binary": "a: !!binary abc",
    "python object": "a: !!python/object/apply:os.system [ls]",
    "list as key": "? [a]\n: 1",
    "latin-1": "café: 1".encode("latin-1"),
    "binary": bytes(range(256)),
    "truncated UTF-16": "a: 1".encode("utf-16")[:-1],
    "control character": "a: \x00",
    "two documents": "---\na: 1\n---\nb: 2",
    "a key twice": "lr: 1\nlr: 2",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^own\.yaml ") as caught:
        parse_yaml(REFUSED[name], "own.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 2024-01-31", {"a": "2024-01-31"}),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x {k: 1}\nb: {<<: *x, l: 2}", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
        ("a: größer".encode("utf-16"), {"a": "größer"}),
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
        (r'a: "caf\udce9"', {"a": "caf\udce9"}),
    ],
)
def test_what_is_read(text: str | bytes, value: Any) -> None:
    assert parse_yaml(text, "own.yaml") == value


def test_a_name_that_is_not_utf8_comes_back(tmp_path: Path) -> None:
    settings = {"data": "caf\udce9", "names": ["犬", "🐱", "a: b", "2024-01-31", "null"]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True))
    assert read_yaml(path) == settings


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a: 1\n" * MAX_BYTES)
    with pytest.raises(ConfigError, match=r"large\.yaml is larger than 64 KiB"):
        read_yaml(path)


def test_aliases_take_little_memory() -> None:
    """In a process of its own that may not have more than 1 GiB."""
    code = (
        "import sys; from iformer.safe_yaml import parse_yaml; from iformer.errors import ConfigError\n"
        "for text in sys.argv[1:]:\n"
        "    try: parse_yaml(text, 'x')\n"
        "    except ConfigError: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(REFUSED["nested aliases"]), str(REFUSED["nested merges"])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
    )
    assert done.stdout.split() == ["refused", "refused"]
