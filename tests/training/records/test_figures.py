"""The figures of a run."""

from __future__ import annotations

import pytest

from iformer.training.records.figures import _rate_format


@pytest.mark.parametrize(
    ("largest", "values", "texts"),
    [
        (0.0012, [0.0, 0.0002, 0.001], ["0", "0.0002", "0.001"]),
        (1.2e-4, [0.0, 8e-5, 1.2e-4], ["0", "0.8e-4", "1.2e-4"]),
        (0.0, [0.0], ["0"]),
    ],
)
def test_learning_rates_of_an_axis_have_one_exponent(
    largest: float, values: list[float], texts: list[str]
) -> None:
    assert [_rate_format(largest)(value, 0) for value in values] == texts
