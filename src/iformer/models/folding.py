"""Folding for deployment: a new network that computes the same function with fewer operations.

These folds are exact in real arithmetic: batch norms into their convolutions, the head's norm and both distilled
classifiers into one linear layer, the residual of the CPE into its kernel, 1/sqrt(D) into q, layer scales into the
convolution before them, and the convolutions of an attention's input into one. Layer norms, which only ablations
have, are kept.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import nn

from iformer.errors import UserError
from iformer.layers.heads import Head
from iformer.models.backbone import Backbone, Stage
from iformer.models.classifier import Classifier
from iformer.models.factory import build
from iformer.models.weights.checkpoint import require_weights, unwrapped

BackboneT = TypeVar("BackboneT", bound=Backbone)


def fold(model: BackboneT) -> BackboneT:
    """Return a folded copy of a network, in eval mode; the network itself is not changed.

    The copy has the same methods. Its weights are channels-last, which is faster on CPUs and GPUs; inputs may have
    either layout. It is for inference: its parameters need no gradient, and it cannot be trained or saved.

    Raises:
        UserError: the model is not an iFormer classifier or backbone, is already folded, or is quantized.
    """
    model = unwrapped(model)
    if not isinstance(model, Backbone):
        raise UserError(f"fold takes an iFormer network; got {type(model).__name__}")
    if model.is_folded:
        raise UserError("this network is folded already; fold the network it was made from")
    if not next(model.parameters()).is_meta:  # its shapes are enough to count operations
        require_weights(model)
    with torch.device("meta"):  # without memory; every module with weights is replaced below
        folded = build(
            model.config, features_only=not isinstance(model, Classifier), out_indices=model.out_indices
        )
    folded.metadata = model.metadata
    folded.stem = model.stem.fold()
    folded.stages = nn.ModuleList([cast(Stage, stage).fold() for stage in model.stages])
    if isinstance(folded, Classifier):
        head = cast(Classifier, model).head
        folded.global_pool = cast(Classifier, model).global_pool
        folded.out_indices = model.out_indices
        folded.head = head.fold() if isinstance(head, Head) else nn.Identity()
    folded.is_folded = True
    return cast(BackboneT, folded.eval())
