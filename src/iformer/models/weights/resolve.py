"""Resolution of a network's name, shared by every verb and function that takes a network by name.

A name is one of these, in this order:

    iformer_m                 a size; its weights are the released ones, fetched from the hub
    elpv                      a checkpoint that is shipped with the package
    timm/iformer_m.in1k       the released weights of a size in timm's spelling, also without `timm/`
    hf-hub:USER/NAME          weights on the hub, with optional `/FILE` and `@REVISION`
    net.onnx                  an exported artifact, with its record `net.onnx.json` next to it
    runs/mine                 the folder of a training run: its best.safetensors
    best.safetensors, a.pth   a weight file: our checkpoint of any task, or a file of timm, the authors or a script

For a file or folder with the name of a size or a shipped checkpoint, give a path such as `./elpv`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iformer.config.network import NetworkConfig
from iformer.config.variants import list_models, network_config, shipped_checkpoints
from iformer.config.windows import with_design
from iformer.errors import ConfigError, UnknownNameError, UserError, WeightsError, listed, printable
from iformer.files import require_regular_file
from iformer.models.classifier import Classifier
from iformer.models.timm_interface import Indices
from iformer.models.weights.checkpoint import Weights, build_network
from iformer.models.weights.header import backbone_config
from iformer.models.weights.read import read_weights
from iformer.models.weights.safetensors_file import WEIGHT_SUFFIXES, unreadable
from iformer.plain_values import check_text, plain_arguments
from iformer.torch_modes import default_cpu

RUN_CHECKPOINT = "best.safetensors"
"""The file in a run folder that the folder's name stands for."""
_EXPECTED = "A model is a size, a shipped checkpoint, a file, a run folder, an artifact or hf-hub:USER/NAME."
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_PAGE = re.compile(r"(?i)(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf[-_]hub:)([\w.-]+/[\w.-]+)")
"""The address of a repository on the hub, or `hf-hub:` in capitals."""
_MAX_RECORD_BYTES = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Size:
    """A network of the table of variants, with or without released weights."""

    name: str

    @property
    def config(self) -> NetworkConfig:
        """The config of the size, with 1000 classes."""
        return network_config(self.name)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported artifact; `iformer.deploy` opens it."""

    path: Path
    runtime: str | None
    """Runtime named in the artifact's record; None if the record names none."""


Resolved = Size | Artifact | Weights
Name = str | os.PathLike[str] | Resolved
"""A network argument: a name, a path, or a result of `resolve`."""


def resolve(name: Name, *, entry: str | None = None) -> Resolved:
    """Return the size, the artifact or the weights that a name stands for.

    Weight files are read, and files on the hub are downloaded. The released weights of a size are not fetched yet.

    Args:
        name: see the module's docstring. A `Path` is always a file or folder; a `Resolved` is returned unchanged.
        entry: which state dict of a training script's file to take, such as `model_ema`.

    Raises:
        UserError: `name` is neither a text nor a path, or `entry` is given for a size or an artifact.
        UnknownNameError: the name is not known; the message suggests the nearest names.
        WeightsError: the file or folder does not exist, is damaged, or holds no iFormer; or the file cannot be
            fetched from the hub.
    """
    if isinstance(name, Size | Artifact | Weights):
        return name
    require_name(name)
    found: Resolved | None = _by_name(name, entry) if isinstance(name, str) else None
    path = Path(name)
    if found is None and path.suffix not in WEIGHT_SUFFIXES and os.path.isfile(_record(path)):
        found = Artifact(path=path, runtime=_runtime(_record(path)))
    if found is not None:
        if entry is not None and not isinstance(found, Weights):
            raise UserError(f"--entry is for files of training scripts; {name} is not one")
        return found
    exists = os.path.exists(path)  # unlike Path.exists, for any name: a name may be too long for a file
    if exists and (artifact := _artifact_near(path)) is not None and not os.path.isfile(path / RUN_CHECKPOINT):
        kind = "the folder of" if artifact.parent == path else "a file of"
        raise WeightsError(f"{path} is {kind} the artifact {artifact.name}; give {artifact}")
    if os.path.isdir(path):
        if not os.path.isfile(path / RUN_CHECKPOINT):
            raise WeightsError(f"{path} is a folder without {RUN_CHECKPOINT}; {_runs_in(path)}")
        path = path / RUN_CHECKPOINT
    if isinstance(name, str) and not exists and (page := _PAGE.match(name)):
        raise WeightsError(f"{printable(name, limit=200)} is an address; give the name hf-hub:{page[1]}")
    if isinstance(name, str) and not exists and not _looks_like_path(name):
        from iformer.models.weights.hub import release_names

        known = release_names() if "." in name else [*shipped_checkpoints(), *list_models()]
        raise UnknownNameError("model", name, known, expected=_EXPECTED)
    if isinstance(name, str) and not exists and path.suffix not in WEIGHT_SUFFIXES and _REPOSITORY.fullmatch(name):
        raise WeightsError(f"{unreadable(path)}; a network on the Hugging Face hub is hf-hub:{name}")
    return read_weights(path, entry=entry)


def _runs_in(folder: Path) -> str:
    """Return what to give instead of a folder that is not that of a run."""
    if not (folds := _folds(folder)):
        return "give a weight file or a run folder"
    names = listed([file.parent.name for file in folds], limit=5)
    return f"it holds the runs of a cross-validation ({names}); give one of them, such as {folds[0].parent}"


def _folds(folder: Path) -> list[Path]:
    """Return the networks of the runs of a cross-validation."""
    return sorted(folder.glob(f"fold-[0-9]*/{RUN_CHECKPOINT}"), key=lambda file: (len(str(file)), file))


def _artifact_near(path: Path) -> Path | None:
    """Return the artifact of which `path` is the record, an inner file or the only one in the folder, if any."""
    of_record = [path.with_suffix("")] if path.suffix == ".json" else []
    inside = sorted(record.with_suffix("") for record in path.glob("*.json")) if os.path.isdir(path) else []
    for artifact in (*of_record, *path.parents, *inside):
        if os.path.exists(artifact) and _runtime(_record(artifact)) is not None:
            return artifact
    return None


def require_name(name: Any) -> str:
    """Return a name or a path as text.

    Raises:
        UserError: `name` is neither, is empty, or has a NUL character.
    """
    if not isinstance(name, str | os.PathLike) or not isinstance(text := os.fspath(name), str):
        raise UserError(f"a network is named by a text or a path, not by {type(name).__name__}")
    if not text:
        raise UserError(f"the name of a network is empty. {_EXPECTED}")
    check_text("the name of a network", text)
    return text


def resolve_weights(name: Name, *, entry: str | None = None) -> Weights:
    """Return the weights that a name stands for. The released weights of a size are downloaded.

    Raises:
        UserError: the name is that of an exported artifact.
        UnknownNameError: the name is not known.
        WeightsError: the weights cannot be read or downloaded.
    """
    found = resolve(name, entry=entry)
    if isinstance(found, Artifact):
        raise UserError(f"{found.path} is an exported artifact; give the checkpoint from which it was exported")
    if isinstance(found, Size):
        from iformer.models.weights.hub import read_released  # deferred: only downloads need the hub's client

        return read_released(found.name)
    return found


@default_cpu()
@plain_arguments
def load(
    name: Name,
    *,
    entry: str | None = None,
    features_only: bool = False,
    out_indices: Indices = (0, 1, 2, 3),
    attention: str | None = None,
    windows: str | None = None,
) -> Any:
    """Return a trained network of any task, in eval mode, in fp32, on the CPU.

    Args:
        name: a checkpoint, the folder of a run, a shipped network (`elpv`), a size with released weights
            (`iformer_m`), timm's or the authors' file, or `hf-hub:USER/NAME`.
        entry: which state dict of a training script's file to take, such as `model_ema`.
        features_only: return the `Backbone`, which gives feature maps, without its head.
        out_indices: which feature maps, with `features_only`; see `iformer.models.factory.create_model`.
        attention: the design for large images, "shma", "hybrid" or "chunk_hybrid"; None keeps the network's own.
        windows: the settings of the windows, "released" or "paper", with `attention`.

    Returns:
        A `Classifier`, `Detector`, `LightDetector`, `Segmenter` or `LightSegmenter`; with `features_only` a
        `Backbone`.

    Raises:
        UnknownNameError: the name is not known; the message suggests the nearest names.
        UserError: the name is that of an exported artifact, or `out_indices` is invalid.
        WeightsError: the weights cannot be found, fetched or read, or do not fit their description; missing, extra
            and misshapen keys are listed.
        ConfigError: the design or its settings do not exist for this network.
    """
    weights = resolve_weights(name, entry=entry)
    if windows is not None and attention is None:
        raise ConfigError("windows given without attention; give chunk_hybrid or hybrid (--attention)")
    if attention is not None:
        config: Any = weights.config
        design = with_design(backbone_config(config), attention, preset=windows)
        config = design if isinstance(config, NetworkConfig) else replace(config, backbone=design)
        weights = replace(weights, config=config)
    return build_network(weights, features_only=features_only, out_indices=out_indices).eval()


def load_classifier(
    name: Name,
    *,
    entry: str | None = None,
    attention: str | None = None,
    windows: str | None = None,
) -> Classifier:
    """Load a classifier; see `load` for the arguments and further errors.

    Raises:
        WeightsError: the weights are for another task, or have no head.
    """
    weights = resolve_weights(name, entry=entry)
    if weights.task != "classify":
        raise WeightsError(f"{weights.source} holds {weights.row.title}; a classifier is needed")
    if weights.config.num_classes == 0:
        beside = f" (beside it: {', '.join(weights.ignored[:3])})" if weights.ignored else ""
        raise WeightsError(f"{weights.source} holds a backbone without classes{beside}; a classifier is needed")
    network: Classifier = load(weights, attention=attention, windows=windows)
    return network


def is_known_folder(name: str) -> bool:
    """Return whether a folder means networks: size, checkpoint, run or folds, an artifact or its folder."""
    path = Path(name)
    known = name in list_models() or name in shipped_checkpoints()
    if known or os.path.isfile(path / RUN_CHECKPOINT) or os.path.isfile(_record(path)):
        return True
    return _artifact_near(path) is not None or bool(_folds(path))


def _by_name(name: str, entry: str | None) -> Size | Weights | None:
    """Return what a name other than a path means; None if it is none of the known names."""
    if name in list_models():
        return Size(name=name)
    if name in (shipped := shipped_checkpoints()):
        return read_weights(shipped[name], entry=entry)
    if not name.startswith(("hf-hub:", "hf_hub:")) and ".in1k" not in name:
        return None
    from iformer.models.weights import hub  # deferred: only names on the hub need its client

    if name in (released := hub.release_names()):
        return Size(name=released[name])
    on_hub = hub.parse_hub_name(name)
    return None if on_hub is None else hub.read_hub_file(on_hub, entry=entry)


def _looks_like_path(name: str) -> bool:
    """Return whether to report an unresolved name as a missing file instead of an unknown name."""
    if name.startswith("timm/"):
        return False
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return any(separator in name for separator in separators) or Path(name).suffix not in ("", ".in1k")


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json") if path.name else path


def _runtime(record: Path) -> str | None:
    try:
        if require_regular_file(record) > _MAX_RECORD_BYTES:
            return None
        runtime = json.loads(record.read_text(encoding="utf-8"))["runtime"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None  # `iformer.deploy` says what is wrong with the record
    return runtime if isinstance(runtime, str) else None
