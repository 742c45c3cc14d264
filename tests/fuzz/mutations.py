"""Mutations of files: of bytes, and of the values in JSON, YAML and the headers of safetensors files."""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

Mutation = Callable[[bytes, random.Random], bytes]

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    10**25,
    -(10**400),
    1e-9,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "\x1b[31m\n",
    "../../etc/passwd",
    "=1+1",
    "é" * 300,
    [],
    [[]],
    ["a"],
    [1, 2],
    {},
    {"a": 1},
)
"""What takes the place of a value, whatever its type."""

WORDS = (
    b"\x00",
    b"\xff" * 8,
    b"\x7f" * 8,
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"\xc3\x28",
    b"{" * 500,
)
"""What is put in between, or in the place of, other bytes."""


def flip_bits(content: bytes, chance: random.Random) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncate(content: bytes, chance: random.Random) -> bytes:
    """Cut the end off."""
    return content[: chance.randrange(len(content))]


def cut_out(content: bytes, chance: random.Random) -> bytes:
    """Remove or repeat a stretch of bytes."""
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.choice((1, 4, 64, 1024)))
    return content[:start] + content[start:end] * chance.choice((0, 2, 50)) + content[end:]


def put_words(content: bytes, chance: random.Random) -> bytes:
    """Put one of `WORDS` into the file, in between or over what is there."""
    word, at = chance.choice(WORDS), chance.randrange(len(content))
    return content[:at] + word + content[at + chance.choice((0, len(word))) :]


def extreme_numbers(content: bytes, chance: random.Random) -> bytes:
    """Overwrite an aligned 2, 4 or 8 byte integer by its smallest or largest values, in either byte order."""
    width = chance.choice((2, 4, 8))
    at = chance.randrange(max(1, len(content) // width)) * width
    number = chance.choice((0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1))
    word = number.to_bytes(width, chance.choice(("little", "big")))
    return content[:at] + word + content[at + width :]


LAUGHS = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 8)}]\n" for before, name in pairwise("abcdefghijk")
)
"""YAML of a few hundred bytes that means a thousand million values."""

BYTES: tuple[Mutation, ...] = (flip_bits, truncate, cut_out, put_words, extreme_numbers)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested mappings and lists."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*path, key))


def change_value(plain: Any, chance: random.Random) -> Any:
    """Replace, remove, nest or repeat one of the values; the result is never equal to `plain`."""
    while True:
        changed = _changed_once(plain, chance)
        if _meaning(changed) != _meaning(plain):
            return changed


def _meaning(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True, default=repr)


def _changed_once(plain: Any, chance: random.Random) -> Any:
    plain = copy.deepcopy(plain)
    path = chance.choice([path for path in places(plain) if path] or [()])
    if not path:
        return chance.choice(VALUES)
    parent = plain
    for key in path[:-1]:
        parent = parent[key]
    kind = chance.randrange(6)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1:
        for _ in range(chance.choice((1, 30, 400))):
            parent[path[-1]] = [parent[path[-1]]]
    elif kind == 2 and isinstance(parent, dict):
        parent[chance.choice(("a", "", "__class__", "\x1b[2J"))] = parent.pop(path[-1])
    elif kind == 3:
        parent[path[-1]] = [parent[path[-1]]] * 20_000
    else:
        parent[path[-1]] = copy.deepcopy(chance.choice(VALUES))
    return plain


def json_values(content: bytes, chance: random.Random) -> bytes:
    """Change a value of a JSON file."""
    return json.dumps(change_value(json.loads(content), chance)).encode()


def json_lines(content: bytes, chance: random.Random) -> bytes:
    """Change a value in a line of a JSON lines file."""
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = json_values(lines[at], chance)
    return b"\n".join(lines) + b"\n"


def yaml_values(content: bytes, chance: random.Random) -> bytes:
    """Change a value of a YAML file; where YAML can only say it by tags or aliases, it does."""
    plain = change_value(yaml.safe_load(content), chance)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)  # PyYAML writes nested values by recursion, several calls a level
    try:
        text = yaml.safe_dump(plain, sort_keys=False)
    finally:
        sys.setrecursionlimit(limit)
    tags = ("epochs: !!int abc\n", "lr: &x [*x]\n", "date: 2020-13-45\n")
    forms = (*[text] * 4, LAUGHS + text, *(text + tag for tag in tags))
    return chance.choice(forms).encode(chance.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin-1")), "replace")


def header_values(content: bytes, chance: random.Random) -> bytes:
    """Change a value in the header of a safetensors file, or in one of the JSON texts of its metadata."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:  # safetensors writes it in another order each time
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    texts = [name for name, text in header.get("__metadata__", {}).items() if text[:1] in "{["]
    if texts and chance.random() < 0.8:
        name = chance.choice(texts)
        changed = json_values(header["__metadata__"][name].encode(), chance)
        header["__metadata__"][name] = changed.decode()
    else:
        header = change_value(header, chance)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def mutate(path: Path, mutations: tuple[Mutation, ...], seed: int) -> str:
    """Change the file by one of the mutations, chosen by the seed; returns the name of the mutation."""
    chance = random.Random(f"{path.name} {seed}")
    mutation = mutations[seed % len(mutations)]
    path.write_bytes(mutation(path.read_bytes(), chance))
    return mutation.__name__
