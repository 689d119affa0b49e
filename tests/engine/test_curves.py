"""Every row of curve facts: intervals and lines enclose the curve at ends, kinks, turning points and in between."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.rules.curve_enclosure import curve_interval, curve_relaxation, is_affine_on
from mlflow_lipschitz.engine.rules.curve_facts import CURVES
from tests.exact import CURVES as MEANING
from tests.properties import at_least, at_most, oracle_error

ROWS = [
    *((name, ()) for name in CURVES if name not in ("leaky_relu", "step")),
    *(("leaky_relu", (a,)) for a in (0.01, 0.1, -0.3, 1.7, 1e-50)),
    *(("step", pair) for pair in ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.25))),
]
rows = pytest.mark.parametrize(("name", "parameters"), ROWS)

SPECIAL = (0.0, -0.0, 5e-324, -5e-324, 1e-30, -1e-30, 0.5, -0.5, 1.0, -3.0, 40.0, -40.0, 800.0, -800.0)
ends = st.one_of(st.sampled_from(SPECIAL), st.floats(-6, 6), st.floats(-1e3, 1e3))


def meanings(name: str, parameters: tuple[float, ...], z: float) -> list[mpmath.mpf]:
    """Every value of the curve at z: both one-sided ones at a jump."""
    return [MEANING[name](mpmath.mpf(z), mpmath.mpf, side, *parameters)[0] for side in (0, 1)]


def probes(low: float, high: float, name: str) -> list[float]:
    facts = CURVES[name]
    inner = np.linspace(low, high, 9).tolist() if math.isfinite(high - low) else []
    near = [math.nextafter(p, d) for p in (*facts.breakpoints, *facts.stationary) for d in (-math.inf, p, math.inf)]
    return [min(max(p, low), high) for p in (*inner, *near, low, high)]


@rows
@given(a=ends, b=ends)
def test_interval_contains_the_curve(name: str, parameters: tuple[float, ...], a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    z = Interval(torch.tensor([[[low]]], dtype=torch.float64), torch.tensor([[[high]]], dtype=torch.float64))
    got = curve_interval(CURVES[name], parameters, z)
    for probe in probes(low, high, name):
        for value in meanings(name, parameters, probe):
            assert at_most(float(got.lower), value, mpmath.mpf), (probe, low, high)
            assert at_least(float(got.upper), value, mpmath.mpf), (probe, low, high)


@rows
@given(a=ends, b=ends)
def test_lines_enclose_the_curve(name: str, parameters: tuple[float, ...], a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    z = Interval(torch.tensor([[[low]]], dtype=torch.float64), torch.tensor([[[high]]], dtype=torch.float64))
    got = curve_relaxation(CURVES[name], parameters, z)
    slopes = [mpmath.mpf(float(s)) for s in (got.lower_slopes[0], got.upper_slopes[0])]
    offsets = [mpmath.mpf(float(o)) for o in (got.lower_offset, got.upper_offset)]
    for probe in probes(low, high, name):
        at = mpmath.mpf(probe)
        for value in meanings(name, parameters, probe):
            assert slopes[0] * at + offsets[0] <= value + oracle_error(value), (probe, low, high)
            assert value - oracle_error(value) <= slopes[1] * at + offsets[1], (probe, low, high)


@rows
def test_lines_meet_where_the_interval_is_a_point(name: str, parameters: tuple[float, ...]) -> None:
    for point in (-2.0, -0.3, 0.7, 3.0):
        z = Interval(*(torch.full((1, 1, 1), point, dtype=torch.float64) for _ in range(2)))
        got = curve_relaxation(CURVES[name], parameters, z)
        heights = [
            float(slope * point + offset)
            for slope, offset in (
                (got.lower_slopes[0], got.lower_offset),
                (got.upper_slopes[0], got.upper_offset),
            )
        ]
        assert heights[1] - heights[0] < 1e-12


@pytest.mark.parametrize(("left", "right"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -2.0)])
def test_a_kink_is_the_whole_clarke_set(left: float, right: float) -> None:
    zero = torch.zeros((1, 1, 1), dtype=torch.float64)
    got = curve_interval(CURVES["step"], (left, right), Interval(zero, zero))
    assert (float(got.lower), float(got.upper)) == (min(left, right), max(left, right))


def test_a_touched_kink_counts_as_unstable() -> None:
    for low, high in itertools.product((-1.0, 0.0), (0.0, 1.0)):
        z = Interval(torch.full((1, 1, 1), low).double(), torch.full((1, 1, 1), high).double())
        got = curve_interval(CURVES["step"], (0.0, 1.0), z)
        assert (float(got.lower), float(got.upper)) == (0.0, 1.0)
        assert not bool(is_affine_on(CURVES["step"], z).any())


def test_an_unbounded_argument_gives_no_nan() -> None:
    infinite = Interval(torch.full((1, 1, 1), -torch.inf).double(), torch.full((1, 1, 1), torch.inf).double())
    for name, parameters in ROWS:
        got = curve_interval(CURVES[name], parameters, infinite)
        assert not bool(got.lower.isnan().any() | got.upper.isnan().any()), name
