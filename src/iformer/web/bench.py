"""Latency in the browser of a phone or of this machine, with a check that the browser's answers are right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from iformer.bench.subjects import BenchSubject
from iformer.config.preprocessing import Preprocessing
from iformer.data.stream import find_images
from iformer.errors import UserError, counted
from iformer.web.browser import find_browser, opened
from iformer.web.demo import open_server
from iformer.web.manifest import PageArtifact, page_files, read_page_artifact, reference_pictures
from iformer.web.report import Collector, Device, WebRow

LIMIT_SECONDS = 90
"""Longest time, in seconds, that a backend may take to load a network or to run one turn."""

_START_SECONDS = 60
_SILENCE_SECONDS = 60
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class WebResult:
    """Result of a benchmark on one device: a description of the device, and the rows of the table."""

    device: Device
    rows: tuple[WebRow, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return the device and the rows as plain values for JSON."""
        return {"device": self.device.to_plain(), "rows": [row.to_plain() for row in self.rows]}


def measure_browser(subjects: Sequence[BenchSubject], images: Sequence[str] | None, **options: Any) -> WebResult:
    """Time the subjects of a benchmark in a browser; `options` are passed to `measure_web`.

    The browser's answers are compared with this machine's on the first 3 photographs of `images` (files, folders
    and globs). If `images` is None, the answers are compared on generated patterns.

    Raises:
        UserError: a subject cannot run in a browser, a photograph cannot be read, or `measure_web` fails.
    """
    pictures = reference_pictures(find_images(images) if images else [], Preprocessing())
    artifacts = [read_page_artifact(subject.artifact, pictures, label=subject.label) for subject in subjects]
    return measure_web(artifacts, pictures, **options)


def measure_web(
    artifacts: Sequence[PageArtifact],
    pictures: Sequence[bytes],
    *,
    rounds: int = 20,
    calls: int = 5,
    warmup: int = 2,
    threads: Sequence[int] = (1,),
    gpu: bool = True,
    browser: str | None = None,
    lan: bool = False,
    address: str | None = None,
    port: int | None = None,
    assets: str | None = None,
    limit_seconds: float = LIMIT_SECONDS,
    report: Callable[[str], None] = lambda line: None,
    show_address: Callable[[str], None] = lambda address: None,
) -> WebResult:
    """Time artifacts in every backend of the browser that opens the page.

    Each pair of network and backend has its own worker. The workers take turns in random order: `warmup` calls,
    then `calls` timed calls, whose median is one sample. If a backend fails or hangs, only its own row ends.

    Args:
        artifacts: networks with different labels.
        pictures: reference pictures on which the answers are compared.
        rounds: number of samples per row.
        calls: number of timed calls per turn.
        warmup: number of warm-up calls per turn.
        threads: numbers of WebAssembly threads to measure, as far as the device allows; 1 is always measured.
        gpu: also measure WebGPU.
        browser: `auto` or the path of a browser, which is started without a window; None waits for a phone.
        lan: let other devices in the network open the page.
        address: this machine's address in the network; None means the address on the default route.
        port: port to listen on; None means 8765, or any free port if 8765 is in use.
        assets: source of the runtimes' files; see `iformer.web.assets.load_assets`.
        limit_seconds: longest time, in seconds, that a backend may take to load a network or to run one turn.
        report: called with lines of text about the progress.
        show_address: called with the page's address if no browser is started.

    Raises:
        UserError: the browser or the runtimes are missing, or no device sent a measurement.
    """
    program = None if browser is None else find_browser(browser)
    files = page_files(
        artifacts,
        pictures,
        title=counted(len(artifacts), "network"),
        licence="",
        assets=assets,
        bench={
            "rounds": rounds,
            "calls": calls,
            "warmup": warmup,
            "threads": sorted(set(threads)),
            "gpu": gpu,
            "limit_seconds": limit_seconds,
        },
    )
    collector = Collector(artifacts, threads=threads, report=report)
    server = open_server(files, lan=lan, address=address, port=port, on_message=collector.receive)
    with ExitStack() as stack:
        stack.enter_context(server)
        page = server.new_address()
        process = None
        if program is None:
            show_address(page)
        else:
            process = stack.enter_context(opened(program, page))
        start = time.monotonic()
        while not collector.done.wait(_POLL_SECONDS):
            now = time.monotonic()
            if process is not None and process.poll() is not None:
                report("the browser has ended")
                break
            if collector.device is not None and now - collector.heard > _SILENCE_SECONDS:
                report(f"the page has said nothing for {_SILENCE_SECONDS} s; it was closed or has crashed")
                break
            if process is not None and collector.device is None and now - start > _START_SECONDS:
                raise UserError(f"{program} did not open the page within {_START_SECONDS} s")
    if collector.device is None:
        raise UserError("no browser has measured anything")
    return WebResult(device=collector.device, rows=tuple(collector.rows()))
