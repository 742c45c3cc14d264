"""The table of a recipe's fields, the source of the help and the docs."""

from __future__ import annotations

import json

import pytest

from iformer.config.detector import DetectorConfig
from iformer.config.network import NetworkConfig
from iformer.config.reference import recipe_fields
from iformer.tasks.classification.config import ClassificationRecipe
from iformer.tasks.registry import TASKS, TaskRow


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_field_of_a_recipe_is_documented(task: TaskRow) -> None:
    rows = recipe_fields(task.recipe_class)
    assert [row.name for row in rows if not row.doc] == []
    assert [row.name for row in rows if not row.doc.endswith((".", ")"))] == []
    plain = task.recipe_class.from_plain({"epochs": 1, "lr": 1.0}).to_plain()
    for row in rows:
        section, _, name = row.name.rpartition(".")
        value = (plain[section] if section else plain)[name]
        assert row.name in ("epochs", "lr") or json.loads(row.default) == value


def test_rows_say_type_default_and_range() -> None:
    rows = {row.name: row for row in recipe_fields(ClassificationRecipe)}
    assert (rows["lr"].type, rows["lr"].default) == ("float", "")
    assert rows["lr"].allowed == "a number above 0, to 1000"
    assert rows["lr"].summary.startswith("Peak learning rate")
    hflip = rows["augment.hflip"]
    assert (hflip.type, hflip.default, hflip.allowed) == ("float", "0.5", "a number from 0 to 1")
    assert rows["clip_grad"].type == "float | null"
    assert rows["workers"].allowed == "'auto' or a whole number from 0 to 1024"
    assert rows["optimizer"].allowed == "one of 'adamw', 'muon'"
    assert rows["drop_path_rate"].allowed == "a number from 0 to below 1"
    assert rows["augment.scale"].allowed == "null or 2 values, each a number from 0 to 1"
    assert rows["milestones"].allowed == "any number of values, each a whole number from 1 to 1000000"


def test_every_number_of_a_recipe_is_bounded() -> None:
    for task in TASKS.values():
        for row in recipe_fields(task.recipe_class):
            assert "number" not in row.allowed or " to " in row.allowed or "below" in row.allowed, row.name


def test_other_configs_have_a_table_too() -> None:
    rows = {row.name: row for row in recipe_fields(NetworkConfig)}
    assert rows["stem_kernel_size"].allowed == "an odd whole number from 1 to 63"
    names = [row.name for row in recipe_fields(DetectorConfig)]
    assert "backbone.name" in names
    assert "fpn_channels" in names
