"""timm's methods for feature maps, parameter groups and settings, shared by `Backbone` and `Classifier`.

Other libraries (segmentation-models-pytorch, Transformers' `TimmBackbone`, timm's own training script) use these
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from iformer.config.metadata import Metadata
from iformer.config.network import STRIDES, NetworkConfig
from iformer.errors import UserError

if TYPE_CHECKING:
    from timm.models import FeatureInfo

Indices = int | Sequence[int]
"""Indices of stages from 0, negative ones from the last stage; a single number n means the last n stages."""


class TimmInterface(nn.Module):
    """Attributes and methods of timm's networks besides `forward`; see `Backbone` for the network itself."""

    config: NetworkConfig
    metadata: Metadata
    stem: Any
    stages: nn.ModuleList
    out_indices: tuple[int, ...]

    def check_input(self, x: Tensor) -> None:
        """Raise `UserError` unless `x` is floating-point, B x in_chans x H x W, with sides of 32 or more."""
        raise NotImplementedError

    @property
    def feature_info(self) -> FeatureInfo:
        """timm's `FeatureInfo`: channels, stride and module of each stage; its methods select `out_indices`."""
        from timm.models import FeatureInfo  # deferred: timm takes a second

        stages: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{index}", "index": index}
            for index, (channels, stride) in enumerate(zip(self.config.channels, STRIDES, strict=True))
        ]
        return FeatureInfo(stages, self.out_indices)

    @property
    def return_layers(self) -> dict[str, str]:
        """Module of each returned feature map -> index of the stage. Assign a mapping to select other maps."""
        return {f"stages.{index}": str(index) for index in self.out_indices}

    @return_layers.setter
    def return_layers(self, layers: dict[str, str]) -> None:
        indices = (int(name.rpartition(".")[2]) for name in layers)
        self.out_indices = tuple(index for index in indices if index < len(self.stages))

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The settings that timm's functions read, such as `timm.data.resolve_model_data_config`.

        They come from `config` and `metadata`: input size, crop, interpolation, mean and std, class names, and the
        names of the first convolution and of the classifier.
        """
        config, metadata = self.config, self.metadata
        preprocessing = metadata.preprocessing
        classifiers = ("head.classifier.linear", "head.distilled.linear")
        return {
            "architecture": config.name,
            "hf_hub_id": metadata.provenance.get("hub_repo"),
            "num_classes": config.num_classes,
            "label_names": list(metadata.class_names) or None,
            "input_size": (config.in_chans, *preprocessing.size),
            "pool_size": tuple(_last_side(config, side) for side in preprocessing.size),
            "fixed_input_size": False,
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": "center",
            "interpolation": preprocessing.interpolation,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "first_conv": "stem.conv1.conv",
            "classifier": classifiers if config.distillation else classifiers[0],
        }

    @property
    def default_cfg(self) -> dict[str, Any]:
        """Alias of `pretrained_cfg`."""
        return self.pretrained_cfg

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Map B x in_chans x H x W to the last feature map and the maps of some stages.

        Args:
            x: images.
            indices: the stages, in the order of the result; None: all.
            norm: has no effect: the networks have no norm after the last stage.
            stop_early: compute no stage after the last one of `indices`.
            output_fmt: "NCHW", the only format.
            intermediates_only: return only the maps of `indices`.

        Raises:
            UserError: a stage does not exist, or `output_fmt` is not "NCHW".
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt is {output_fmt!r}; feature maps have the format 'NCHW'")
        wanted = stage_indices(len(self.stages) if indices is None else indices, len(self.stages), name="indices")
        self.check_input(x)
        x = self.stem(x)
        maps: dict[int, Tensor] = {}
        for index, stage in enumerate(self.stages):
            if stop_early and index > max(wanted):
                break
            x = stage(x)
            maps[index] = x
        found = [maps[index] for index in wanted]
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last one of `indices`, in place. A pruned network cannot be saved.

        Args:
            indices: the stages whose maps are still needed.
            prune_norm: has no effect: the networks have no norm after the last stage.
            prune_head: also remove the head. The head is always removed together with the last stage.

        Returns:
            The stages of `indices`, counted from 0.

        Raises:
            UserError: a stage does not exist.
        """
        wanted = stage_indices(indices, len(self.stages), name="indices")
        last = max(wanted)
        shortened = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        self.out_indices = wanted
        if prune_head or shortened:
            self.remove_head()
        return list(wanted)

    def remove_head(self) -> None:
        """Remove the head and the pooling before it; a network without them stays as it is."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters into layers, from the stem to the head, for timm's `layer_decay`.

        Args:
            coarse: one layer per stage instead of one per block.
        """
        blocks: Any = r"^stages\.(\d+)"
        if not coarse:
            # a downsampling belongs to the first block after it
            blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay besides one-dimensional ones: an empty set."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether each block is recomputed in the backward pass, which saves the memory of its activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]


def stage_indices(indices: Indices, stages: int, *, name: str = "out_indices") -> tuple[int, ...]:
    """Convert `indices` to a tuple of stage indices counted from 0.

    Args:
        indices: see `Indices`.
        stages: number of stages.
        name: name of the argument in the message.

    Raises:
        UserError: a stage does not exist, there is no index, or an index is not a whole number.
    """
    indices = indices.tolist() if hasattr(indices, "tolist") else indices  # of NumPy or torch
    if isinstance(indices, str) or not all(isinstance(index, int) for index in _as_sequence(indices)):
        raise UserError(f"{name} is {indices!r}; expected whole numbers, some of 0 to {stages - 1}")
    if isinstance(indices, int) and 0 < indices <= stages:
        return tuple(range(stages - indices, stages))
    if isinstance(indices, int):
        raise UserError(f"{name} is {indices}; expected 1 to {stages}, the number of last stages, or indices")
    if not indices or any(not -stages <= index < stages for index in indices):
        raise UserError(f"{name} is {tuple(indices)}; expected some of 0 to {stages - 1}")
    return tuple(index % stages for index in indices)


def _as_sequence(indices: Indices) -> Sequence[int]:
    return indices if isinstance(indices, Sequence) else (indices,)


def _last_side(config: NetworkConfig, side: int) -> int:
    """Return the side of the last feature map for a side of the image, in pixels."""
    side = side // 4 if config.stem == "patch" else -(-side // 4)
    for _ in config.stages[1:]:
        side = side // 2 if config.downsample == "patch" else -(-side // 2)
    return side
