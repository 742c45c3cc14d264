"""`iformer.push`: upload a trained network to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from iformer.config.checking import FileName, Text, check_arguments
from iformer.errors import UserError
from iformer.models.complexity import count_parameters
from iformer.models.weights.checkpoint import save
from iformer.models.weights.hub import WEIGHTS_FILE, upload
from iformer.models.weights.resolve import load
from iformer.tasks.model_card import model_card
from iformer.tasks.subject import network_name, require_network
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


def push(
    run: FileName | nn.Module,
    repo: Text,
    *,
    last: bool = False,
    private: bool = False,
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
        private: create a private repository.
        message: message of the commit.

    Raises:
        UserError: the network cannot be opened, `last` is set without a run folder, or the hub refuses; nothing is
            uploaded then.
    """
    check_arguments(push, locals())
    if isinstance(run, nn.Module):
        require_network(run)
    folder = None if isinstance(run, nn.Module) else Path(run)
    if last and (folder is None or not RunFolder(folder).config.is_file()):
        raise UserError(f"--last needs a run folder; {folder or 'a network'} is not one")
    if last and folder is not None:
        network = load(RunFolder(folder).last)
    else:
        network = run if isinstance(run, nn.Module) else load(run)
    metadata = network.metadata
    if getattr(network, "num_classes", None) == 0:
        metadata = replace(metadata, task="pretrain")  # the card of a backbone
    card = model_card(metadata, name=network_name(network), parameters=count_parameters(network), repo=repo)
    with tempfile.TemporaryDirectory(prefix="iformer-") as temporary:
        weights = Path(temporary) / WEIGHTS_FILE
        save(network, weights)
        contents: dict[str, bytes | Path] = {WEIGHTS_FILE: weights, CARD: card.encode()}
        url, commit = upload(repo, contents, private=private, message=message)
    return PushedModel(repo=repo, name=f"hf-hub:{repo}", url=url, commit=commit, files=tuple(contents))
