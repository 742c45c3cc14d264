"""The browser runtimes onnxruntime-web and LiteRT.js: their sources and pinned hashes.

The files come from an npm installation or, if the user asks for it, from a CDN. Only files with the hashes in
`packages.json`, which are the tested versions, are served.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from iformer.errors import UserError
from iformer.files import write_bytes

CDN = "cdn"
"""Value of `--assets` that downloads the files from `_CDN_URL`."""

_CDN_URL = "https://cdn.jsdelivr.net/npm"
_CDN_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Package:
    """An npm package and the files that the page loads from it."""

    name: str
    version: str
    licence: str
    files: dict[str, str]
    """SHA-256 (hex) of each file, by the file's path in the package."""


def _pinned() -> dict[str, tuple[Package, ...]]:
    table = json.loads((Path(str(resources.files("iformer.web"))) / "packages.json").read_text(encoding="utf-8"))
    return {runtime: tuple(Package(**row) for row in rows) for runtime, rows in table.items()}


PACKAGES = _pinned()
"""The npm packages of each runtime that the page supports."""

_BARE_IMPORT = (b'from "@litertjs/wasm-utils"', b'from "./bundle.js"')
"""The only import by package name in LiteRT.js, and the path that replaces it, because workers do not support
import maps."""


def runtime_folder(runtime: str) -> str:
    """Return the folder of a runtime's files, relative to the page. Its name contains the runtime's version."""
    package = PACKAGES[runtime][0]
    return f"runtimes/{runtime}-{package.version}/"


def load_assets(runtime: str, source: str | None) -> dict[str, bytes]:
    """Return the files of a runtime, by name relative to `runtime_folder`.

    Args:
        runtime: a key of `PACKAGES`.
        source: the folder of an npm installation, or `cdn`. None: the files of an earlier download.

    Raises:
        UserError: a file is missing, its hash differs from the tested file's, or the download failed.
    """
    found = {}
    for package in PACKAGES[runtime]:
        for path, sha256 in package.files.items():
            content = _read(package, path, sha256, source)
            found[path.rpartition("/")[2]] = content.replace(*_BARE_IMPORT) if path == "dist/index.js" else content
    return found


def install_command() -> str:
    """Return the npm command that installs every package."""
    names = [f"{package.name}@{package.version}" for packages in PACKAGES.values() for package in packages]
    return f"npm install {' '.join(names)}"


def _read(package: Package, path: str, sha256: str, source: str | None) -> bytes:
    stored = _cache() / sha256
    if source in (None, CDN):
        if stored.is_file() and _hash(content := stored.read_bytes()) == sha256:
            return content
        if source is None:
            raise UserError(
                f"{package.name} is missing; run: {install_command()}, and give the folder by --assets FOLDER; "
                f"or give --assets {CDN} to download it from {_CDN_URL}"
            )
        content = _download(f"{_CDN_URL}/{package.name}@{package.version}/{path}")
        _check(content, sha256, f"{_CDN_URL}/{package.name}")
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(stored, content)
        return content
    assert source is not None
    file = _installed(Path(source), package) / path
    try:
        content = file.read_bytes()
    except OSError:
        raise UserError(
            f"{file} is missing; --assets takes a folder where this was run: {install_command()}"
        ) from None
    _check(content, sha256, f"{file} (needed: {package.name} {package.version})")
    return content


def _installed(folder: Path, package: Package) -> Path:
    inside = folder if folder.name == "node_modules" else folder / "node_modules"
    return inside / package.name


def _check(content: bytes, sha256: str, name: str) -> None:
    if _hash(content) != sha256:
        raise UserError(f"{name} is not the file that was tested: its sha256 differs; install that version again")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_CDN_SECONDS) as response:
            content: bytes = response.read(1 << 26)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(f"{url} cannot be downloaded: {getattr(error, 'reason', error)}") from None
    return content


def _cache() -> Path:
    return _cache_root() / "iformer" / "web"


def _cache_root() -> Path:
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # a user without a home folder, as in `docker run --user 12345`
        return Path(tempfile.gettempdir())
