"""Find a browser on this machine and run the benchmark page in it, without a window."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iformer.errors import UserError

_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)

FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-webgpu",  # required for WebGPU on Linux
)
"""Flags of Chromium-based browsers: no window, no requests except the page's, WebGPU if there is an adapter."""


def find_browser(choice: str) -> Path:
    """Return the path of a browser: of Chromium, Chrome or Edge for `auto`, else of the program `choice`.

    Raises:
        UserError: the browser was not found.
    """
    names = _NAMES if choice == "auto" else (choice,)
    for name in names:
        if found := shutil.which(name):
            return Path(found)
    if choice == "auto":
        raise UserError("no Chromium, Chrome or Edge was found; give --browser PATH, or open the page by hand")
    raise UserError(f"--browser is '{choice[:200]}'; expected auto or the program of a Chromium-based browser")


def sandbox_flags() -> tuple[str, ...]:
    """Return the flag that Chromium requires to run as root, as in containers; an empty tuple for other users."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return ("--no-sandbox",) if is_root else ()


@contextmanager
def opened(browser: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Open `address` in a browser with a new profile. The browser and the profile are removed after the block."""
    with tempfile.TemporaryDirectory(prefix="iformer-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [browser, *FLAGS, *sandbox_flags(), f"--user-data-dir={profile}", address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
