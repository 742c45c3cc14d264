"""What a device sends to the page's server: requests, and the messages of a benchmark."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import torch

from iformer.deploy.artifact import read_record
from iformer.errors import UserError
from iformer.web.manifest import PageArtifact
from iformer.web.report import Collector
from iformer.web.server import PageServer, Resource

_WORDS = {
    "browser": "Chromium 156",
    "user_agent": "Mozilla",
    "system": "Android 16",
    "model": "Pixel",
    "gpu": "arm",
}
_FACTS = {"gpu_is_software": False, "threads": 8, "cores": 8, "memory_gb": 8, "screen": "412x915@2.6"}
_SAFE = {"secure_context": True, "cross_origin_isolated": True}
_ROW = {"artifact": 0, "backend": "wasm", "threads": 1}
_OUTPUTS = [{"logits": [0.0, 1.0, 2.0]}]

MESSAGES: list[dict[str, Any]] = [
    {"kind": "device", "device": {**_WORDS, **_FACTS, **_SAFE}},
    {"kind": "alive"},
    {"kind": "answers", "row": _ROW, "load_ms": 5, "first_ms": 2.5, "outputs": _OUTPUTS, "error": None},
    {"kind": "samples", "row": _ROW, "samples_ms": [4.0, 2.0, 3.0], "error": None},
    {"kind": "done"},
]
BODY = json.dumps({"token": "a" * 22})
REQUEST = (
    "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    "POST /session HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Type: application/json\r\n"
    f"Authorization: Bearer {'b' * 43}\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}"
    "GET /networks/0.onnx HTTP/1.1\r\nHost: localhost\r\n\r\n"
)


def read_messages(path: Path, artifact: Path) -> None:
    """Hand the messages in a JSON file to a benchmark, and make its table."""
    outputs = tuple({"logits": torch.tensor([named["logits"]])} for named in _OUTPUTS)
    subject = PageArtifact(label="a", path=artifact, info=read_record(artifact), outputs=outputs)
    said: list[str] = []
    collector = Collector([subject], threads=[2], report=said.append)
    messages = json.loads(path.read_bytes())
    refused = [collector.receive(message) for message in (messages if isinstance(messages, list) else [messages])]
    assert all(line.isprintable() for line in said)
    json.dumps([row.to_plain() for row in collector.rows()], allow_nan=False)
    for words in filter(None, refused):
        raise UserError(words)


def send_request(path: Path) -> None:
    """Send a file to the server; each of its answers has the form of one, and none gives a secret."""
    resources = {
        "/": Resource(content=b"page", public=True),
        "/networks/0.onnx": Resource(content=b"a secret"),
    }
    with PageServer(resources) as server:
        server.new_address()
        with socket.create_connection((server.host, server.port), timeout=5) as connection:
            connection.sendall(path.read_bytes())
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    if not answer.startswith((b"HTTP/1.1 ", b'{"error": ')):  # the second one answers a line without a version
        raise RuntimeError(f"not an answer: {answer[:100]!r}")
    if b"a secret" in answer:
        raise RuntimeError("the secret was served without a session")
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise UserError(answer.decode(errors="backslashreplace").splitlines()[0])
