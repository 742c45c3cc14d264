"""The demo: a server for the page on this machine, or for phones in the local network."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from iformer.data.stream import find_images
from iformer.dependencies import require
from iformer.deploy.artifact import read_record
from iformer.errors import UnknownNameError, UserError
from iformer.web.assets import PACKAGES, load_assets
from iformer.web.certificate import check_address, local_address, make_tls
from iformer.web.manifest import (
    PageArtifact,
    network_licence,
    page_files,
    prepare_artifacts,
    read_page_artifact,
    reference_pictures,
)
from iformer.web.server import DEFAULT_PORT, PageServer, Resource


def open_demo(
    name: str,
    *,
    on: str,
    folder: Path,
    lan: bool = False,
    address: str | None = None,
    port: int | None = None,
    assets: str | None = None,
    images: Sequence[str] | None = None,
    licence: str | None = None,
    entry: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> PageServer:
    """Prepare a network for the page and return the server, which listens but does not answer yet.

    Args:
        name: a checkpoint, an artifact or the name of a network.
        on: runtimes to export a network to, separated by commas.
        folder: folder for exported artifacts; it must exist while the server runs.
        lan: let other devices in the network open the page.
        address: this machine's address in the network; None means the address on the default route.
        port: port to listen on; None means 8765, or any free port if 8765 is in use.
        assets: source of the runtimes' files; see `iformer.web.assets.load_assets`.
        images: files, folders and globs of photographs for the comparison; None means generated patterns.
        licence: licence of the network; None derives it from the network's provenance.
        entry: which weights to take if a training script's checkpoint holds several.
        report: called with lines of text before steps that take long.

    Raises:
        UserError: the network or an option cannot be used.
    """
    if lan:
        qr_code("")  # report a missing package before any work is done
    artifacts, pictures = prepare_page(
        name, page_runtimes(on), folder, assets=assets, images=images, entry=entry, report=report
    )
    terms = network_licence(artifacts[0].info, licence)
    files = page_files(artifacts, pictures, title=Path(name).stem, licence=terms, assets=assets)
    return open_server(files, lan=lan, address=address, port=port)


def prepare_page(
    name: str,
    runtimes: Sequence[str],
    folder: Path,
    *,
    assets: str | None,
    images: Sequence[str] | None,
    entry: str | None,
    report: Callable[[str], None],
) -> tuple[list[PageArtifact], list[bytes]]:
    """Return the artifacts of a network for the page, and the reference pictures.

    Arguments and errors are those of `open_demo`; `runtimes` are names of runtimes to export to.
    """
    for runtime in runtimes:
        load_assets(runtime, assets)  # report missing files before any work is done
    photographs = find_images(images) if images else []
    report(f"preparing {name} for the browser")
    paths = prepare_artifacts(name, runtimes, folder, entry=entry)
    pictures = reference_pictures(photographs, read_record(paths[0]).preprocessing)
    return [read_page_artifact(path, pictures) for path in paths], pictures


def page_runtimes(text: str) -> list[str]:
    """Parse names of the page's runtimes, separated by commas.

    Raises:
        UnknownNameError: the page does not support a runtime of this name.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in PACKAGES:
            raise UnknownNameError("runtime of browsers", name, PACKAGES)
    return names


def open_server(
    files: Mapping[str, Resource],
    *,
    lan: bool,
    address: str | None = None,
    port: int | None = None,
    on_message: Callable[[object], str | None] | None = None,
    on_session: Callable[[], None] | None = None,
) -> PageServer:
    """Return a server for the page: http on the loopback address, or with `lan` https in the local network.

    Args:
        files: content by path; see `iformer.web.manifest.page_files`.
        lan: let other devices in the network open the page.
        address: this machine's address in the network; None means the address on the default route.
        port: port to listen on; None means 8765, or any free port if 8765 is in use.
        on_message: called with each message that a session posts; see `PageServer`.
        on_session: called when a browser has opened the page by its address.

    Raises:
        MissingDependencyError: trustme is not installed.
        UserError: the machine is not connected to a network, or the address or port cannot be used.
    """
    if address is not None and not lan:
        raise UserError("--address is for --lan; without it only this machine can open the page")
    host, tls = "127.0.0.1", None
    if lan:
        host = local_address() if address is None else check_address(address)
        tls = make_tls(host)
    options = {"host": host, "tls": tls, "on_message": on_message, "on_session": on_session}
    paths = {f"/{path}": resource for path, resource in files.items()}
    if port is None:
        with suppress(UserError):
            return PageServer(paths, port=DEFAULT_PORT, **options)  # type: ignore[arg-type]
    return PageServer(paths, port=port or 0, **options)  # type: ignore[arg-type]


def qr_code(text: str) -> str:
    """Return a QR code for a terminal, drawn with block characters.

    Raises:
        MissingDependencyError: segno is not installed.
    """
    drawn = io.StringIO()
    require("segno", extra="web").make(text, error="l", micro=False).terminal(out=drawn, compact=True, border=2)
    return drawn.getvalue()


def serve(server: PageServer, report: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C. `report` is called with a line about how to end."""
    with server:
        report("Ctrl-C ends it")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
