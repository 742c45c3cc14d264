"""`iformer demo`: a page that runs a network in the browser of this machine or of a phone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from iformer.cli.arguments import EntryOption
from iformer.cli.output import DebugOption, JsonOption, note, print_json_line, say
from iformer.cli.web_options import (
    AddressOption,
    AssetsOption,
    LanOption,
    LicenceOption,
    PicturesOption,
    PortOption,
    show_page,
)


def demo(
    network: Annotated[
        str,
        typer.Argument(metavar="PATH|NAME", help="A checkpoint, an ONNX or LiteRT artifact, or a name."),
    ],
    on: Annotated[
        str, typer.Option(help="Runtimes to export a network to, separated by commas: onnx, litert.")
    ] = "onnx",
    lan: LanOption = False,
    address: AddressOption = None,
    port: PortOption = None,
    assets: AssetsOption = None,
    images: PicturesOption = None,
    licence: LicenceOption = None,
    entry: EntryOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a network on a camera, in the browser.

    Serves a page that runs the network on the camera or on a photograph. Without --lan only this machine can open
    it. Each address works once; after its use a new one is printed.
    """
    from iformer.web.demo import open_demo, serve

    with tempfile.TemporaryDirectory(prefix="iformer-demo-") as folder:
        server = open_demo(
            network,
            on=on,
            folder=Path(folder),
            lan=lan,
            address=address,
            port=port,
            assets=assets,
            images=images,
            licence=licence,
            entry=entry,
            report=note,
        )

        def show_address(*, again: bool = False) -> None:
            page = server.new_address()
            if json:
                print_json_line({"address": page})
                return
            if again:
                note("a browser has opened the page; the address for another one:")
            show_page(page, lan=lan, write=say)

        server.on_session = lambda: show_address(again=True)
        show_address()
        if lan and not json:
            note("The browser warns of the certificate, which was made for this run: continue all the same.")
        serve(server, note)
