"""The tutorial "On your phone in a minute", followed as written, with Chromium's emulation of a phone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iformer.deploy.artifact import read_record
from iformer.web.assets import install_command
from tiny.pages import blocks


def lines() -> list[str]:
    return [line for block in blocks("tutorials/phone.md") if block.language == "sh" for line in block.commands()]


def test_the_packages_are_those_that_were_tested() -> None:
    assert install_command() in lines()


@pytest.mark.parametrize(
    ("number", "network"),
    [
        pytest.param(0, "tiny", marks=pytest.mark.sweep),  # an artifact in place of elpv: nothing is exported
        pytest.param(0, "elpv", marks=pytest.mark.full),
        pytest.param(1, "elpv", marks=pytest.mark.full),
    ],
)
def test_every_demo_of_the_tutorial(
    number: int, network: str, assets: str, browser: Any, tmp_path: Path, tiny_onnx: Path
) -> None:
    command = [line for line in lines() if line.startswith("iformer demo ")][number]
    if network == "tiny":
        command = command.replace(" elpv ", f" {tiny_onnx} ")
    (tmp_path / "node_modules").symlink_to(Path(assets).resolve() / "node_modules")
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"https?://[\d.]+:\d+/#[\w-]{20,}", address), process.stderr.read()
        assert address.startswith("https" if "--lan" in command else "http://127.0.0.1:")
        if "--lan" in command:
            code = [process.stdout.readline() for _ in range(12)]
            assert sum(line.count("█") + line.count("▄") for line in code) > 100
        phone = browser.new_context(
            viewport={"width": 390, "height": 844},
            device_scale_factor=3,
            is_mobile=True,
            has_touch=True,
            ignore_https_errors=True,  # "continue all the same"
        )
        page = phone.new_page()
        page.goto(address)
        page.locator("body[data-state=ready]").wait_for(timeout=120_000)
        assert page.evaluate("isSecureContext && crossOriginIsolated")
        page.tap("#camera")
        page.locator("#answer .class").first.wait_for(timeout=60_000)
        names = ["defective", "functional"] if network == "elpv" else sorted(read_record(tiny_onnx).class_names)
        assert sorted(page.locator("#answer .name").all_inner_texts()) == names
        assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing to scroll sideways
        page.click("summary")
        licence = "CC BY-NC-SA 4.0" if network == "elpv" else "not stated"
        assert licence in page.inner_text("#facts")
        phone.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 0
