"""`iformer quickstart`: train, export, check and time a small network in a few minutes."""

from __future__ import annotations

import importlib.util
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.output import DebugOption, JsonOption, console, print_json
from iformer.errors import MissingDependencyError, StoppedBySignalError, UserError
from iformer.files import output_folder, removed_if_empty, write_text
from iformer.tables import markdown_table

if TYPE_CHECKING:
    from rich.console import Console

    from iformer.bench.timing import Timings
    from iformer.data.samples import DataSplits, ImageSet
    from iformer.deploy.artifact import ArtifactInfo
    from iformer.models.classifier import Classifier
    from iformer.training.records.results import TrainResult

MODEL, DATA, RECIPE = "iformer_t", "elpv", "quickstart"
EXTRAS = {
    "train": ("accelerate", "tensorboard", "torchmetrics", "matplotlib"),
    "elpv": ("elpv_dataset",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
STEPS = 6
TIMING_ROUNDS = 40
SHOWN_IMAGES = 36
EXPLAINED_IMAGES = 18


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Results of a quickstart, for its report and summary."""

    result: TrainResult
    artifact: ArtifactInfo
    artifact_path: Path
    timings: Timings
    seconds: float


def quickstart(
    out: Annotated[Path, typer.Option(file_okay=False, help="Output folder.")] = Path("quickstart"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the quickstart in --out.")] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs. [default: those of the recipe `quickstart`]")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=8, help="Use at most this many images per split, as a quick trial."),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train, export, check and time a small network in minutes.

    The data are 2,624 photographs of solar cells. The report has predictions and attention maps.
    """
    _require_extras()
    run = out / "run"
    if (run / "config.yaml").exists() and not overwrite:
        raise UserError(f"{out} already holds a quickstart; give --overwrite to replace it, or another --out")
    say = console(stderr=json)
    start = time.perf_counter()
    with removed_if_empty(out):
        output_folder(out)
        _welcome(say, out)

        _step(say, 1, "Data")
        data = _load_data(say, limit)
        _step(say, 2, f"Training {MODEL} from random weights")
        result = _train(say, data, run, epochs=epochs, overwrite=overwrite)
    model = _trained(result)
    _step(say, 3, "Export to ONNX, compared with PyTorch")
    artifact_path = out / f"{MODEL}_{DATA}.onnx"
    artifact = _export(say, model, artifact_path, data.val)
    _step(say, 4, "Latency of the same network in three forms: one image, one thread")
    timings = _time(say, model, artifact_path)
    _step(say, 5, "Predictions")
    _predict(say, model, data.val, out)
    _step(say, 6, "Report")
    outcome = _Outcome(
        result=result,
        artifact=artifact,
        artifact_path=artifact_path,
        timings=timings,
        seconds=time.perf_counter() - start,
    )
    report = _write_report(out, outcome)
    if json:
        print_json(_plain(outcome, report))
    else:
        _summary(say, outcome, out, report)


def _require_extras() -> None:
    missing = [name for names in EXTRAS.values() for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"quickstart needs {', '.join(missing)}; run: pip install 'iformer[{','.join(EXTRAS)}]'"
        )


def _welcome(say: Console, out: Path) -> None:
    from rich.panel import Panel

    text = (
        "The data are electroluminescence photographs of solar cells: cracks and inactive areas are dark. In the "
        "next minutes a network is trained to tell defective cells from functional ones, exported to ONNX, "
        "compared with the exported file, and timed. Its predictions and attention maps are drawn. "
        f"All files go to {out}/."
    )
    say.print(Panel(text, title="[bold]iFormer quickstart[/bold]", title_align="left", border_style="cyan"))


def _step(say: Console, number: int, title: str) -> None:
    say.print()
    say.rule(f"[bold cyan]{number}/{STEPS}[/bold cyan]  [bold]{title}[/bold]", align="left", style="cyan")


def _load_data(say: Console, limit: int | None) -> DataSplits:
    from dataclasses import replace

    from iformer.data.sources import load_data

    data = load_data(DATA)
    if limit is not None:
        train, val = (
            split.subset(random.Random(0).sample(range(len(split)), min(limit, len(split))))
            for split in (data.train, data.val)
        )
        data = replace(data, train=train, val=val)
    for name, split in (("training", data.train), ("test", data.val)):
        counts = ", ".join(f"{count} {label}" for label, count in split.class_counts.items())
        say.print(f"{len(split)} {name} photographs: {counts}")
    largest = max(data.val.class_counts.values()) / len(data.val)
    say.print(f"Baseline: the larger class is {100 * largest:.1f} % of the test photographs.")
    return data


def _train(say: Console, data: DataSplits, run: Path, *, epochs: int | None, overwrite: bool) -> TrainResult:
    from iformer.tasks.registry import find_task, load_recipe
    from iformer.training.job import RunSettings
    from iformer.training.loop import train

    overrides: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    if epochs is not None:
        overrides["warmup_epochs"] = min(load_recipe(RECIPE, {}).warmup_epochs, epochs / 4)
    recipe = load_recipe(RECIPE, overrides)
    say.print(
        f"{_epochs(recipe.epochs)} at {recipe.size} x {recipe.size} pixels. The test photographs are used for "
        "evaluation only."
    )
    settings = RunSettings(
        data_name=DATA,
        recipe=recipe,
        recipe_name=RECIPE,
        folder=run,
        overwrite=overwrite and (run / "config.yaml").exists(),
    )
    job = find_task("classify").module("training").classification_job(data, settings, model=MODEL)
    try:
        result = train(job)
    except StoppedBySignalError as error:  # quickstart has no --resume
        reason = str(error).partition(";")[0]
        raise StoppedBySignalError(f"{reason}; quickstart --overwrite begins again") from None
    top1, images = result.metrics["top1"], result.metrics["images"]
    say.print(f"[bold]Test accuracy {top1:.1f} %[/bold] on {images} photographs, after {result.seconds:.0f} s")
    for name, values in result.metrics["per_class"].items():
        share = values["recall"] / 100
        say.print(f"  {name:<12} {'█' * round(30 * share):<30} recall {100 * share:.1f} %")
    return result


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _trained(result: TrainResult) -> Classifier:
    from iformer.models.classifier import Classifier
    from iformer.models.weights.resolve import load_classifier
    from iformer.training.records.run_folder import RunFolder

    model = load_classifier(RunFolder(result.folder).last)
    assert isinstance(model, Classifier)
    return model


def _export(say: Console, model: Classifier, path: Path, test: ImageSet) -> ArtifactInfo:
    from iformer.deploy.export import export_artifact
    from iformer.tasks.export import exportable

    info = export_artifact(exportable(model), path, "onnx", images=test.files)
    parity: dict[str, Any] = info.parity or {}
    say.print(
        f"{path.name}: {path.stat().st_size / 1e6:.1f} MB; input uint8 RGB; normalisation and class names are "
        "inside."
    )
    say.print(
        f"Compared with PyTorch on {parity['images']} images: largest error of a logit "
        f"{parity['max_abs_error']:.1e} ({parity['max_relative_error']:.1e} of the largest logit), "
        f"same predicted class on {100 * parity['top1_agreement']:.1f} %."
    )
    return info


def _time(say: Console, model: Classifier, artifact: Path) -> Timings:
    import torch

    from iformer.bench.timing import interleaved
    from iformer.data.transforms import Normalize
    from iformer.deploy.runtimes.onnx import OnnxRunner
    from iformer.models.folding import fold

    height, width = model.metadata.preprocessing.size
    pixels = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    normalize = Normalize(model.metadata.preprocessing)
    folded = fold(model)
    runner = OnnxRunner(artifact, threads=1)
    fed = runner.prepare(pixels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            timings = interleaved(
                {
                    "PyTorch": lambda: model(normalize(pixels)),
                    "PyTorch, folded": lambda: folded(normalize(pixels)),
                    "ONNX Runtime": lambda: runner.run(fed),
                },
                rounds=TIMING_ROUNDS,
                warmup=5,
            )
    finally:
        torch.set_num_threads(threads)
    slowest = max(timings.median(name) for name in timings.seconds)
    for name in timings.seconds:
        bar = "█" * max(1, round(30 * timings.median(name) / slowest))
        say.print(
            f"  {name:<16} {bar:<30} {1e3 * timings.median(name):6.2f} ms"
            + ("" if name == "PyTorch" else f"   {timings.ratio('PyTorch', name):.2f}x")
        )
    return timings


def _predict(say: Console, model: Classifier, test: ImageSet, out: Path) -> None:
    from iformer.tasks.registry import find_task

    classify = find_task("classify").module("predict")

    chosen = test.subset(random.Random(1).sample(range(len(test)), min(SHOWN_IMAGES, len(test))))
    truth = {
        path: chosen.class_names[sample.label] for path, sample in zip(chosen.files, chosen.samples, strict=True)
    }
    predictor = classify.Predictor(model, top_k=2, attention=True)
    answers = [answer for answer in predictor.predict(list(truth)) if isinstance(answer, classify.Answer)]
    right = sum(answer.classes[0][0] == truth[answer.path] for answer in answers)
    subtitle = f"Random test photographs; {right} of {len(answers)} predictions are right."
    classify.draw_predictions(answers, out, title=f"{MODEL} after the quickstart", subtitle=subtitle)
    # cells with visible defects first
    defective = sorted(answers, key=lambda answer: -dict(answer.classes).get("defective", 0.0))
    classify.draw_explanations(
        defective[:EXPLAINED_IMAGES], out, title=f"Attention of {MODEL}: highest probability of a defect first"
    )
    say.print(f"{out / 'predict.png'}: {len(answers)} test photographs with predictions, {right} of them right")
    say.print(f"{out / 'explain.png'}: attention maps of the last attention stage")


def _write_report(out: Path, outcome: _Outcome) -> Path:
    from iformer.training.records.provenance import cpu_name

    result, artifact, timings = outcome.result, outcome.artifact, outcome.timings
    parity: dict[str, Any] = artifact.parity or {}
    metrics = result.metrics
    photographs = result.train_images + result.metrics["images"]
    lines = [
        f"# Quickstart: {MODEL} on {photographs} photographs of solar cells",
        "",
        f"Accuracy **{metrics['top1']:.2f} %** on {metrics['images']} test photographs after "
        f"{_epochs(len(result.history))} at {result.recipe.size} x {result.recipe.size} "
        f"({result.seconds:.0f} s of training on {result.device}, {result.precision}); "
        f"the whole quickstart took {outcome.seconds:.0f} s. "
        "[The report of the training run](run/report.md) has the metrics per class, settings and versions.",
        "",
        "![Test photographs with predictions](predict.png)",
        "",
        "## Training",
        "",
        "![Loss, accuracy and learning rate](run/curves.png)",
        "",
        "![Confusion matrix](run/confusion.png)",
        "",
        "## Attention",
        "",
        "![Attention maps](explain.png)",
        "",
        "## The exported network",
        "",
        f"[{outcome.artifact_path.name}]({outcome.artifact_path.name}) maps uint8 RGB images, "
        f"N x {' x '.join(str(side) for side in artifact.input_shape[1:])}, to logits and includes the "
        f"normalisation. [Its record]({outcome.artifact_path.name}.json) has the details.",
        "",
        markdown_table(
            ["comparison with PyTorch, from encoded image files", ""],
            [
                ["images", f"{parity['images']} ({parity['generated_images']} generated colour patterns)"],
                ["largest error of a logit", f"{parity['max_abs_error']:.2e}"],
                [
                    "as a share of the largest logit",
                    f"{parity['max_relative_error']:.2e} (tolerance {parity['tolerance']:g})",
                ],
                ["smallest cosine similarity of the logits", f"{parity['min_cosine']:.8f}"],
                [
                    "same predicted class",
                    f"{100 * parity['top1_agreement']:.2f} % of {parity['clear_images']} clear images",
                ],
            ],
        ),
        "",
        "## Latency",
        "",
        f"One image, one thread, normalisation included, {TIMING_ROUNDS} interleaved rounds on {cpu_name()}. "
        "The speedup is the median over rounds of the ratio to PyTorch.",
        "",
        markdown_table(
            ["form", "median ms", "p10 ms", "p90 ms", "speedup"],
            [
                [
                    name,
                    *(f"{values[key]:.2f}" for key in ("median_ms", "p10_ms", "p90_ms")),
                    f"{timings.ratio('PyTorch', name):.2f}x",
                ]
                for name, values in timings.to_plain().items()
            ],
        ),
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in artifact.versions.items()) + ".",
        "",
        "## Next steps",
        "",
        *[f"    {command}" for command in _next_commands(out)],
    ]
    return write_text(out / "report.md", "\n".join(lines) + "\n")


def _next_commands(out: Path) -> list[str]:
    return [
        f"iformer predict YOUR_IMAGES --weights {out / 'run' / 'last.safetensors'} --explain",
        "iformer train --data YOUR_FOLDER --weights pretrained --out runs/mine",
    ]


def _summary(say: Console, outcome: _Outcome, out: Path, report: Path) -> None:
    from rich.panel import Panel
    from rich.table import Table

    parity: dict[str, Any] = outcome.artifact.parity or {}
    rows = Table.grid(padding=(0, 3))
    rows.add_row("test accuracy", f"[bold]{outcome.result.metrics['top1']:.1f} %[/bold], from random weights")
    rows.add_row(
        "ONNX error", f"{parity['max_relative_error']:.0e} of the largest logit on {parity['images']} images"
    )
    rows.add_row("ONNX Runtime", f"{1e3 * outcome.timings.median('ONNX Runtime'):.1f} ms per image on one thread")
    rows.add_row("time", f"{outcome.seconds / 60:.1f} minutes")
    rows.add_row("report", f"[bold]{report}[/bold]")
    rows.add_row("pictures", f"{out / 'predict.png'}, {out / 'explain.png'}")
    rows.add_row("", "")
    for label, command in zip(("your images", "your network"), _next_commands(out), strict=True):
        rows.add_row(label, f"[cyan]{command}[/cyan]")
    say.print()
    say.print(Panel(rows, title="[bold]Done[/bold]", title_align="left", border_style="green"))


def _plain(outcome: _Outcome, report: Path) -> dict[str, Any]:
    return {
        "report": report,
        "metrics": outcome.result.metrics,
        "training_seconds": outcome.result.seconds,
        "seconds": outcome.seconds,
        "checkpoint": outcome.result.folder / "last.safetensors",
        "artifact": outcome.artifact_path,
        "parity": outcome.artifact.parity,
        "timings": outcome.timings.to_plain(),
    }
