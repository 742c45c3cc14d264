"""Options of the verbs that open a page in a browser, and printing of the page's address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

AssetsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|cdn",
        help="Where the browser's runtimes come from: the folder of an npm installation, or cdn to download them "
        "once. [default: what was downloaded before]",
    ),
]
LicenceOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Licence of the network, which the page in the browser shows.")
]
LanOption = Annotated[
    bool, typer.Option("--lan", help="Let the devices of the local network open the page, over https.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="IP", help="With --lan: this machine's address. [default: that of the default route]"),
]
PortOption = Annotated[
    int | None, typer.Option(min=1, max=65535, help="[default: 8765, or any free port if that is in use]")
]
PicturesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Photographs on which the browser's answers are compared with this machine's, at most 3: a file, "
        "folder or glob; can be repeated. [default: generated patterns]"
    ),
]


def show_page(page: str, *, lan: bool, write: Callable[[str], None]) -> None:
    """Print a page's address and, with `lan`, the address as a QR code for other devices."""
    from iformer.web.demo import qr_code

    write(page)
    if lan:
        write(qr_code(page))
