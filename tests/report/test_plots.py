"""Plots keep inside their frames whatever the numbers, and say which rows they leave out."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from mlflow_lipschitz.report.drawing import Axis, Plot
from mlflow_lipschitz.report.insight import RadiusCurve, Sensitivity
from mlflow_lipschitz.report.plots import (
    MOST_BARS,
    Rows,
    interval_plot,
    picture,
    radius_plot,
    response_plot,
    sensitivity_plot,
    thinned,
)
from tests.report.samples import insight

BAD = [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0]


def rows(lower: list[float], upper: list[float], statuses: list[str] | None = None) -> Rows:
    ids = [str(i) for i in range(len(lower))]
    return Rows(ids, statuses or ["certified"] * len(lower), np.array(lower), np.array(upper))


def numbers_of(plot: Plot) -> list[float]:
    """Every coordinate in the plot."""
    held = [v for mark in plot.marks for k, v in mark.attributes.items() if k not in ("text-anchor", "style")]
    assert not any(re.search("nan|inf", text, re.IGNORECASE) for text in held)
    return [float(number) for text in held for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def bars(plot: Plot) -> list[tuple[float, float]]:
    marks = [mark for mark in plot.marks if mark.kind.startswith("bar ") and mark.title]
    return [(float(mark.attributes["y1"]), float(mark.attributes["y2"])) for mark in marks]


def test_bars_are_in_order_and_inside_the_frame() -> None:
    plot = interval_plot(rows([1.0, -np.inf, 0.5], [3.0, np.inf, 1.0]), label="bound", limit=2.0)
    tops = [top for _, top in bars(plot)]
    assert tops[0] > tops[1] >= tops[2]  # SVG grows downwards; the infinite bar ends at the frame
    assert all(0 <= number <= plot.height for bar in bars(plot) for number in bar)
    assert any("▲" in mark.text or mark.kind.startswith("head") for mark in plot.marks)


@pytest.mark.parametrize("lower", BAD)
@pytest.mark.parametrize("upper", BAD)
def test_no_number_breaks_a_plot(lower: float, upper: float) -> None:
    for other in ([], [1.0], [1.0, 2.0]):
        drawn = interval_plot(rows([lower, *other], [upper, *other]), label="x", limit=upper)
        assert all(-1 <= number <= 1000 for number in numbers_of(drawn))
        assert len(bars(drawn)) == 1 + len(other)


@pytest.mark.parametrize("value", BAD)
def test_nor_one_of_the_other_plots(value: float) -> None:
    found = insight(5, "age", value)
    curve = RadiusCurve(np.array([0.0, value]), np.array([1.0, value]), None, None, "")
    plots = [
        response_plot(next(iter(found.responses.values()))),  # type: ignore[union-attr]
        sensitivity_plot(found.sensitivities),  # type: ignore[arg-type]
        radius_plot(curve, asked=[value]),
        picture(np.array([[value, 1.0], [0.0, 2.0]]), (0.0, 2.0), "picture"),
    ]
    for plot in plots:
        assert all(-10 <= number <= 1000 for number in numbers_of(plot)), plot.label


@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [np.inf, np.inf]])
def test_plots_of_degenerate_data(values: list[float]) -> None:
    assert len(bars(interval_plot(rows(values, values), label="x"))) == len(values)


def test_status_shows_without_color() -> None:
    drawn = interval_plot(rows([1.0, 1.0], [2.0, 2.0], ["violated", "undecided"]), label="x")
    kinds = [mark.kind for mark in drawn.marks]
    tags = {mark.tag for mark in drawn.marks if mark.kind.startswith("sign")}
    assert "sign violated" in kinds
    assert "sign undecided" in kinds
    assert tags == {"path", "circle"}  # crosses and rings


def test_few_rows_are_all_drawn() -> None:
    kept, told = thinned(rows([0.0] * 5, [3.0, 1.0, 2.0, 5.0, 4.0]))
    assert kept.tolist() == [1, 2, 0, 4, 3]
    assert told == "all 5 rows, sorted"


def test_of_many_rows_the_worst_stay_and_the_count_is_told() -> None:
    rng = np.random.default_rng(0)
    upper = rng.lognormal(size=5000)
    statuses = ["certified"] * 5000
    statuses[int(np.argmin(upper))] = "violated"
    many = rows([0.0] * 5000, upper.tolist(), statuses)
    kept, told = thinned(many)
    assert len(kept) == MOST_BARS
    assert told == "240 of 5,000 rows, sorted: the 60 worst, and evenly spaced ones of the others"
    assert int(np.argmin(upper)) in kept
    assert set(np.argsort(-upper)[:50]) <= set(kept.tolist())
    assert (np.diff(upper[kept]) >= 0).all()
    # Evenly spaced by rank: the drawn rows look like all of them.
    assert abs(np.median(upper[kept][:180]) - np.median(upper)) < 0.2
    assert len(bars(interval_plot(many, label="x"))) == MOST_BARS


def test_bounds_of_very_different_sizes_are_drawn_on_a_logarithmic_axis() -> None:
    drawn = interval_plot(rows([0.5, 0.5, 0.5], [1.0, 1.0, 1000.0]), label="x")
    assert any("logarithmic" in mark.text for mark in drawn.marks)
    signed = interval_plot(rows([-1.0, 0.5, 0.5], [1.0, 1.0, 1000.0]), label="x")
    assert not any("logarithmic" in mark.text for mark in signed.marks)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-3.0, 250.0), (1e-9, 2e-9), (-1e300, 1e300)])
def test_ticks_are_round_and_inside(ends: tuple[float, float]) -> None:
    axis = Axis.over(np.array(ends), (100.0, 0.0))
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(ends[0] <= tick <= ends[1] * (1 + 1e-9) for tick in ticks)
    assert [axis.at(end) for end in ends] == pytest.approx([100.0, 0.0])


def test_a_feature_that_does_not_move_has_no_bar() -> None:
    drawn = sensitivity_plot([Sensitivity("a", 2.0, 1.0, 0.5), Sensitivity("b", 9.0, 1.0, 0.0)])
    assert [mark.text for mark in drawn.marks if mark.kind == "name"] == ["a"]


def test_thousands_of_rows_are_as_many_marks_as_a_hundred() -> None:
    response = next(iter(insight(3).responses.values()))  # type: ignore[union-attr]
    many = replace(response, at=np.linspace(0, 1, 5000), state=np.arange(5000) % 3)
    assert len(response_plot(many).marks) < 400
