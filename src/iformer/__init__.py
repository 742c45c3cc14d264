"""iFormer: mobile vision networks, trained with one command and shipped with proof (arXiv 2501.15369)."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from iformer._version import __version__

if TYPE_CHECKING:
    from iformer.api.evaluate import evaluate
    from iformer.api.export import export
    from iformer.api.predict import predict
    from iformer.api.pretrain import pretrain
    from iformer.api.push import push
    from iformer.api.train import cross_validate, train
    from iformer.config.variants import list_models
    from iformer.errors import UserError
    from iformer.models.factory import create_model
    from iformer.models.folding import fold
    from iformer.models.weights.checkpoint import save
    from iformer.models.weights.resolve import load

__all__ = [
    "UserError",
    "__version__",
    "create_model",
    "cross_validate",
    "evaluate",
    "export",
    "fold",
    "list_models",
    "load",
    "predict",
    "pretrain",
    "push",
    "save",
    "train",
]

# Imported on first use: `iformer --help` should not wait for torch.
_HOMES = {
    "UserError": "iformer.errors",
    "create_model": "iformer.models.factory",
    "cross_validate": "iformer.api.train",
    "evaluate": "iformer.api.evaluate",
    "export": "iformer.api.export",
    "fold": "iformer.models.folding",
    "list_models": "iformer.config.variants",
    "load": "iformer.models.weights.resolve",
    "predict": "iformer.api.predict",
    "pretrain": "iformer.api.pretrain",
    "push": "iformer.api.push",
    "save": "iformer.models.weights.checkpoint",
    "train": "iformer.api.train",
}


def load_dense(path: str | os.PathLike[str]) -> Any:
    """Load the network of a detector's or segmenter's checkpoint. Deprecated: use `load`, for all tasks."""
    import warnings

    warnings.warn("iformer.load_dense is deprecated; use iformer.load", DeprecationWarning, stacklevel=2)
    return __getattr__("load")(path)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'iformer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
