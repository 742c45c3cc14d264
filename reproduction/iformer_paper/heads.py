"""Figure 3: similarity of the attention heads in the multi-head baseline.

Shape letters: B batch, N heads, L tokens.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.data.images import read_image
from iformer.data.sources import load_data
from iformer.data.transforms import Normalize, eval_transform
from iformer.errors import UserError
from iformer.layers.attention import tokens
from iformer.layers.mha import MHA, split_heads
from iformer.models.backbone import Backbone
from iformer.models.factory import build
from iformer.models.weights.resolve import load_classifier
from iformer_paper.ablations import ABLATIONS


@dataclass(frozen=True, kw_only=True)
class LayerSimilarity:
    """Similarity of the heads of one attention layer."""

    stage: int
    """Number of the stage, from 1 as in the paper."""
    block: int
    """Number of the attention block in its stage, from 1."""
    heads: int
    similarities: tuple[float, ...]
    """Cosine similarity of two heads' attention maps, one value per image and pair of heads."""

    @property
    def mean(self) -> float:
        """Mean of `similarities`, the layer's point in Figure 3."""
        return sum(self.similarities) / len(self.similarities)


@dataclass(frozen=True, kw_only=True)
class TrainedHeads:
    """Similarity of heads in a trained network and in the same network with random weights, on the same images."""

    name: str
    images: str
    """Description of the images."""
    before: list[LayerSimilarity]
    after: list[LayerSimilarity]


def trained_heads(
    checkpoint: str | os.PathLike[str], data: str, *, entry: str | None = None, images: int = 16, seed: int = 0
) -> TrainedHeads:
    """Return the similarity of a trained network's heads on validation images.

    Args:
        checkpoint: checkpoint of a network with the operator "mha".
        data: the network's data set: a folder, or `elpv`.
        entry: which weights to take from the checkpoint of a training script that holds several.
        images: number of images, drawn at random with `seed`.
        seed: seed of the choice of images and of the untrained network.

    Raises:
        WeightsError: the checkpoint cannot be read.
        DataError: the images cannot be read.
        UserError: the network has no multi-head attention.
    """
    network = load_classifier(checkpoint, entry=entry)
    preprocessing = network.metadata.preprocessing
    samples = load_data(data).val.samples
    chosen = random.Random(seed).sample(samples, min(images, len(samples)))
    transform = eval_transform(preprocessing)
    pixels_BCHW = torch.stack([transform(read_image(sample, keep_gray=True)) for sample in chosen])
    images_BCHW = Normalize(preprocessing)(pixels_BCHW)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = build(network.config).train()  # batch statistics: see `head_similarity`
    return TrainedHeads(
        name=network.config.name,
        images=f"{len(chosen)} images of {data}",
        before=head_similarity(untrained, images_BCHW),
        after=head_similarity(network, images_BCHW),
    )


def head_similarity(
    model: Backbone | None = None, images: Tensor | None = None, *, seed: int = 0
) -> list[LayerSimilarity]:
    """Return the similarity of heads in each multi-head layer of a network, in order of depth.

    Args:
        model: a network with the operator "mha", not folded; runs in its current mode. None: the baseline of Table
            1 with random weights, in train mode, because running statistics are meaningless before training.
        images: B x C x H x W, normalised. None: two images of noise at 224 x 224.
        seed: seed of the random weights and the noise.

    Raises:
        UserError: the network has no multi-head attention.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(ABLATIONS[1]["MHA Baseline"]).train() if model is None else model
        images = torch.randn(2, model.config.in_chans, 224, 224) if images is None else images
        found: list[LayerSimilarity] = []
        handles: list[Any] = []
        for stage_number, stage in enumerate(model.stages, start=1):
            layers = [module for module in stage.modules() if isinstance(module, MHA)]
            for block_number, layer in enumerate(layers, start=1):
                handles.append(layer.register_forward_hook(_recorder(stage_number, block_number, found)))
        if not handles:
            raise UserError("this network has no multi-head attention, or is folded")
        try:
            with torch.no_grad():
                model(images)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _recorder(stage: int, block: int, found: list[LayerSimilarity]) -> Any:
    def hook(layer: MHA, inputs: tuple[Tensor], _output: Tensor) -> None:
        maps_BNLL = _attention_maps(layer, inputs[0])
        flat_BNE = F.normalize(maps_BNLL.flatten(2), dim=2)
        pairs_BNN = flat_BNE @ flat_BNE.transpose(1, 2)
        rows, columns = torch.triu_indices(layer.heads, layer.heads, offset=1)
        found.append(
            LayerSimilarity(
                stage=stage,
                block=block,
                heads=layer.heads,
                similarities=tuple(pairs_BNN[:, rows, columns].flatten().tolist()),
            )
        )

    return hook


def _attention_maps(layer: MHA, x: Tensor) -> Tensor:
    """Return the attention maps softmax(q k^T / sqrt(D)) of all heads, B x N x L x L."""
    q_BNLD = split_heads(tokens(_without_update(layer.q, x)) * layer.scale, layer.heads)
    k_BNLD = split_heads(tokens(_without_update(layer.k, x)), layer.heads)
    return (q_BNLD @ k_BNLD.transpose(2, 3)).softmax(dim=-1)


def _without_update(conv_norm: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a convolution with batch norm, without updating the running statistics."""
    before = {name: buffer.clone() for name, buffer in conv_norm.named_buffers()}
    output: Tensor = conv_norm(x)
    for name, buffer in conv_norm.named_buffers():
        buffer.copy_(before[name])
    return output
