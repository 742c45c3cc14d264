"""`iformer push`: a trained network to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from iformer.cli.output import DebugOption, JsonOption, note, print_json_line, say


def push(
    run: Annotated[str, typer.Argument(help="A run folder, a checkpoint, or any name of a network with weights.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; created if there is none.")],
    last: Annotated[
        bool, typer.Option("--last", help="Of a run folder: last.safetensors instead of best.safetensors.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository; an existing one must be private.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights for the card, such as apache-2.0.")
    ] = None,
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Replace a card on the hub that was edited by hand.")
    ] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload by iformer",
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Upload a network with its model card to the Hugging Face hub.

    The access token is taken from `hf auth login` or HF_TOKEN.
    """
    from iformer.api.push import push as run_push

    pushed = run_push(
        run,
        name,
        last=last,
        private=private,
        licence=licence,
        overwrite_card=overwrite_card,
        message=message,
    )
    if pushed.card_kept:
        note("the README.md on the hub was edited by hand, so it was kept; --overwrite-card replaces it")
    if json:
        print_json_line(vars(pushed))
        return
    say(f"pushed {', '.join(pushed.files)} to {pushed.url}")
    say(f"use it as --weights {pushed.name}")
