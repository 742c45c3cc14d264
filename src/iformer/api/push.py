"""`iformer.push`: upload a trained network to the Hugging Face hub."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from iformer.config.checking import FileName, Text, check_arguments
from iformer.errors import UserError, printable
from iformer.models.complexity import count_parameters
from iformer.models.weights.checkpoint import save
from iformer.models.weights.hub import WEIGHTS_FILE
from iformer.models.weights.resolve import load
from iformer.models.weights.upload import upload
from iformer.plain_values import plain_arguments
from iformer.tasks.model_card import is_generated, model_card
from iformer.tasks.subject import network_name, require_network
from iformer.torch_modes import default_cpu
from iformer.training.records.run_folder import RunFolder

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class PushedModel:
    """A network on the hub."""

    repo: str
    """Name of the repository, `USER/NAME`."""
    name: str
    """The name that `iformer.load` takes: `hf-hub:USER/NAME`."""
    url: str
    commit: str
    files: tuple[str, ...]
    """The files that were written."""
    card_kept: bool = False
    """Whether the card on the hub was kept, because it was edited by hand."""


@default_cpu()
@plain_arguments
def push(
    run: FileName | nn.Module,
    repo: Text,
    *,
    last: bool = False,
    private: bool = False,
    licence: Text | None = None,
    overwrite_card: bool = False,
    message: str = "Upload by iformer",
) -> PushedModel:
    """Upload a network and its model card to the Hugging Face hub; the same as the verb `push`.

    `iformer.load("hf-hub:USER/NAME")` reads the network back. The repository is created if it does not exist. The
    token comes from `hf auth login` or from the environment variable `HF_TOKEN`.

    Args:
        run: a network of this package, a run folder, or any name of a network with weights that `iformer.load`
            takes. Pictures and the report of a run are not uploaded; the metadata of the weights holds the command
            of the training.
        repo: `USER/NAME` or `ORGANISATION/NAME`.
        last: run folders: upload `last.safetensors`, which the report describes, instead of `best.safetensors`.
        private: create a private repository. If the repository exists, it must be private.
        licence: licence of the weights for the card, in the hub's spelling, such as `apache-2.0`.
        overwrite_card: replace a card on the hub that was edited by hand, or written by another program. False:
            such a card is kept.
        message: message of the commit.

    Raises:
        UserError: the network cannot be opened, `last` is set without a run folder, `private` is set for a public
            repository, or the hub refuses; nothing is uploaded then.
    """
    check_arguments(push, locals())
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", licence):
        raise UserError(
            f"--licence is '{printable(licence, limit=80)}'; expected the hub's name of a licence, such as "
            "apache-2.0, mit, cc-by-4.0 or other"
        )
    if isinstance(run, nn.Module):
        run = require_network(run)
    folder = None if isinstance(run, nn.Module) else Path(run)
    is_run = folder is not None and os.path.isfile(RunFolder(folder).config)
    if last and not is_run:
        raise UserError(f"--last needs a run folder; {folder or 'a network'} is not one")
    checkpoint = None
    if folder is not None and is_run:
        files = RunFolder(folder)
        checkpoint = (files.last if last else files.best).name
    if last and folder is not None:
        network = load(RunFolder(folder).last)
    else:
        network = run if isinstance(run, nn.Module) else load(run)
    metadata = network.metadata
    if getattr(network, "num_classes", None) == 0:
        metadata = replace(metadata, task="pretrain")  # the card of a backbone
    card = model_card(
        metadata,
        name=network_name(network),
        parameters=count_parameters(network),
        repo=repo,
        checkpoint=checkpoint,
        licence=licence,
    )
    with tempfile.TemporaryDirectory(prefix="iformer-") as temporary:
        weights = Path(temporary) / WEIGHTS_FILE
        save(network, weights)
        uploaded = upload(
            repo,
            {WEIGHTS_FILE: weights, CARD: card.encode()},
            private=private,
            message=message,
            keep={} if overwrite_card else {CARD: lambda there: not is_generated(there)},
        )
    return PushedModel(
        repo=repo,
        name=f"hf-hub:{repo}",
        url=uploaded.url,
        commit=uploaded.commit,
        files=uploaded.files,
        card_kept=CARD not in uploaded.files,
    )
