"""Read `torch.save` files without running code: types on an allow-list are accepted, all others are refused.

A pickle has no header. The description of its network is an attribute of its state dict instead, as torch's own
`_metadata` is; code that does not know the attribute loads the tensors alone.
"""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.errors import WeightsError, listed, one_line

PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
_DESCRIPTION = "iformer"


class _Ignored:
    """Stand-in for a value that is not a weight: takes any arguments and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


def _empty_dict(*args: Any) -> dict[Any, Any]:
    """Stand-in for `defaultdict`: drops the factory and keeps the items, which follow in the pickle."""
    return {}


_IGNORED_GLOBALS = (
    "argparse.Namespace",
    *(f"pathlib{module}.{kind}Path" for module in ("", "._local") for kind in ("Posix", "Windows")),
    "numpy.dtype",
    # the scalar's module depends on the NumPy version that wrote the file
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Return the content of a `torch.save` file; no code of the file is run.

    Besides tensors and plain Python values the file may hold `argparse.Namespace`, paths and NumPy scalars, which
    become stand-ins without content, and `defaultdict`, which becomes a dict.

    Raises:
        WeightsError: the file is truncated, damaged, of the format before PyTorch 1.6, or asks for anything else.
    """
    path = Path(path)
    _check_archive(path)
    stand_ins: list[Any] = [(_Ignored, name) for name in _IGNORED_GLOBALS]
    with torch.serialization.safe_globals([*stand_ins, (_empty_dict, "collections.defaultdict")]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or hostile pickle can fail in any way
            raise WeightsError(f"{path}: {_pickle_problem(path, error)}") from error


def with_description(tensors: Mapping[str, Tensor], description: Mapping[str, str]) -> OrderedDict[str, Tensor]:
    """Return a state dict that keeps the strings of `description` when it is pickled."""
    state_dict = OrderedDict(tensors)
    vars(state_dict)[_DESCRIPTION] = dict(description)
    return state_dict


def description_of(state_dict: Mapping[Any, Any]) -> dict[str, str]:
    """Return the strings that `with_description` has added to a state dict; empty if there are none."""
    found = getattr(state_dict, _DESCRIPTION, None)
    is_text = isinstance(found, dict) and all(isinstance(text, str) for item in found.items() for text in item)
    return found if isinstance(found, dict) and is_text else {}


def _check_archive(path: Path) -> None:
    """Refuse archives that `torch.save` does not write, before anything is unpacked."""
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
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise WeightsError(
            f"{path} is a zip archive without weights: it lacks the data.pkl that torch.save writes"
        )
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise WeightsError(
            f"{path} is a TorchScript archive, whose code is not run; give a state dict (torch.save)"
        )
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
