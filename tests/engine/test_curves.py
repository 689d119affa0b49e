"""Every row of curve facts: what it claims is so, and intervals and lines enclose the curve."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.rules.curve_enclosure import curve_interval, curve_relaxation, is_affine_on
from mlflow_lipschitz.engine.rules.curves.facts import CurveFacts
from mlflow_lipschitz.engine.rules.curves.table import CURVES, facts_of
from tests.exact_curves import CURVES as MEANING
from tests.properties import at_least, at_most, oracle_error

PARAMETERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "leaky_relu": ((0.01,), (0.1,), (-0.3,), (1.7,), (1e-50,)),
    "step": ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.25)),
    "clip": ((0.0, 6.0), (-1.0, 1.0), (0.5, 0.5), (-0.1, 0.3)),
    "window": ((0.0, 6.0), (-1.0, 1.0), (-0.1, 0.3)),
    "elu": ((1.0, 1.0), (0.3, 1.0), (2.5, 1.0), (1.6732632, 1.0507010), (-0.5, 1.0)),
    "delu": ((1.0, 1.0), (0.3, 1.0), (2.5, 1.0), (1.6732632, 1.0507010), (-0.5, 1.0)),
    "celu": ((1.0,), (0.1,), (3.0,)),
    "dcelu": ((1.0,), (0.1,), (3.0,)),
    "power": (
        *((1.0, 2.0), (1.0, 3.0), (-2.0, 3.0), (0.5, 4.0), (3.0, 1.0), (2.0, 0.0), (1.0, -1.0), (1.0, -2.0)),
        *((-1.0, -3.0), (1.0, 0.5), (1.0, -0.5), (-0.5, -1.5), (1.0, 1.5), (1.0, 2.5), (1.0, 0.1), (2.0, -0.7)),
    ),
}
ROWS = [(name, parameters) for name in CURVES for parameters in PARAMETERS.get(name, ((),))]
rows = pytest.mark.parametrize(("name", "parameters"), ROWS)

SPECIAL = (0.0, -0.0, 5e-324, -5e-324, 1e-30, -1e-30, 0.5, -0.5, 1.0, 3.0, -3.0, 40.0, -40.0, 800.0, -800.0, 1e200)
ends = st.one_of(st.sampled_from(SPECIAL), st.floats(-6, 6), st.floats(-1e3, 1e3))
widths = st.one_of(st.just(0.0), st.floats(0, 1e-3), st.floats(0, 3))


def interval(low: float, high: float) -> Interval:
    return Interval(*(torch.tensor([[[end]]], dtype=torch.float64) for end in (low, high)))


def defined(facts: CurveFacts, z: float) -> bool:
    above = z > facts.domain[0] or (facts.closed and z == facts.domain[0])
    return above and z != facts.pole


def meanings(name: str, parameters: tuple[float, ...], z: float) -> list[Any]:
    """Every value of the curve at z: both one-sided ones at a jump."""
    return [MEANING[name](mpmath.mpf(z), mpmath.mpf, side, *parameters)[0] for side in (0, 1)]


def probes(low: float, high: float, facts: CurveFacts) -> list[float]:
    inner = np.linspace(low, high, 9).tolist() if math.isfinite(high - low) else []
    marks = (*(piece.end for piece in facts.pieces[:-1]), *facts.turns)
    near = [math.nextafter(p, d) for p in marks for d in (-math.inf, p, math.inf)]
    inside = [min(max(p, low), high) for p in (*inner, *near, low, high)]
    return [p for p in inside if defined(facts, p) and abs(p) < 1e150]


def check_interval(name: str, parameters: tuple[float, ...], low: float, high: float) -> None:
    facts = facts_of(name, parameters)
    got = curve_interval(facts, interval(low, high))
    for probe in probes(low, high, facts):
        for value in meanings(name, parameters, probe):
            assert at_most(float(got.lower), value, mpmath.mpf), (probe, low, high)
            assert at_least(float(got.upper), value, mpmath.mpf), (probe, low, high)


def check_lines(name: str, parameters: tuple[float, ...], low: float, high: float) -> None:
    facts = facts_of(name, parameters)
    got = curve_relaxation(facts, interval(low, high))
    slopes = [mpmath.mpf(float(s)) for s in (got.lower_slopes[0], got.upper_slopes[0])]
    offsets = [float(got.lower_offset), float(got.upper_offset)]
    for probe in probes(low, high, facts):
        at = mpmath.mpf(probe)
        for value in meanings(name, parameters, probe):
            error = oracle_error(value)
            # A line whose offset is not a finite number claims nothing: backward propagation makes +inf of it.
            if math.isfinite(offsets[0]):
                assert slopes[0] * at + offsets[0] <= value + error, (probe, low, high)
            if math.isfinite(offsets[1]):
                assert value - error <= slopes[1] * at + offsets[1], (probe, low, high)


@rows
@given(a=ends, b=ends)
def test_interval_contains_the_curve(name: str, parameters: tuple[float, ...], a: float, b: float) -> None:
    check_interval(name, parameters, min(a, b), max(a, b))


@rows
@given(a=st.floats(-8, 8), width=widths)
def test_narrow_interval_contains_the_curve(name: str, parameters: tuple[float, ...], a: float, width: float) -> None:
    check_interval(name, parameters, a, a + width)


@rows
@given(a=ends, b=ends)
def test_lines_enclose_the_curve(name: str, parameters: tuple[float, ...], a: float, b: float) -> None:
    check_lines(name, parameters, min(a, b), max(a, b))


@rows
@given(a=st.floats(-8, 8), width=widths)
def test_lines_enclose_the_curve_narrowly(name: str, parameters: tuple[float, ...], a: float, width: float) -> None:
    check_lines(name, parameters, a, a + width)


@rows
@given(a=st.floats(1e-6, 8), width=widths)
def test_lines_enclose_the_curve_in_its_domain(
    name: str, parameters: tuple[float, ...], a: float, width: float
) -> None:
    check_lines(name, parameters, a, a + width)
    check_interval(name, parameters, a, a + width)
    got = curve_relaxation(facts_of(name, parameters), interval(a, a + width))
    assert all(bool(t.isfinite().all()) for t in (got.lower_offset, got.upper_offset))


@rows
@given(t=st.lists(st.floats(0, 1), min_size=2, max_size=2), reach=st.sampled_from([0.5, 4.0, 30.0]))
def test_curvature_is_as_claimed(name: str, parameters: tuple[float, ...], t: list[float], reach: float) -> None:
    facts = facts_of(name, parameters)
    for piece, start, end in facts.spans if facts.bend is None else ():
        # The ends are rounded roots: stay an ulp or two away from them.
        low, high = (mpmath.mpf(max(start, -reach, facts.domain[0])), mpmath.mpf(min(end, reach)))
        low, high = low + abs(low) * mpmath.mpf(2) ** -50, high - abs(high) * mpmath.mpf(2) ** -50
        if low >= high or (facts.pole is not None and facts.pole in (start, end) and (low == 0 or high == 0)):
            low, high = low + mpmath.mpf(2) ** -40, high - mpmath.mpf(2) ** -40
        if low >= high:
            continue
        a, b = (low + (high - low) * (mpmath.mpf(v) * 98 + 1) / 100 for v in sorted(t))
        f = [MEANING[name](z, mpmath.mpf, 1, *parameters)[0] for z in (a, (a + b) / 2, b)]
        sag = (f[0] + f[2]) / 2 - f[1]
        error = sum(oracle_error(v) for v in f)
        assert sag >= -error if piece.curvature > 0 else sag <= error if piece.curvature < 0 else abs(sag) <= error


@rows
@given(z=st.floats(-70, 70))
def test_values_and_slopes_are_as_accurate_as_claimed(name: str, parameters: tuple[float, ...], z: float) -> None:
    facts = facts_of(name, parameters)
    if not defined(facts, z) or any(abs(z - piece.end) < 1e-12 for piece in facts.pieces[:-1]) or abs(z) < 1e-3:
        return
    at = torch.tensor([z], dtype=torch.float64)
    exact = mpmath.mpf(z)
    value, slope = (mpmath.mpf(float(f(at))) for f in (facts.value, facts.slope))
    truth = MEANING[name](exact, mpmath.mpf, 1, *parameters)[0]
    tilt = mpmath.diff(lambda t: MEANING[name](t, mpmath.mpf, 1, *parameters)[0], exact, h=mpmath.mpf(2) ** -130)
    tiny = mpmath.mpf(2) ** -200
    assert abs(value - truth) <= facts.ulps * mpmath.mpf(2) ** -52 * abs(truth) + facts.absolute + tiny
    allowed = 2 * (facts.ulps * mpmath.mpf(2) ** -52 * abs(tilt) + facts.absolute)
    if facts.bend is not None:
        allowed = 2 * facts.ulps * mpmath.mpf(2) ** -52
    assert abs(slope - tilt) <= allowed + tiny


@rows
@given(z=st.floats(-20, 20))
def test_the_derivative_row_is_the_derivative(name: str, parameters: tuple[float, ...], z: float) -> None:
    facts = facts_of(name, parameters)
    curve, constants = facts.derivative
    if curve == "undefined" or not defined(facts, z):
        return
    if z == 0 and facts.domain[0] == 0:  # sqrt at 0: the tangent is vertical
        return
    got = curve_interval(facts_of(curve, constants), interval(z, z))
    for side in (0, 1):
        slope = MEANING[name](mpmath.mpf(z), mpmath.mpf, side, *parameters)[1]
        assert at_most(float(got.lower), slope, mpmath.mpf)
        assert at_least(float(got.upper), slope, mpmath.mpf)


@rows
def test_lines_meet_where_the_interval_is_a_point(name: str, parameters: tuple[float, ...]) -> None:
    for point in (-2.0, -0.7, 0.7, 2.0):
        if not defined(facts_of(name, parameters), point):
            continue
        got = curve_relaxation(facts_of(name, parameters), interval(point, point))
        heights = [
            float(slope * point + offset)
            for slope, offset in (
                (got.lower_slopes[0], got.lower_offset),
                (got.upper_slopes[0], got.upper_offset),
            )
        ]
        assert heights[1] - heights[0] < 1e-11


@pytest.mark.parametrize(("left", "right"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -2.0)])
def test_a_kink_is_the_whole_clarke_set(left: float, right: float) -> None:
    got = curve_interval(facts_of("step", (left, right)), interval(0.0, 0.0))
    assert (float(got.lower), float(got.upper)) == (min(left, right), max(left, right))


def test_a_touched_kink_counts_as_unstable() -> None:
    for low, high in itertools.product((-1.0, 0.0), (0.0, 1.0)):
        got = curve_interval(facts_of("step", (0.0, 1.0)), interval(low, high))
        assert (float(got.lower), float(got.upper)) == (0.0, 1.0)
        assert not bool(is_affine_on(facts_of("step", (0.0, 1.0)), interval(low, high)).any())


@pytest.mark.parametrize("end", [(-math.inf, math.inf), (0.5, math.inf), (-math.inf, -0.5)])
def test_an_unbounded_argument_gives_no_nan(end: tuple[float, float]) -> None:
    for name, parameters in ROWS:
        got = curve_interval(facts_of(name, parameters), interval(*end))
        assert not bool(got.lower.isnan().any() | got.upper.isnan().any()), name


@pytest.mark.parametrize(
    ("name", "low", "high"), [("log", -1.0, 1.0), ("log", 0.0, 1.0), ("reciprocal", -1.0, 1.0), ("sqrt", -1e-300, 1.0)]
)
def test_nothing_is_known_outside_the_domain(name: str, low: float, high: float) -> None:
    got = curve_interval(facts_of(name), interval(low, high))
    assert (float(got.lower), float(got.upper)) == (-math.inf, math.inf)
    lines = curve_relaxation(facts_of(name), interval(low, high))
    assert (float(lines.lower_offset), float(lines.upper_offset)) == (-math.inf, math.inf)
