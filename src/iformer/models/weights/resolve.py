"""Networks that come with the package, and one way to open a network from whatever names it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from iformer.config.variants import list_models
from iformer.errors import UnknownNameError, WeightsError
from iformer.models.classifier import Classifier
from iformer.models.factory import create_model

_FILES = {"elpv": "iformer_t_elpv.safetensors"}
"""Name of each shipped checkpoint and its file in `iformer/checkpoints`."""


def shipped_checkpoints() -> dict[str, Path]:
    """Name and file of every checkpoint that this installation holds.

    `elpv`: iFormer-T trained on the photographs of the elpv-dataset package, functional or defective
    solar cells.
    """
    folder = Path(str(resources.files("iformer"))) / "checkpoints"
    return {name: folder / file for name, file in _FILES.items() if (folder / file).is_file()}


def open_network(weights: str, *, attention: str | None = None, windows: str | None = None) -> Classifier:
    """A classifier in eval mode from a checkpoint file, a shipped network's name or a released network's name.

    Args:
        weights: a path to a checkpoint (ours, timm's or the authors'), a name of `shipped_checkpoints`, or one
            of `list_models` (whose released weights are fetched from the hub, or taken from its cache).
        attention, windows: the design for large images and its settings, as in `create_model`.

    Raises:
        UnknownNameError: neither a file nor a known name; the message suggests the nearest names.
        WeightsError: the file is damaged or holds no classifier, or the hub cannot be reached.
        ConfigError: the design or its settings do not exist for this network.
    """
    path = checkpoint_path(weights)
    model = create_model(
        weights if path is None else path, pretrained=path is None, attention=attention, windows=windows
    ).eval()
    if not isinstance(model, Classifier) or model.num_classes == 0:
        raise WeightsError(f"{weights} holds a backbone without classes; a classifier is needed")
    return model


def checkpoint_path(weights: str) -> Path | None:
    """The file that `weights` names, or None where it names released weights on the hub.

    Raises:
        UnknownNameError: neither a file nor a known name.
        WeightsError: it is spelled like a path, and no such file exists.
    """
    shipped = shipped_checkpoints()
    if Path(weights).is_file():
        return Path(weights)
    if weights in shipped:
        return shipped[weights]
    if weights in list_models():
        return None
    if Path(weights).suffix or len(Path(weights).parts) > 1:
        raise WeightsError(f"{weights}: no such checkpoint file")
    raise UnknownNameError("model", weights, [*shipped, *list_models()])
