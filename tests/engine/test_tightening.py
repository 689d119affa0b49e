"""Planes to choose from and ranges with slopes of their own: every choice encloses, and no range grows."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.rules.curve_enclosure import curve_relaxation
from mlflow_lipschitz.engine.rules.curve_family import CurveFamily
from mlflow_lipschitz.engine.rules.curves.table import facts_of
from mlflow_lipschitz.engine.rules.product import McCormick
from mlflow_lipschitz.engine.search.parts import Rows
from mlflow_lipschitz.engine.search.tightening import Pass, tightened
from tests.engine.test_curves import ROWS, ends, interval, meanings, probes, widths
from tests.properties import oracle_error
from tests.searching import CURVES, inside, network, read_twice, regions, rows_of

seeds = st.integers(0, 10**6)
weights = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
FAMILIES = [(name, parameters) for name, parameters in ROWS if facts_of(name, parameters).bend is None]
rows = pytest.mark.parametrize(("name", "parameters"), FAMILIES)


def number(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def check_lines(name: str, parameters: tuple[float, ...], z: tuple[float, float], chosen: tuple[float, float]) -> None:
    facts = facts_of(name, parameters)
    got = CurveFamily.of(facts, interval(*z)).at((number(chosen[0]), number(chosen[1])))
    slopes = [mpmath.mpf(float(s)) for s in (got.lower_slopes[0], got.upper_slopes[0])]
    offsets = [float(got.lower_offset), float(got.upper_offset)]
    for probe in probes(*z, facts):
        for value in meanings(name, parameters, probe):
            error = oracle_error(value)
            if math.isfinite(offsets[0]):
                assert slopes[0] * mpmath.mpf(probe) + offsets[0] <= value + error, (probe, z, chosen)
            if math.isfinite(offsets[1]):
                assert value - error <= slopes[1] * mpmath.mpf(probe) + offsets[1], (probe, z, chosen)


@rows
@given(a=ends, b=ends, above=weights, below=weights)
def test_every_choice_of_lines_encloses_the_curve(
    name: str, parameters: tuple[float, ...], a: float, b: float, above: float, below: float
) -> None:
    check_lines(name, parameters, (min(a, b), max(a, b)), (above, below))


@rows
@given(a=st.floats(1e-6, 8), width=widths, above=weights, below=weights)
def test_so_it_does_in_the_domain(
    name: str, parameters: tuple[float, ...], a: float, width: float, above: float, below: float
) -> None:
    check_lines(name, parameters, (a, a + width), (above, below))


@pytest.mark.parametrize("curve", CURVES, ids=[name for name, _ in CURVES])
@given(a=st.floats(-3, 3), width=st.floats(0.01, 4), weight=st.floats(0.01, 0.99))
def test_the_offset_moves_with_the_weight_as_its_gradient_says(
    curve: Any, a: float, width: float, weight: float
) -> None:
    """The line through z* turns around it: height at z* is stationary, whatever the slope."""
    family = CurveFamily.of(facts_of(*curve), interval(a, a + width))
    leaf = number(weight).requires_grad_()
    with torch.enable_grad():
        line = family.at((leaf, number(0.5)))
        (offset,) = torch.autograd.grad(line.upper_offset.sum(), leaf, retain_graph=True)
        (slope,) = torch.autograd.grad(line.upper_slopes[0].sum(), leaf)
    if float(slope) != 0:
        at = -float(offset / slope)
        assert a * (1 + 1e-12) - 1e-9 <= at <= (a + width) * (1 + 1e-12) + 1e-9


def test_the_usual_lines_are_where_a_family_starts() -> None:
    for name, parameters in CURVES:
        facts, z = facts_of(name, parameters), interval(-0.75, 1.5)
        usual, family = curve_relaxation(facts, z), CurveFamily.of(facts, z)
        got = family.at(family.start)
        np.testing.assert_allclose(got.upper_slopes[0], usual.upper_slopes[0], rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(got.lower_slopes[0], usual.lower_slopes[0], rtol=1e-9, err_msg=name)


sides = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e150, 0.1]), st.floats(-4, 4))


@given(x=st.tuples(sides, sides), y=st.tuples(sides, sides), above=weights, below=weights, same=st.booleans())
def test_every_mixture_of_planes_encloses_the_product(x: Any, y: Any, above: float, below: float, same: bool) -> None:
    x, y = sorted(x), sorted(y)
    family = McCormick(interval(*x), interval(*y))
    first = number(above)
    got = family.at((first, first if same else number(below)))
    low, high = (
        [Fraction(float(v)) for v in (*slopes, offset)]
        for slopes, offset in ((got.lower_slopes, got.lower_offset), (got.upper_slopes, got.upper_offset))
    )
    # A product less a plane is largest and smallest at corners of the box.
    for a, b in itertools.product(map(Fraction, x), map(Fraction, y)):
        assert low[0] * a + low[1] * b + low[2] <= a * b <= high[0] * a + high[1] * b + high[2]


def everywhere(asked: Rows, effort: Pass) -> list[Interval]:
    ranges = list(asked.ranges)
    every = torch.ones(len(asked.coeffs), dtype=torch.bool)
    for objective in (False, True):
        ranges = tightened(asked.problem, ranges, effort, only=every, objective=objective)
    return ranges


def check_ranges(graph: Any, seed: int, radius: float) -> None:
    points = np.random.default_rng(seed).integers(-12, 13, (2, *graph.input_shape)) / 8
    region = list(regions(points, radius))[seed % 4]
    asked = rows_of(graph, region)
    with torch.no_grad():
        got = everywhere(asked, Pass(3, 0.25, 0.9, 16, math.inf))
        for before, after in zip(asked.ranges, got, strict=True):
            assert bool((after.lower >= before.lower).all() and (after.upper <= before.upper).all())
        for x in inside(asked.problem.region, seed, 6):
            at = bound_nodes(asked.problem.with_region(type(asked.problem.region.box)(x, x)), None)
            for index, (range_, node) in enumerate(zip(got, at, strict=True)):
                # Where a value is set-valued, some element of the set lies in the range; else the value does.
                apart = (node.interval.upper < range_.lower) | (node.interval.lower > range_.upper)
                assert not bool(apart.any()), (index, x)


@pytest.mark.parametrize("curve", CURVES, ids=[name for name, _ in CURVES])
@given(seed=seeds, radius=st.sampled_from([0.0, 0.125, 1.0]), coarsely=st.booleans())
def test_tightened_ranges_contain_what_they_contained(curve: Any, seed: int, radius: float, coarsely: bool) -> None:
    check_ranges(network(seed, curve, coarsely=coarsely), seed, radius)


@given(seed=seeds, radius=st.sampled_from([0.0, 0.125, 1.0]))
def test_so_do_ranges_of_values_that_several_curves_read(seed: int, radius: float) -> None:
    check_ranges(read_twice(seed), seed, radius)


def test_some_range_gets_narrower_and_none_after_the_deadline() -> None:
    graph = network(15, coarsely=False)
    asked = rows_of(graph, next(regions(np.zeros((1, *graph.input_shape)), 2.0)))

    def width(ranges: list[Interval]) -> float:
        return float(sum((x.upper - x.lower).sum() for x in ranges))

    with torch.no_grad():
        before = width(list(asked.ranges))
        assert width(everywhere(asked, Pass(10, 0.25, 0.9, 16, math.inf))) < before
        assert width(everywhere(asked, Pass(10, 0.25, 0.9, 16, -math.inf))) == before
        nobody = torch.zeros(len(asked.coeffs), dtype=torch.bool)
        spared = tightened(asked.problem, asked.ranges, Pass(10, 0.25, 0.9, 16, math.inf), only=nobody, objective=False)
        assert width(spared) == before
