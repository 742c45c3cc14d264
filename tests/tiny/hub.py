"""A local stand-in of the Hugging Face hub for the real client of huggingface_hub."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

NEWEST, OLDER = "a" * 40, "b" * 40
REPO = "timm/iformer_t.in1k"
TOKEN = "hf_token"


class Hub(http.server.ThreadingHTTPServer):
    """Serves one file at two revisions, keeps what is pushed, and counts what is asked of it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.others: dict[str, dict[str, bytes]] = {}
        """Files of further repositories, of one revision each."""
        self.private: set[str] = set()
        """Names of the private repositories among `others`."""
        self.asked: list[str] = []
        self.posted: list[str] = []
        """Addresses of what was written."""
        self.status: int | None = None
        self.retry_after: int | None = None
        """Seconds that clients are told to wait before they ask again, for each GET."""
        self.cut_short = False
        self.endless = False
        self.headers = True
        self.ignored: Sequence[str] = ()
        """Files that a `.gitignore` matches: the hub tells clients not to upload them."""
        self.upload_mode = "regular"
        """Of large files, `lfs`: the answers about these name a file that nobody asked about."""
        self.etag: str | None = None
        """Sent in place of the file's hash."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        """Create a repository, say how to upload, or take a commit, as the hub does; it needs a token."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append(self.path)
        repo = self.path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.fail(401, "")
        elif self.path == "/api/repos/create":
            wanted = json.loads(content)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            if name not in self.server.others and (wanted.get("private") or wanted.get("visibility") == "private"):
                self.server.private.add(name)
            self.server.others.setdefault(name, {})
            self.reply({"url": f"{self.server.url}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": path, "uploadMode": self.server.upload_mode, "shouldIgnore": path in self.server.ignored}
                for path in (file["path"] for file in json.loads(content)["files"])
            ]
            self.reply({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            upload = {"href": f"{self.server.url}/upload"}
            self.reply(
                {"transfer": "basic", "objects": [{"oid": "f" * 64, "size": 3, "actions": {"upload": upload}}]}
            )
        else:
            lines = [json.loads(line) for line in content.splitlines()]
            for file in (line["value"] for line in lines if line["key"] == "file"):
                self.server.others[repo][file["path"]] = base64.b64decode(file["content"])
            self.reply(
                {"success": True, "commitUrl": f"{self.server.url}/{repo}/commit/{NEWEST}", "commitOid": NEWEST}
            )

    def reply(self, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.status is not None:
            self.fail(self.server.status, "")
            return
        if self.server.retry_after is not None and self.command == "GET":
            self.fail(429, "", {"Retry-After": str(self.server.retry_after)})
            return
        described = self.path.removeprefix("/api/models/")
        if described in self.server.others:
            self.reply({"id": described, "private": described in self.server.private, "tags": [], "siblings": []})
            return
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        commit = {"main": NEWEST, "v1": OLDER}.get(revision, revision)
        if repo in self.server.others and len(commit) != 40:
            commit = NEWEST  # any name of a revision
        files = self.server.files if repo == REPO else self.server.others.get(repo)
        content = None if files is None else files.get(commit if repo == REPO else file)
        if files is None:
            self.fail(404, "RepoNotFound")
        elif repo == REPO and content is None:
            self.fail(404, "RevisionNotFound")
        elif content is None or (repo == REPO and file != "model.safetensors"):
            self.fail(404, "EntryNotFound")
        else:
            self.send_response(200)
            if self.server.headers:
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", self.server.etag or f'"{hashlib.sha256(content).hexdigest()}"')
            endless = self.server.endless and self.command == "GET"
            if not endless:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(ConnectionError):
                while endless:
                    self.wfile.write(content)
            if self.command == "GET" and not endless:
                self.wfile.write(content[: len(content) // 2] if self.server.cut_short else content)

    def fail(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def running_hub(files: dict[str, bytes], cache: Path) -> Iterator[Hub]:
    """A hub with the released files, which the client uses inside the block, with a cache of its own."""
    with Hub(files) as running, pytest.MonkeyPatch.context() as patch:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        patch.setenv("HF_ENDPOINT", running.url)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield running
        running.shutdown()
        thread.join()
