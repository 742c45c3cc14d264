"""`iformer info`: the networks, or one network, checkpoint or folder of shards in detail."""

from __future__ import annotations

import functools
import json as json_format
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from iformer.cli.arguments import AttentionOption, EntryOption, WindowsOption, parse_size
from iformer.cli.output import DebugOption, JsonOption, console, print_json, print_table, say
from iformer.config.metadata import Metadata
from iformer.config.windows import design_of, with_design
from iformer.errors import UserError, counted, listed, printable

if TYPE_CHECKING:
    from iformer.config.network import NetworkConfig
    from iformer.models.weights.checkpoint import Weights

    Design = Callable[[NetworkConfig], NetworkConfig]

_FORMATS = {"iformer": "our checkpoint format", "timm": "timm's key names", "authors": "the authors' key names"}


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A size, a shipped network, a weight file, a run folder, an exported artifact, hf-hub:USER/NAME, "
            "or the folder or URL of tar shards.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every shard and compare counts, labels and checksums.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="List the fields of a recipe: its name or file, or a task for its default recipe."
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(help="Input size at which operations are counted: 224, or height x width.")
    ] = "224",
    attention: AttentionOption = None,
    windows: WindowsOption = None,
    entry: EntryOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show networks, checkpoints, artifacts, tar shards and recipes.

    Without MODEL, lists all sizes with parameters, GMACs, published accuracy and the origin of the weights.
    """
    pixels = parse_size(size)
    if attention is None and windows is not None:
        raise UserError("--windows is given without --attention; give --attention chunk_hybrid or hybrid")

    def design(config: NetworkConfig) -> NetworkConfig:
        return config if attention is None else with_design(config, attention, preset=windows)

    if recipe is not None:
        if model is not None:
            raise typer.BadParameter("--recipe lists a recipe's fields; give no MODEL")
        _describe_recipe(recipe, json=json)
    elif model is not None and _means_shards(model):
        _describe_shards(model, verified=verify, json=json)
    elif verify:
        raise typer.BadParameter("--verify is for tar shards: give their folder or URL")
    elif model is None:
        _list_networks(pixels, design, counted=json or pixels != (224, 224) or attention is not None, json=json)
    else:
        _describe(model, pixels, design, entry=entry, json=json)


def _means_shards(name: str) -> bool:
    from iformer.data.sources.shards.stores import is_url
    from iformer.models.weights.resolve import is_known_folder

    if name.startswith(("hf-hub:", "hf_hub:")):
        return False
    return is_url(name) or (os.path.isdir(name) and not is_known_folder(name))


def _refuse_other_folders(folder: Path) -> None:
    """Raise an error that says what a folder is if it holds annotated images or run folders, and no tar shards."""
    from iformer.data.sources.annotations.coco import find_coco, find_one_coco
    from iformer.data.sources.annotations.voc import find_voc
    from iformer.data.sources.annotations.yolo import find_yolo
    from iformer.data.sources.shards.reader import holds_shards
    from iformer.models.weights.resolve import RUN_CHECKPOINT

    if not os.path.isdir(folder) or holds_shards(folder):
        return
    found = {
        "COCO": find_coco(folder) or find_one_coco(folder),
        "YOLO": find_yolo(folder),
        "Pascal VOC": find_voc(folder),
    }
    for name in filter(found.get, found):
        raise UserError(
            f"{folder} holds no tar shards: it is a data set in the format of {name}. iformer train --task detect "
            f"--data {folder} reads it; info describes networks and tar shards"
        )
    runs = sorted(path.parent.name for path in folder.glob(f"*/{RUN_CHECKPOINT}"))
    if runs:
        raise UserError(f"{folder} holds the folders of runs: {listed(runs)}; give one of them")


def _describe_shards(folder: str, *, verified: bool, json: bool) -> None:
    from iformer.data.sources.shards.packing import describe, verify

    _refuse_other_folders(Path(folder))
    found = verify(folder, decode=True) if verified else describe(folder)
    if json:
        print_json({**asdict(found), "verified": verified})
        return
    splits = ", ".join(
        f"{counted(count, f'{split} image')} in {found.shards[split]}" for split, count in found.images.items()
    )
    state = "every image was read, compared with the index and decoded" if verified else "not verified (--verify)"
    say(
        f"{found.folder}: tar shards, {splits}, {counted(found.classes, 'class')}, {found.bytes / 1e9:.2f} "
        f"GB; {state}"
    )


def _describe_recipe(name: str, *, json: bool) -> None:
    """Print the fields of a recipe with their values."""
    from iformer.config.reference import recipe_fields
    from iformer.tasks.registry import TASKS, load_recipe

    name = TASKS[name].default_recipe if name in TASKS else name
    recipe = load_recipe(name)
    plain = recipe.to_plain()
    if json:
        print_json({"recipe": name, "fields": plain})
        return
    for row in recipe_fields(type(recipe)):
        section, _, field = row.name.rpartition(".")
        value = (plain[section] if section else plain)[field]
        say(f"{row.name}={json_format.dumps(value)}\n    {row.doc or row.allowed}")
    say(f"\nrecipe {name}, for {recipe.task}: --set FIELD=VALUE replaces a field")


def _list_networks(size: tuple[int, int], design: Design, *, counted: bool, json: bool) -> None:
    """Print all sizes. Their counts come from a table or, with `counted`, are computed, which takes seconds."""
    from iformer.config.variants import list_models, listed_counts, network_config, release, shipped_checkpoints

    networks: list[dict[str, Any]] = []
    for name in list_models():
        released = release(name)
        networks.append(
            {
                "name": name,
                **((None if counted else listed_counts(name)) or _count(design(network_config(name)), size)),
                "imagenet": None if released is None else {"top1": released.top1, "top5": released.top5},
                "weights": None if released is None else released.hub_repo,
            }
        )
    shipped = {name: str(path) for name, path in shipped_checkpoints().items()}
    if json:
        print_json({"size": list(size), "networks": networks, "shipped": shipped})
        return
    rows = []
    for network in networks:
        accuracy = network["imagenet"]
        rows.append(
            [
                network["name"],
                network["weights"] or "none released",
                f"{network['parameters_folded'] / 1e6:.3f}",
                f"{network['macs'] / 1e9:.4f}",
                f"{accuracy['top1']:.2f}" if accuracy else "-",
                f"{accuracy['top5']:.2f}" if accuracy else "-",
            ]
        )
    columns = ["network", "released weights (Hugging Face)", "params M", "GMACs", "top-1 %", "top-5 %"]
    out = console()
    print_table(f"iFormer at {size[0]} x {size[1]}", columns, rows, left=2)
    out.print(
        "\nParameters: of the folded network with 1000 classes. Accuracies: published, ImageNet-1k at 224 x 224."
    )
    for name, path in shipped.items():
        out.print(f"\nShipped with this package: [bold]{name}[/bold] ({path})", soft_wrap=True)


def _describe(model: str, size: tuple[int, int], design: Design, *, entry: str | None, json: bool) -> None:
    from iformer.config.variants import release
    from iformer.models.weights.resolve import Artifact, Size, resolve

    found = resolve(model, entry=entry)
    if isinstance(found, Artifact):
        _describe_artifact(found.path, json=json)
        return
    if not isinstance(found, Size) and found.task != "classify":
        _describe_task_network(found, json=json)
        return
    weights = None if isinstance(found, Size) else found
    released = release(found.name) if isinstance(found, Size) else None
    config = design(cast("NetworkConfig", found.config))
    counts = _count(config, size)
    if json:
        print_json(
            {
                "name": config.name,
                "file": weights and weights.path,
                "format": weights and weights.format,
                "size": list(size),
                **counts,
                "released": released and asdict(released),
                "attention": design_of(config),
                "network": config.to_plain(),
                "metadata": (weights.metadata if weights else Metadata()).to_plain(),
            }
        )
        return
    _print_stages(config)
    parameters, folded = counts["parameters"] / 1e6, counts["parameters_folded"] / 1e6
    facts = [
        ("parameters", f"{folded:.3f} M folded, {parameters:.3f} M in training"),
        ("operations", f"{counts['macs'] / 1e9:.4f} GMACs at {size[0]} x {size[1]}"),
        ("attention", _design_fact(config)),
        ("classes", f"{config.num_classes}" + (", two heads (distillation)" if config.distillation else "")),
    ]
    _print_facts(facts + (_release_facts(released) if weights is None else _checkpoint_facts(weights)))


def _print_facts(facts: list[tuple[str, str]]) -> None:
    from rich.text import Text

    out = console()
    width = max(len(name) for name, _ in facts)
    out.print()
    for name, fact in facts:
        out.print(Text.assemble((f"{printable(name):<{width}}", "bold"), "  ", printable(fact)), soft_wrap=True)


def _describe_task_network(weights: Weights, *, json: bool) -> None:
    import torch

    from iformer.models.complexity import count_parameters
    from iformer.models.weights.header import backbone_config

    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        parameters = count_parameters(weights.row.network_class()(weights.config))
    backbone, plain = backbone_config(weights.config), weights.config.to_plain()
    if json:
        described = {"network": plain, "metadata": weights.metadata.to_plain()}
        print_json({"name": backbone.name, "file": weights.path, "parameters": parameters, **described})
        return
    _print_stages(backbone)
    heads = [
        (name.replace("_", " "), str(value)) for name, value in plain.items() if isinstance(value, int | float)
    ]
    total = ("parameters", f"{parameters / 1e6:.3f} M with pyramid and heads")
    _print_facts([total, *heads, *_checkpoint_facts(weights)])


def _describe_artifact(path: Path, *, json: bool) -> None:
    from iformer.deploy.artifact import read_record
    from iformer.deploy.runtimes.registry import BACKENDS

    record = read_record(path)
    if json:
        print_json({"file": path, **record.to_plain()})
        return
    shape = " x ".join("any" if side is None else str(side) for side in record.input_shape)
    runtime = f"{record.runtime}, {record.precision}"
    if record.runtime == "executorch":
        runtime += f", for the backend {record.backend or BACKENDS[0].name}"
    _print_facts(
        [
            ("artifact", f"{path} of {record.network}"),
            ("runtime", runtime),
            (
                "input",
                f"{record.input_dtype} {record.input_layout}, {shape}, normalised by the {record.normalized_by}",
            ),
            ("task", record.task),
            ("class names", _class_names(record.class_names)),
            ("status", record.status),
            ("compared with", record.checked_by or "nothing: its answers were not compared"),
            ("record", "fits its checksum" if record.record_sha256 else "has no checksum, as in early versions"),
        ]
    )


def _count(config: NetworkConfig, size: tuple[int, int]) -> dict[str, int]:
    import torch

    from iformer.models.complexity import count_parameters
    from iformer.models.factory import build

    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        parameters = count_parameters(build(config))
    # folding merges the two heads of a distilled network
    return {"parameters": parameters, **_count_folded(config.with_options(name="", distillation=False), size)}


@functools.cache
def _count_folded(config: NetworkConfig, size: tuple[int, int]) -> dict[str, int]:
    import torch

    from iformer.models.complexity import count_macs, count_parameters
    from iformer.models.factory import build
    from iformer.models.folding import fold

    with torch.device("meta"):
        folded = fold(build(config))
    return {
        "parameters_folded": count_parameters(folded),
        "macs": count_macs(folded, size, in_chans=config.in_chans),
    }


def _print_stages(config: NetworkConfig) -> None:
    from iformer.config.network import STRIDES

    rows = []
    for index, (stage, stride) in enumerate(zip(config.stages, STRIDES, strict=True), start=1):
        blocks = ", ".join(f"{count} {kind}" for kind, count in stage.pattern if count)
        attention = "attention" in stage.blocks
        rows.append(
            [
                str(index),
                blocks,
                str(stride),
                str(stage.channels),
                f"{stage.conv_kernel_size}x{stage.conv_kernel_size}" if "conv" in stage.blocks else "-",
                f"{stage.conv_expansion_ratio:g}" if "conv" in stage.blocks else "-",
                f"{stage.attention.ffn_expansion_ratio:g}" if attention else "-",
                f"{stage.attention.reduction}" if attention else "-",
            ]
        )
    columns = ["stage", "blocks", "stride", "channels", "kernel", "conv ratio", "FFN ratio", "R"]
    print_table(config.name, columns, rows, left=2)


def _design_fact(config: NetworkConfig) -> str:
    parts = []
    for number, stage in enumerate(config.stages, start=1):
        if stage.windows is not None:
            windows = stage.windows
            parts.append(
                f"stage {number} in windows of {windows.window_size} x {windows.window_size}, "
                f"global blocks at its end {windows.global_blocks}, channel groups {windows.channel_chunks}, "
                f"padded tokens {windows.padded_tokens}"
            )
    return "; ".join([design_of(config), *parts])


def _release_facts(released: Any) -> list[tuple[str, str]]:
    if released is None:
        return [("weights", "none released")]
    return [
        ("weights", f"https://huggingface.co/{released.hub_repo}"),
        ("ImageNet-1k", f"top-1 {released.top1:.2f} %, top-5 {released.top5:.2f} % (published)"),
    ]


def _checkpoint_facts(weights: Weights) -> list[tuple[str, str]]:
    path, metadata = weights.path, weights.metadata
    assumed = "" if weights.described else " (assumed: the file does not say it)"
    facts = [
        ("file", f"{path} ({path.stat().st_size / 1e6:.2f} MB, {_FORMATS[weights.format]})"),
        ("task", metadata.task),
        ("class names", _class_names(metadata.class_names)),
        ("input", f"{metadata.preprocessing.describe()}{assumed}"),
    ]
    if weights.ignored:
        facts.append(("not read", f"{listed(weights.ignored)}: not part of the network"))
    facts += [(f"metric {name}", _number(value)) for name, value in metadata.metrics.items() if _is_short(value)]
    facts += [(f"from {name}", _number(value)) for name, value in metadata.provenance.items() if _is_short(value)]
    return facts


def _class_names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:12]) + (f", … {len(names) - 12} more" if len(names) > 12 else "")
    return shown or "not recorded"


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
