"""Classifier heads: pooled features to class logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.layers.conv_norm import Norm


class NormLinear(nn.Module):
    """Batch or layer norm over pooled features, then a linear layer with bias: B x C to B x K."""

    def __init__(self, channels: int, num_classes: int, *, norm: Norm = "batch") -> None:
        super().__init__()
        self.norm: nn.BatchNorm1d | nn.LayerNorm = (
            nn.BatchNorm1d(channels) if norm == "batch" else nn.LayerNorm(channels, eps=1e-6)
        )
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))

    def folded_parameters(self) -> tuple[Tensor, Tensor]:
        """Return weight (K x C) and bias (K), in float64, of one linear layer equal to this module in eval mode.

        With layer norm, the input of that layer is the normalised features, before scale and shift.
        """
        scale_C = self.norm.weight.detach().double()
        shift_C = self.norm.bias.detach().double()
        if isinstance(self.norm, nn.BatchNorm1d):
            mean, variance = self.norm.running_mean, self.norm.running_var
            assert mean is not None
            assert variance is not None
            scale_C = scale_C / (variance.double() + self.norm.eps).sqrt()
            shift_C = shift_C - mean.double() * scale_C
        weight_KC = self.linear.weight.detach().double()
        return weight_KC * scale_C, self.linear.bias.detach().double() + weight_KC @ shift_C


class Head(nn.Module):
    """One classifier, or two with distillation: B x C to B x K.

    The output of two classifiers is their mean. With `distilled_training`, training returns both outputs instead:
    for the labels and for the teacher.
    """

    distilled_training = False

    def __init__(
        self, channels: int, num_classes: int, *, distillation: bool = False, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.classifier = NormLinear(channels, num_classes, norm=norm)
        self.distilled = NormLinear(channels, num_classes, norm=norm) if distillation else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.classifier(x)
        if self.distilled is None:
            return logits
        distilled_logits = self.distilled(x)
        if self.training and self.distilled_training:
            return logits, distilled_logits
        return (logits + distilled_logits) / 2

    def fold(self) -> nn.Module:
        """Return a linear layer that includes the batch norm and, with distillation, the mean of both classifiers.

        With a layer norm, return `Sequential(norm, linear)`; the linear layer includes the norm's scale and shift.
        """
        branches = [self.classifier] if self.distilled is None else [self.classifier, self.distilled]
        weights, biases = zip(*(branch.folded_parameters() for branch in branches), strict=True)
        like = self.classifier.linear.weight
        linear = nn.Linear(like.shape[1], like.shape[0], device="meta")
        linear.weight = nn.Parameter(torch.stack(weights).mean(0).to(like), requires_grad=False)
        linear.bias = nn.Parameter(torch.stack(biases).mean(0).to(like), requires_grad=False)
        if isinstance(self.classifier.norm, nn.BatchNorm1d):
            return linear
        norm = nn.LayerNorm(like.shape[1], eps=self.classifier.norm.eps, elementwise_affine=False)
        return nn.Sequential(norm, linear)
