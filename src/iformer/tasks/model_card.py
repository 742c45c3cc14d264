"""The model card of a network: a `README.md` in the format of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from iformer.config.metadata import Metadata
from iformer.errors import counted, printable
from iformer.tables import markdown_code, markdown_table, markdown_text
from iformer.tasks.registry import TaskRow, find_task

_NAMED_CLASSES = 50
"""Largest number of classes that the card names; further classes are only counted."""
_SHOWN_FIELDS = ("size", "batch_size", "lr", "optimizer", "weights")
"""Recipe fields that the card shows."""
_NOT_SHARES = ("loss", "images", "threshold", "temperature")
"""Metrics that are not percentages."""
_INSTALL = "pip install .   # in a clone of iFormer's repository"
_CHECKSUM = re.compile(r"\n<!-- iformer card, sha256 ([0-9a-f]{64}) -->\n\Z")
_PAPER = "[iFormer](https://arxiv.org/abs/2501.15369)"


def model_card(
    metadata: Metadata,
    *,
    name: str,
    parameters: int,
    repo: str | None = None,
    checkpoint: str | None = None,
    licence: str | None = None,
) -> str:
    """Return the model card of a network: YAML for the hub, then a summary, usage, metrics, classes and training.

    Args:
        metadata: metadata of the network's checkpoint.
        name: name of the architecture.
        parameters: number of parameters of the network.
        repo: `USER/NAME` on the hub. None: the network is not on the hub yet.
        checkpoint: file of a run folder that holds the network, such as `best.safetensors`. None: it has no run.
        licence: licence of the weights in the hub's spelling, such as `apache-2.0`. None: unknown.

    The last line is a comment with a checksum; see `is_generated`.
    """
    row = find_task(metadata.task)
    metric, label = row.headline(multi_label=metadata.multi_label)
    data_name, metrics = _data_name(metadata), _numbers(metadata.metrics)
    card = ModelCardData(
        library_name="iformer",
        license=licence,
        pipeline_tag=row.pipeline_tag or None,
        tags=["iformer", *(["multi-label"] if metadata.multi_label else [])],
        model_name=repo.partition("/")[2] if repo else name,
        eval_results=[
            EvalResult(
                task_type=row.pipeline_tag,
                dataset_type=data_name,
                dataset_name=data_name,
                metric_type=key,
                metric_name=label if key == metric else key.replace("_", " "),
                metric_value=round(value, 4),
            )
            for key, value in metrics.items()
            if key != "images" and row.pipeline_tag
        ]
        or None,
    )
    sections = [
        f"---\n{card.to_yaml()}\n---",
        f"# {markdown_text(repo or name)}",
        _summary(metadata, name=name, parameters=parameters, headline=(metric, label), metrics=metrics),
        _usage(repo or "USER/NAME", row),
        "## Metrics\n\n"
        + markdown_table(
            [f"on the validation images{_precision(metadata)}", ""],
            [[key.replace("_", " "), _form(key, value)] for key, value in metrics.items()],
        )
        if metrics
        else "",
        _classes(metadata.class_names),
        _training(metadata, data_name),
        f"## Limits\n\n{_selection(metadata, checkpoint)}The metrics are those of the validation images above; on "
        "other images, such as those of another camera, they may be lower. "
        + (
            f"The publisher of these weights gives them the licence {licence}; the data may have its own."
            if licence
            else "Weights and data may have licences of their own; this card states none."
        ),
    ]
    text = "\n\n".join(filter(None, sections)) + "\n"
    return f"{text}\n<!-- iformer card, sha256 {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_generated(card: bytes) -> bool:
    """Return whether a card was written by `model_card` and not changed since."""
    text = card.decode(errors="replace").replace("\r\n", "\n")
    found = _CHECKSUM.search(text)
    return found is not None and hashlib.sha256(text[: found.start()].encode()).hexdigest() == found[1]


def _summary(
    metadata: Metadata, *, name: str, parameters: int, headline: tuple[str, str], metrics: dict[str, float]
) -> str:
    row, preprocessing = find_task(metadata.task), metadata.preprocessing
    several = (
        " An image may have several labels: apply a sigmoid to each logit; a class whose probability is at least "
        f"{metadata.threshold:g} is a label."
        if metadata.multi_label
        else ""
    )
    score = (
        f" {headline[1]}: **{metrics[headline[0]]:.2f} %**{_precision(metadata)}."
        if headline[0] in metrics
        else ""
    )
    height, width = preprocessing.size
    classes = f"{counted(len(metadata.class_names), 'class')}, " if metadata.class_names else ""
    return (
        f"One of the {row.networks} of {_PAPER}: {markdown_text(name)}, {parameters / 1e6:.2f} M parameters, "
        f"{classes}inputs of {height} x {width} pixels.{score}{several}"
    )


def _usage(repo: str, row: TaskRow) -> str:
    if row.verb == "pretrain":
        return (
            "## Use\n\nThe network has no classes yet. Training starts from it:\n\n```sh\n"
            f"{_INSTALL}\niformer train --data FOLDER --model hf-hub:{repo} --out runs/tuned\n```\n\n"
            "`model.safetensors` holds the preprocessing and these figures too."
        )
    return (
        f"## Use\n\n```sh\n{_INSTALL}\n"
        f"iformer predict photo.jpg --weights hf-hub:{repo}\n```\n\n"
        f'```python\nimport iformer\n\nmodel = iformer.load("hf-hub:{repo}")\n'
        'for answer in iformer.predict(model, "photos"):\n    print(answer.path, answer.words)\n```\n\n'
        "`model.safetensors` holds the class names, the preprocessing and these figures too."
    )


def _classes(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    shown = ", ".join(markdown_code(printable(name, limit=100)) for name in names[:_NAMED_CLASSES])
    rest = f", and {len(names) - _NAMED_CLASSES} more" if len(names) > _NAMED_CLASSES else ""
    return f"## Classes\n\n{shown}{rest}."


def _training(metadata: Metadata, data_name: str) -> str:
    provenance = metadata.provenance
    data, recipe, versions = (_mapping(provenance.get(key)) for key in ("data", "recipe", "versions"))
    rows: list[tuple[str, Any]] = [
        ("data", data_name),
        ("training images", data.get("train_images")),
        ("validation images", data.get("val_images")),
        ("recipe", recipe.get("name")),
        ("epochs", provenance.get("epoch")),
        *((key.replace("_", " "), recipe.get(key)) for key in _SHOWN_FIELDS),
        ("versions", ", ".join(f"{key} {value}" for key, value in versions.items())),
        ("created", provenance.get("created")),
    ]
    known = [[key, str(_without_folder(value))] for key, value in rows if value not in (None, "")]
    return "## Training\n\n" + markdown_table(["", ""], known, left=2)


def _selection(metadata: Metadata, checkpoint: str | None) -> str:
    """Return which epoch the weights are of, with a caveat if it may have been selected; empty if unknown."""
    recipe, epoch = _mapping(metadata.provenance.get("recipe")), metadata.provenance.get("epoch")
    epochs, file = recipe.get("epochs"), f" (`{checkpoint}` of the run)" if checkpoint else ""
    if not isinstance(epoch, int) or not isinstance(epochs, int):
        return ""
    if checkpoint == "last.safetensors":
        return f"These are the weights at the end of training, of epoch {epoch} of {epochs}{file}. "
    if epoch >= epochs and not file:
        return ""
    caveat = (
        "They were selected by the validation metric, so that metric is optimistic."
        if checkpoint == "best.safetensors"
        else "If they were selected by the validation metric, that metric is optimistic."
    )
    return f"These are the weights of epoch {epoch} of {epochs}{file}. {caveat} "


def _precision(metadata: Metadata) -> str:
    """Return in which precision the metrics were computed, as part of a sentence; empty if unknown."""
    precision = metadata.provenance.get("metrics_precision")
    return f", in {precision}" if precision in ("fp32", "bf16", "fp16") else ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _data_name(metadata: Metadata) -> str:
    data = metadata.provenance.get("data")
    name = data.get("name") if isinstance(data, dict) else data
    return printable(str(_without_folder(name or "unknown")), limit=100)


def _without_folder(value: Any) -> Any:
    """Return only the name of an absolute path, to keep folders private; return other values unchanged."""
    is_path = isinstance(value, str) and os.sep in value and "://" not in value and os.path.isabs(value)
    return Path(value).name if is_path else value


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15  # no NaN
    }


def _form(name: str, value: float) -> str:
    if name in _NOT_SHARES or isinstance(value, int):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"{value:.2f} %"
