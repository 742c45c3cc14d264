"""Recipes: the shipped ones load, overrides work, and every invalid field is named."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import iformer_paper as paper
from iformer.config.augmentation import AugmentConfig
from iformer.config.recipe_files import list_recipes, parse_override
from iformer.errors import ConfigError, UnknownNameError
from iformer.tasks.classification.config import ClassificationRecipe, DistillationConfig
from iformer.tasks.detection.config import DetectionRecipe
from iformer.tasks.registry import TASKS, TaskRow, load_recipe

PRINTED_TRAINING = Path(paper.__file__).parent / "data" / "table_09_training.csv"
SECTIONS = ClassificationRecipe.sections()
FIELDS = [
    *(field.name for field in dataclasses.fields(ClassificationRecipe) if field.name not in SECTIONS),
    *(f"{section}.{name}" for section, names in SECTIONS.items() for name in names),
]

INVALID: dict[str, list[Any]] = {
    "task": ["detect", "pose", None],
    "epochs": [0, -1, 1.5, "many", 10**26],
    "entry": [""],
    "batch_size": [0, True, 10**11],
    "grad_accum": [0, 3],
    "optimizer": ["sgd", None],
    "lr": [0, -1.0, float("nan"), float("inf")],
    "lr_batch": [0],
    "min_lr": [-1e-9, 1.0],
    "max_steps": [0, 1.5],
    "schedule": ["linear"],
    "poly_power": [0],
    "milestones": [[3], [0], 3],
    "step_decay": [0, 1],
    "warmup_epochs": [-1, "long"],
    "warmup_steps": [-1],
    "warmup_lr": [-1e-9, 1.0],
    "weight_decay": [-0.1],
    "betas": [[0.9], [0.9, 1.0], 0.9],
    "eps": [0],
    "clip_grad": [0, -1.0],
    "ema_decay": [0, 1, 1.5],
    "drop_path_rate": [-0.1, 1.0],
    "attention": ["windows"],
    "windows": ["printed", "paper"],
    "weights": ["", 3],
    "layer_decay": [0, 1.1, -0.5, 1e-300],
    "head_lr": [0, -1.0],
    "patience": [0, 1.5],
    "multi_label": [None, 1],
    "freeze": ["head", True],
    "loss": ["hinge", None],
    "focal_gamma": [-1, "high"],
    "class_weights": ["inverse", {"cat": 0}, {"cat": "much"}, [1.0, 2.0]],
    "sampling": ["random"],
    "test_flip": [1, "yes"],
    "temperature_scaling": [2.0],
    "size": [31, 0, 224.5],
    "size_schedule": [[[5, 128], [5, 224]], [[0, 16]], [[-1, 64]], [[0, 300]], [[10, 128]], [[0]], 128],
    "crop_pct": [0, 1.1],
    "value_range": [[5, 5], [4095, 0], [0], 4095, [0, float("nan")], [0, 1e12]],
    "augment.scale": [[0.0, 1.0], [0.9, 0.8], [0.5]],
    "augment.ratio": [[0, 1], [2, 1]],
    "augment.interpolation": ["nearest"],
    "augment.hflip": [-0.1, 1.1],
    "augment.vflip": [2],
    "augment.rot90": ["yes", 1],
    "augment.rand_augment": ["strong", 9],
    "augment.color_jitter": [-0.1, 1.5],
    "augment.random_erasing": [1.5],
    "augment.mixup_alpha": [-1],
    "augment.cutmix_alpha": [-1],
    "augment.mixup_prob": [1.5],
    "augment.mixup_switch_prob": [-0.5],
    "in_chans": [0, 5, 1.5],
    "label_smoothing": [1.0, -0.1],
    "distillation.loss": ["medium", True],
    "distillation.teacher": ["", 3],
    "distillation.teacher_entry": ["", 3],
    "distillation.weight": [-0.1, 1.1],
    "distillation.temperature": [0, -1.0],
    "precision": ["fp8", None],
    "channels_last": [1],
    "compile": ["yes", 2],
    "cuda_graphs": ["auto", 1],
    "sync_batch_norm": [1],
    "parallel": ["pipeline"],
    "seed": [-1, 2**32, 0.5],
    "workers": [-1, "some"],
    "cache": ["disk"],
    "eval_every": [0],
    "eval_batch_size": [0],
    "checkpoint_minutes": [0, float("inf")],
    "checkpoint_steps": [0],
    "log_every": [0],
}


def recipe(**fields: Any) -> ClassificationRecipe:
    return ClassificationRecipe.from_plain({"epochs": 10, "lr": 1e-3, **fields})


def test_every_field_has_an_invalid_value_to_test() -> None:
    assert sorted(INVALID) == sorted(FIELDS)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in INVALID.items() for value in values]
)
def test_invalid_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^recipe\.{re.escape(field)} is ") as caught:
        recipe(**{field: value})
    assert "\n" not in str(caught.value)


@given(
    field=st.sampled_from(FIELDS),
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([1])),
)
def test_any_value_makes_a_recipe_or_an_error_that_names_the_field(field: str, value: Any) -> None:
    try:
        built = recipe(**{field: value})
    except ConfigError as error:
        message = str(error)
    else:
        assert ClassificationRecipe.from_plain(built.to_plain()) == built
        return
    # a value can also make another field invalid: a rate below min_lr
    assert field in message or "min_lr" in message


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipe_loads_and_survives_yaml(name: str) -> None:
    loaded = load_recipe(name)
    assert type(loaded).from_plain(yaml.safe_load(yaml.safe_dump(loaded.to_plain()))) == loaded


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipe_says_its_command_and_hardware(name: str) -> None:
    text = (Path(list_recipes.__code__.co_filename).parent / "recipes" / f"{name}.yaml").read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert "command:" in header
    assert "hardware:" in header


@pytest.mark.parametrize(
    "task", [task for task in TASKS.values() if task.verb == "train"], ids=lambda task: task.name
)
def test_default_recipe_fine_tunes_released_weights(task: TaskRow) -> None:
    recipe = load_recipe(task.default_recipe)
    assert recipe.weights == "pretrained"
    assert recipe.task == task.name
    assert type(recipe) is task.recipe_class


def test_overrides_replace_fields() -> None:
    assert load_recipe("elpv", {"epochs": 50, "lr": "1e-3"}).lr == 1e-3


def test_mistyped_names_get_suggestions(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no field 'learning_rat'|no field 'batchsize'; did you mean batch_size"
    ):
        load_recipe("elpv", {"batchsize": 3})
    with pytest.raises(UnknownNameError, match="did you mean elpv"):
        load_recipe("elvp")
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "missing.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "epochs: [", "3", ""])
def test_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_recipe(file)


@pytest.mark.parametrize(
    "text", ["lr: 0.1\n", "epochs: 1\nlr: high\n", "epochs: 1\nlr: 0.1\nsizes: 3\n", "task: cook\n"]
)
def test_an_error_of_a_file_names_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    for overrides in ({}, {"seed": 1}):
        with pytest.raises(
            ConfigError, match=r"own\.yaml: (recipe needs epochs|recipe\.lr is|a recipe for|unknown task)"
        ):
            load_recipe(file, overrides)
    file.write_text("epochs: 1\nlr: 0.1\n")
    with pytest.raises(ConfigError, match=r"^recipe\.lr is 'high'"):
        load_recipe(file, {"lr": "high"})


def test_own_recipe_file(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("epochs: 3\nlr: 1e-3\nbetas: [0.9, 99e-2]\n")
    assert load_recipe(file) == ClassificationRecipe(epochs=3, lr=1e-3, betas=(0.9, 0.99))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("epochs=3", ("epochs", 3)),
        ("scale=[0.5, 1]", ("scale", [0.5, 1])),
        ("rand_augment=null", ("rand_augment", None)),
        (" cache =ram", ("cache", "ram")),
        ("weights=a=b", ("weights", "a=b")),
    ],
)
def test_override_text(text: str, parsed: tuple[str, Any]) -> None:
    assert parse_override(text) == parsed


@pytest.mark.parametrize("text", ["epochs", "=3", "scale=[1"])
def test_override_text_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


def test_learning_rate_scales_with_the_batch() -> None:
    assert recipe(lr=4e-3, lr_batch=4096, batch_size=1024).peak_lr == pytest.approx(1e-3)


def test_training_size_follows_the_schedule() -> None:
    progressive = recipe(size_schedule=[[2, 128], [6, 160]])
    assert [progressive.train_size(epoch) for epoch in (0, 1, 2, 5, 6, 9)] == [224, 224, 128, 128, 160, 160]


def test_mixing_needs_pairs() -> None:
    with pytest.raises(ConfigError, match="batch_size is 9"):
        recipe(batch_size=9, mixup_alpha=0.2)
    assert recipe(batch_size=9).batch_size == 9


@pytest.mark.parametrize(
    "fields",
    [
        {"vflip": 0.25, "rot90": True, "scale": None},
        {"augment.vflip": 0.25, "augment.rot90": True, "augment.scale": None},
        {"augment": {"vflip": 0.25, "rot90": True, "scale": None}},
        {"augment": {"vflip": 0.25}, "augment.rot90": True, "scale": None},
    ],
)
def test_a_field_of_a_section_has_three_spellings(fields: dict[str, Any]) -> None:
    assert recipe(**fields).augment == AugmentConfig(vflip=0.25, rot90=True, scale=None)


def test_a_field_given_in_two_spellings_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"recipe has augment\.hflip twice; keep one"):
        recipe(augment={"hflip": 0.1}, hflip=0.2)


def test_overrides_change_only_their_fields_of_a_section() -> None:
    changed = load_recipe("elpv", {"augment": {"hflip": 0.25}, "vflip": 0.0})
    assert changed.to_plain()["augment"]["scale"] == [0.85, 1.0]
    assert (changed.to_plain()["augment"]["hflip"], changed.to_plain()["augment"]["vflip"]) == (0.25, 0.0)


def test_flat_recipes_of_earlier_versions_load() -> None:
    """Every field whose place or name has changed."""
    flat = {
        "scale": [0.2, 0.9],
        "ratio": [0.5, 2.0],
        "interpolation": "random",
        "hflip": 0.1,
        "vflip": 0.2,
        "rot90": True,
        "rand_augment": "rand-m5",
        "color_jitter": 0.1,
        "random_erasing": 0.2,
        "mixup_alpha": 0.3,
        "cutmix_alpha": 0.4,
        "mixup_prob": 0.6,
        "mixup_switch_prob": 0.7,
        "distillation": "soft",
        "teacher": "x",
        "distillation_weight": 0.25,
        "distillation_temperature": 2.0,
    }
    old = recipe(**flat)
    assert old.augment.to_plain() == {name: flat[name] for name in old.augment.to_plain()}
    assert old.distillation == DistillationConfig(loss="soft", teacher="x", weight=0.25, temperature=2.0)
    distillation = old.distillation.to_plain()
    assert distillation.pop("teacher_entry") is None  # earlier versions had no such field
    assert ClassificationRecipe.nested(flat) == {"augment": old.augment.to_plain(), "distillation": distillation}
    detection = {"masks": False, "rois": 64, "hflip": 0.1, "mixup_alpha": 0.0, "cache": "none", "teacher": "t"}
    with pytest.raises(ConfigError, match="a recipe for detect has no field 'teacher'"):
        DetectionRecipe.from_plain({"epochs": 1, "lr": 1e-3, **detection})
    del detection["teacher"]
    loaded = DetectionRecipe.from_plain({"epochs": 1, "lr": 1e-3, **detection})
    assert (loaded.detector.masks, loaded.detector.rois, loaded.augment.hflip) == (False, 64, 0.1)


def test_preprocessing_is_the_evaluation_size() -> None:
    preprocessing = recipe(size=160, crop_pct=0.9, size_schedule=[[0, 96]], interpolation="random").preprocessing
    assert preprocessing.size == (160, 160)
    assert preprocessing.crop_pct == 0.9
    assert preprocessing.interpolation == "bicubic"


IMAGENET = ("imagenet-300", "imagenet-300-distilled", "imagenet-450-distilled", "imagenet-300-h")


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_recipes_are_table_9(name: str) -> None:
    """Against the paper's table as it is shipped; columns T/S/M/L and H."""
    heavy = name == "imagenet-300-h"
    model = "iformer_h" if heavy else "iformer_m"
    column = "H" if heavy else "M"
    printed = {
        row["setting"]: row["value"]
        for row in csv.DictReader(PRINTED_TRAINING.read_text().splitlines())
        if column in row["variants"].split("/")
    }
    loaded = load_recipe(name, model=model)
    assert isinstance(loaded, ClassificationRecipe)
    assert loaded.size == int(printed["resolution"])
    assert loaded.lr == loaded.peak_lr == float(printed["base_learning_rate"])
    assert loaded.weight_decay == float(printed["weight_decay"])
    assert loaded.betas == (float(printed["optimizer_beta1"]), float(printed["optimizer_beta2"]))
    assert loaded.batch_size == loaded.lr_batch == int(printed["batch_size"])
    assert loaded.epochs == (450 if name == "imagenet-450-distilled" else int(printed["training_epochs"]))
    assert loaded.warmup_epochs == float(printed["warmup_epochs"])
    assert loaded.augment.rand_augment == "rand-m9-mstd0.5-inc1"
    assert printed["randaugment"] == "(9, 0.5)"
    assert loaded.augment.mixup_alpha == float(printed["mixup"])
    assert loaded.augment.cutmix_alpha == float(printed["cutmix"])
    assert loaded.augment.random_erasing == float(printed["random_erasing"])
    assert loaded.label_smoothing == float(printed["label_smoothing"])
    assert loaded.drop_path_rate == float(printed["stochastic_depth"])
    assert printed["gradient_clip"] == printed["ema"] == "None"
    assert loaded.clip_grad is None
    assert loaded.ema_decay is None


def test_stochastic_depth_of_table_9_depends_on_the_network() -> None:
    rates = {
        model: load_recipe("imagenet-300", model=model).drop_path_rate
        for model in ("iformer_t", "iformer_s", "iformer_m", "iformer_l", "iformer_l_distilled", None)
    }
    assert list(rates.values()) == [0.0, 0.0, 0.0, 0.1, 0.1, 0.0]
    assert load_recipe("imagenet-300", {"drop_path_rate": 0.3}, model="iformer_l").drop_path_rate == 0.3
    assert load_recipe("imagenet-300-h", model="iformer_h").drop_path_rate == 0.6


@pytest.mark.parametrize("name", [name for name in IMAGENET if "distilled" in name])
def test_distilled_recipes_have_deit_s_hard_loss(name: str) -> None:
    loaded = load_recipe(name)
    assert isinstance(loaded, ClassificationRecipe)
    assert (loaded.distillation.loss, loaded.distillation.weight) == ("hard", 0.5)
    assert loaded.distillation.teacher == "regnety_160.deit_in1k"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("by_model: [1]", "by_model is .*; expected a mapping of networks to fields"),
        ("by_model: {iformer_l: 3}", "by_model is .*; expected a mapping of networks to fields"),
        ("by_model: {iformer_l: {drop_path: 0.1}}", "no field 'drop_path'; did you mean drop_path_rate"),
    ],
)
def test_fields_by_model_are_checked_for_every_model(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"epochs: 3\nlr: 1e-3\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(file, model="iformer_t")
