"""Images with several labels each: from a table to training, evaluation, predictions and an artifact."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import iformer
from iformer.config.metadata import Metadata
from iformer.config.variants import VARIANTS
from iformer.data.sampling import seeded
from iformer.data.sources import load_data
from iformer.deploy.artifact import read_record
from iformer.errors import ConfigError, DataError
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.classification.evaluate import MultiLabelEvaluation
from iformer.tasks.classification.export import ExportableClassifier
from iformer.tasks.classification.figures import draw_mistakes, worst_labels
from iformer.tasks.classification.loss import Classification, LabelLoss
from iformer.tasks.classification.metric import multi_label_metrics
from iformer.training.records.results import TrainResult
from tiny.interruption import stopped_after
from tiny.networks import labelled_classifier, tiny_variant

COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 photographs, in which each of three channels is bright or dark: one has up to three labels, or none."""
    folder = tmp_path_factory.mktemp("several")
    generator = np.random.default_rng(0)
    rows = ["image,label,split"]
    for number in range(32):
        has = [bool(number >> bit & 1) for bit in range(3)]
        pixels = generator.integers(0, 60, (40, 40, 3), dtype=np.uint8)
        pixels[..., has] += 180
        Image.fromarray(pixels).save(folder / f"{number}.png")
        labels = "|".join(name for name, present in zip(COLOURS, has, strict=True) if present)
        rows.append(f"{number}.png,{labels},{'val' if number >= 24 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
        yield iformer.train(
            table,
            out=tmp_path_factory.mktemp("runs") / "run",
            model="iformer_tiny",
            multi_label=True,
            weights="none",
            epochs=8,
            warmup_epochs=0,
            eval_every=8,
            batch_size=8,
            lr=1e-2,
            label_smoothing=0.0,
            lr_batch=8,
            size=64,
            ema_decay=None,
            augment={
                "color_jitter": 0.0,
                "scale": None,
                "random_erasing": 0.0,
                "mixup_alpha": 0.0,
                "cutmix_alpha": 0.0,
            },
            workers=0,
            device="cpu",
            tensorboard=False,
        )


# --------------------------------------------------------------------------------------------------- the table


def test_several_labels_in_a_cell(table: Path) -> None:
    data = load_data(table, multi_label=True)
    assert data.train.class_names == COLOURS
    sets = {sample.name: labels for sample, labels in zip(data.train.samples, data.train.label_sets, strict=True)}
    assert (sets["0.png"], sets["5.png"], sets["7.png"]) == ((), (0, 2), (0, 1, 2))
    assert data.train.multi_hot(5).tolist() == [1, 0, 1]
    assert data.val.class_counts == {"blue": 4, "green": 4, "red": 4}
    other = table.with_name("other.csv")
    other.write_text(table.read_text().replace("5.png,blue|red", "5.png,red; blue;"))
    assert load_data(other, multi_label=True).train.fingerprint() == data.train.fingerprint()
    other.write_text(table.read_text().replace("5.png,blue|red", "5.png,red"))
    assert load_data(other, multi_label=True).train.fingerprint() != data.train.fingerprint()


def test_lists_in_parquet(table: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    columns = {"image": [row[0] for row in rows], "split": [row[2] for row in rows]}
    labels = [row[1].split("|") if row[1] else [] for row in rows]
    parquet.write_table(pyarrow.table({**columns, "label": labels}), table.with_suffix(".parquet"))
    found = load_data(table.with_suffix(".parquet"), multi_label=True)
    assert found.train.fingerprint() == load_data(table, multi_label=True).train.fingerprint()


def test_without_the_setting_a_cell_is_one_class_and_a_note_says_so(table: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 has no label"):
        load_data(table)
    filled = table.with_name("filled.csv")
    filled.write_text(table.read_text().replace(".png,,", ".png,none,"))
    data = load_data(filled)
    assert "blue|red" in data.train.class_names
    assert any("look like several labels of one image; --multi-label" in line for line in data.warnings)
    rare = filled.read_text().replace(".png,none,", ".png,none|rare,", 1).replace(",split", "")
    filled.write_text(re.sub(",(train|val)$", "", rare, flags=re.MULTILINE))
    with pytest.raises(
        DataError, match=r"is left for .*; .*none\|rare look like .* --multi-label takes them apart"
    ):
        load_data(filled)


def test_the_rows_of_an_image_are_joined(table: Path) -> None:
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    long = [",".join((image, label, split)) for image, labels, split in rows for label in labels.split("|")]
    other = table.with_name("long.csv")
    other.write_text("\n".join(["image,label,split", *long]))
    assert len(long) > len(rows)
    assert (
        load_data(other, multi_label=True).train.fingerprint()
        == load_data(table, multi_label=True).train.fingerprint()
    )
    image, label, split = rows[-1]
    other.write_text(
        "\n".join(["image,label,split", *long, f"{image},{label},{'val' if split == 'train' else 'train'}"])
    )
    with pytest.raises(DataError, match="has two different rows"):
        load_data(other, multi_label=True)


def test_validation_images_without_any_label_are_refused(table: Path) -> None:
    other = table.with_name("empty.csv")
    lines = table.read_text().splitlines()
    other.write_text("\n".join(f"{line.split(',')[0]},,val" if line.endswith(",val") else line for line in lines))
    with pytest.raises(DataError, match="no validation image of the classes blue, green, red"):
        load_data(other, multi_label=True)


def test_commas_between_labels_are_named(table: Path) -> None:
    other = table.with_name("commas.csv")
    other.write_text(table.read_text().replace("5.png,blue|red", '5.png,"blue, red"'))
    data = load_data(other, multi_label=True)
    assert any("blue, red look like several labels; the separator" in line for line in data.warnings)


def test_a_split_has_every_label_in_both_splits(table: Path) -> None:
    unsplit = table.with_name("unsplit.csv")
    unsplit.write_text("\n".join(line.rpartition(",")[0] for line in table.read_text().splitlines()))
    data = load_data(unsplit, multi_label=True, val_split=0.25)
    assert len(data.val) == 8
    assert all(data.val.class_counts.values())
    assert all(data.train.class_counts.values())


# ------------------------------------------------------------------------------------------ loss and metrics


def test_the_losses_are_binary() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = (torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    expected = functional.binary_cross_entropy_with_logits(logits, targets)
    plain = LabelLoss(multi_label=True)
    torch.testing.assert_close(plain(logits, targets, label_smoothing=0.0), expected)
    p = torch.where(targets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    focal = LabelLoss(kind="focal", multi_label=True, focal_gamma=1.5)
    torch.testing.assert_close(focal(logits, targets, label_smoothing=0.0), (-((1 - p) ** 1.5) * p.log()).mean())
    weighted = LabelLoss(multi_label=True, class_weights=torch.tensor([1.0, 0.0, 0.0]))
    first = functional.binary_cross_entropy_with_logits(logits[:, 0], targets[:, 0])
    torch.testing.assert_close(weighted(logits, targets, label_smoothing=0.0), first / 3)


def test_mixed_images_have_mixed_labels() -> None:
    task = Classification(COLOURS, label_loss=LabelLoss(multi_label=True), mixup_alpha=1.0)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8).clone()
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]])
    with seeded(0, 0, 0):
        mixed = task.mix({"images": images.clone(), "labels": labels})
    shares = mixed.images[:, 0, 0, 0]  # image i is i everywhere: x = lam * i + (1 - lam) * (3 - i)
    lam = float((3 - shares[0]) / 3)
    assert 0 < lam < 1
    torch.testing.assert_close(mixed.targets, lam * labels + (1 - lam) * labels.flip(0))


def test_metrics_against_their_definitions() -> None:
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    probabilities = np.array([[0.9, 0.2, 0.1], [0.3, 0.6, 0.2], [0.5, 0.4, 0.1], [0.1, 0.7, 0.6]], np.float32)
    metrics = multi_label_metrics(probabilities, targets, COLOURS)
    # blue has ranks 1 and 3: (1/1 + 2/3) / 2; green has ranks 2 and 3: (1/2 + 2/3) / 2; red has no image
    assert metrics["per_class"]["blue"]["ap"] == pytest.approx(100 * (1 + 2 / 3) / 2, abs=0.01)
    assert metrics["per_class"]["green"]["ap"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2, abs=0.01)
    assert metrics["per_class"]["red"] == {"ap": None, "precision": None, "recall": None, "f1": None, "support": 0}
    assert metrics["map"] == pytest.approx(100 * (5 / 6 + 7 / 12) / 2, abs=0.01)

    def f1(threshold: float) -> float:
        said = probabilities >= np.float32(threshold)
        both, either = (said * targets).sum(0)[:2], (said.sum(0) + targets.sum(0))[:2]
        return 100 * float((2 * both / either).mean())

    assert metrics["f1"] == pytest.approx(f1(metrics["threshold"]), abs=0.01)
    assert metrics["f1"] == pytest.approx(max(f1(t / 100) for t in range(1, 100)), abs=0.01)
    assert metrics["loss"] == pytest.approx(
        -np.where(targets > 0, np.log(probabilities), np.log(1 - probabilities)).mean()
    )


def test_of_equal_thresholds_the_middle_one_is_chosen() -> None:
    targets = np.array([[1, 0], [0, 1]], np.float32)
    assert multi_label_metrics(targets * 0.8 + 0.1, targets, ("a", "b"))["threshold"] == 0.5
    assert multi_label_metrics(targets * 0.1 + 0.1, targets, ("a", "b"))["threshold"] == 0.2
    kept = multi_label_metrics(targets * 0.1 + 0.1, targets, ("a", "b"), threshold=0.6)
    assert (kept["threshold"], kept["f1"], kept["map"]) == (0.6, 0.0, 100.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "balanced"}, "sampling is 'balanced'; expected shuffle, because multi_label is set"),
        ({"temperature_scaling": True}, "temperature_scaling is true; expected False, because multi_label"),
        ({"distillation.loss": "hard"}, "multi_label is true; expected false, because there is a teacher"),
    ],
)
def test_settings_that_need_one_label(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ClassificationRecipe.from_plain({"epochs": 1, "lr": 1e-3, "multi_label": True, **fields})
    assert message.lower() in str(error.value).lower()


def test_the_recipe_says_the_loss_that_is_used() -> None:
    fields: dict[str, Any] = {"epochs": 1, "lr": 1e-3, "multi_label": True}
    for given, said in (({}, "bce"), ({"loss": "cross_entropy"}, "bce"), ({"loss": "focal"}, "focal")):
        assert ClassificationRecipe.from_plain({**fields, **given}).to_plain()["loss"] == said
        assert ClassificationRecipe(**fields, **given).loss == said
    assert ClassificationRecipe.from_plain({"epochs": 1, "lr": 1e-3}).loss == "cross_entropy"


def test_a_run_that_stores_cross_entropy_goes_on(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions stored `cross_entropy`, and used the binary one."""
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())

    def train(**options: Any) -> TrainResult:
        return iformer.train(out=tmp_path / "run", device="cpu", tensorboard=False, **options)

    with monkeypatch.context() as patch, stopped_after(5):
        patch.setattr("iformer.tasks.classification.config._BINARY", {})
        fields = {"epochs": 2, "warmup_epochs": 0, "batch_size": 8, "size": 32, "workers": 0, "multi_label": True}
        train(data=table, model="iformer_tiny", weights="none", **fields)
    config = tmp_path / "run" / "config.yaml"
    assert "loss: cross_entropy" in config.read_text()
    assert train(resume=True).recipe.loss == "bce"


# --------------------------------------------------------------------------------------------------- the whole


def test_training_learns_and_reports(run: TrainResult) -> None:
    assert isinstance(run.evaluation, MultiLabelEvaluation)
    assert run.evaluation.map > 85
    assert run.history[-1]["train_loss"] < 0.55, "chance is log 2"
    assert run.best["map"] >= run.metrics["map"]
    text = run.paths.report.read_text()
    assert f"**mAP {run.metrics['map']:.2f} %**" in text
    assert "binary cross entropy" not in text.split("## Curves")[0]
    assert "onfusion" not in text
    metadata = iformer.load(run).metadata
    assert metadata.multi_label
    assert "loss: bce\n" in (run.folder / "config.yaml").read_text()
    assert metadata.threshold == run.metrics["threshold"]


def test_evaluation_agrees_with_training(run: TrainResult, table: Path) -> None:
    evaluation = iformer.evaluate(run, table)
    assert isinstance(evaluation, MultiLabelEvaluation)
    for name in ("map", "f1", "threshold", "loss", "images"):
        assert evaluation.metrics[name] == pytest.approx(run.metrics[name], abs=1e-4)
    train = iformer.evaluate(run, table, split="train")
    assert train.metrics["threshold"] == run.metrics["threshold"], "not the best one of these images"
    line = json.loads(evaluation.files()["predictions.jsonl"].splitlines()[0])
    assert line["labels"] == []  # 24.png
    assert set(line["probabilities"]) == set(COLOURS)


def test_predictions_have_every_label_above_the_threshold(run: TrainResult, table: Path, tmp_path: Path) -> None:
    photographs = [table.with_name("31.png"), table.with_name("24.png")]
    for prediction in iformer.predict(run, photographs, out=tmp_path, device="cpu"):
        threshold = run.metrics["threshold"]
        expected = {answer.name for answer in prediction.answers if answer.score >= threshold}
        assert set(prediction.labels or ()) == expected
        assert prediction.words == (", ".join(prediction.record["labels"]) or "no label")
    assert (tmp_path / "predict.png").is_file()
    whole = [set(answer.labels or ()) for answer in iformer.predict(run, table.parent, device="cpu")]
    short = list(iformer.predict(run, table.parent, top_k=1, device="cpu"))
    assert max(map(len, whole)) > 1
    assert [set(answer.labels or ()) for answer in short] == whole
    assert all({each.name for each in answer.answers} >= set(answer.labels or ()) for answer in short)
    assert {len(answer.answers) for answer in short} == {max(1, len(labels)) for labels in whole}
    one_label = next(iformer.predict(labelled_classifier(), [table.with_name("31.png")]))
    assert one_label.labels is None


@pytest.mark.sweep
def test_an_artifact_says_sigmoid_and_threshold(run: TrainResult, table: Path, tmp_path: Path) -> None:
    artifact = iformer.export(run, to="onnx", out=tmp_path / "net.onnx")
    info = read_record(artifact.path)
    assert info.multi_label
    assert info.postprocess == {"activation": "sigmoid", "threshold": run.metrics["threshold"]}
    assert info.parity is not None
    assert info.parity["label_agreement"] == 1
    here = next(iformer.predict(run, table.with_name("31.png"), device="cpu"))
    there = next(iformer.predict(artifact, table.with_name("31.png")))
    assert there.labels == here.labels
    assert there.score == pytest.approx(here.score, abs=1e-4)
    measured = iformer.evaluate(artifact, table)
    assert measured.metrics["map"] == pytest.approx(run.metrics["map"], abs=0.01)


def test_labels_near_the_threshold_may_differ_in_an_artifact() -> None:
    model = labelled_classifier()
    model.metadata = Metadata(class_names=model.metadata.class_names, multi_label=True, metrics={"threshold": 0.2})
    exportable = ExportableClassifier(model)
    assert exportable.class_logits is None, "Core ML would answer with one class"
    limit = math.log(0.2 / 0.8)
    expected = torch.tensor([[limit + 0.001, limit + 2, limit - 8]])
    near = torch.tensor([[limit - 0.001, limit + 2, limit - 8]])
    far = torch.tensor([[limit + 0.001, limit - 1, limit - 8]])
    assert not exportable.agreement({"logits": expected}, {"logits": near}, tolerance=0.01).failures
    (failure,) = exportable.agreement({"logits": expected}, {"logits": far}, tolerance=0.01).failures
    assert failure == "yes and no agree for 50.0% of 2 clear labels"


def test_the_sheet_of_mistakes_shows_missed_and_wrong_labels(run: TrainResult, tmp_path: Path) -> None:
    evaluation = run.evaluation
    assert isinstance(evaluation, MultiLabelEvaluation)
    wrong = np.abs(1 - evaluation.probabilities)  # every answer inverted
    inverted = MultiLabelEvaluation(
        image_set=evaluation.image_set,
        indices=evaluation.indices,
        targets=evaluation.targets,
        probabilities=wrong,
        metrics={**evaluation.metrics, "threshold": 0.5},
    )
    mistakes = worst_labels(inverted)
    for mistake in mistakes:
        labels, _ = inverted.names_at([str(s) for s in evaluation.image_set.samples].index(str(mistake.sample)))
        assert all(name in labels and share < 0.5 for name, share in mistake.true)
        assert all(name not in labels and share >= 0.5 for name, share in mistake.wrong)
    assert draw_mistakes(mistakes, tmp_path / "mistakes.png")
