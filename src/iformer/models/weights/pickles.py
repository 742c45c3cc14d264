"""State dicts out of pickles of others: read without running code, by a narrow allow-list."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.errors import WeightsError
from iformer.models.weights.checkpoint import listed, one_line

ENTRIES = ("model", "state_dict", "model_ema", "state_dict_ema")
"""Names under which training checkpoints keep weights, in the order they are looked for."""
PICKLE_SUFFIXES = (".pth", ".pt", ".bin")


def read_pickle(path: str | os.PathLike[str], *, entry: str | None = None) -> dict[str, Tensor]:
    """The state dict of a `torch.save` file; no code of the file's is run.

    Beside tensors and plain Python values only `argparse.Namespace` and NumPy scalars may be in it, as in
    the authors' released files; they are skipped, and not even built.

    Raises:
        WeightsError: it is truncated or damaged, of the format before PyTorch 1.6, or asks for anything else.
    """
    path = Path(path)
    _check_archive(path)
    with torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED_GLOBALS]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or hostile pickle can fail in any way
            raise WeightsError(f"{path}: {_pickle_problem(path, error)}") from error
    return _plain_tensors(_state_dict_of(content, path, entry), path)


class _Ignored:
    """Stands for what the authors' files hold beside weights: takes anything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""


_IGNORED_GLOBALS = (
    "argparse.Namespace",
    "numpy.dtype",
    # NumPy 2 moved it; files name it as their writer's NumPy did
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)


def _check_archive(path: Path) -> None:
    """Refuse what `torch.save` does not write before anything is unpacked."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not file.read(2) == b"PK":
            raise WeightsError(
                f"{path} is a pickle of the format before PyTorch 1.6, which is not read; "
                "load it where you trust it and save it again with torch.save"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path} is truncated or damaged ({size} bytes; {one_line(error)}); download or copy it again"
        ) from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > size:
        raise WeightsError(
            f"{path} is a zip archive that torch.save did not write (its parts are compressed or overlap); "
            "it is not unpacked"
        )


def _pickle_problem(path: Path, error: Exception) -> str:
    try:
        asked_for = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        asked_for = []
    if asked_for or "Unsupported" in str(error):
        what = f" ({listed(sorted(asked_for))})" if asked_for else ""
        return (
            f"refused, nothing was run: its pickle asks for more than weights{what}; "
            "if you trust it, save its state dict alone with torch.save"
        )
    return f"truncated or damaged ({one_line(error)}); download or copy it again"


def _state_dict_of(content: Any, path: Path, entry: str | None) -> Mapping[Any, Any]:
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a state dict; found a {type(content).__name__}")
    if entry is None:
        entry = next((name for name in ENTRIES if isinstance(content.get(name), dict)), None)
        return content if entry is None else content[entry]
    chosen = content.get(entry)
    if not isinstance(chosen, dict):
        there = [name for name in content if isinstance(content[name], dict)]
        raise WeightsError(f"{path} has no state dict '{entry}'; it has {listed(list(map(str, there))) or 'none'}")
    return chosen


def _plain_tensors(state_dict: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    wrong = [str(key) for key, value in state_dict.items() if not (isinstance(key, str) and _is_plain(value))]
    if wrong or not state_dict:
        raise WeightsError(
            f"{path}: expected a state dict of plain tensors; "
            + (f"these are not: {listed(wrong)}" if wrong else "it is empty")
        )
    return {str(key): value.detach() for key, value in state_dict.items()}


def _is_plain(value: Any) -> bool:
    """A dense CPU tensor whose storage holds all it claims: a small file cannot ask for much memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
