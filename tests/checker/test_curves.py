"""The checker's curves: against 400-bit truth without a tolerance, and against the engine's, which it must not be looser than."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from mlflow_lipschitz.checker import curves, jets
from mlflow_lipschitz.checker.curve_table import ROWS as KNOWN
from mlflow_lipschitz.checker.curve_table import row_of
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.rules.curve_enclosure import curve_interval, curve_relaxation, is_affine_on
from mlflow_lipschitz.engine.rules.curves.table import CURVES, facts_of
from tests.engine.test_curves import ROWS
from tests.exact_curves import CURVES as MEANING

rows = pytest.mark.parametrize(("name", "parameters"), ROWS)
LINES = [
    (name, p) for name, p in ROWS if name in ("relu", "leaky_relu", "abs", "step", "clip", "window")
]  # made of nothing else
lines = pytest.mark.parametrize(("name", "parameters"), LINES)

SPECIAL = (
    *(
        0.0,
        -0.0,
        5e-324,
        -5e-324,
        1e-310,
        -1e-310,
        1e-30,
        -1e-30,
        0.5,
        -0.5,
        1.0,
        -1.0,
        1.5,
        -1.5,
        3.0,
        -3.0,
        6.0,
        -0.1,
    ),
    *(0.3, math.pi, math.pi / 2, 20.0, -20.0, 40.0, -40.0, 800.0, -800.0, 2.0**21, 1e200, -1e200, 1e308, -1e308),
)


def draws(name: str, parameters: tuple[float, ...], count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Intervals: points, tiny and huge ones, with ends that are kinks, subnormal numbers or anything."""
    rng = np.random.default_rng(seed)
    row = row_of(name, parameters)
    special = np.array([*SPECIAL, *(piece.end for piece in row.pieces[:-1])])
    start = np.where(rng.random(count) < 0.3, rng.choice(special, count), rng.uniform(-8, 8, count))
    width = np.where(rng.random(count) < 0.1, 0.0, np.exp(rng.uniform(math.log(1e-17), math.log(20), count)))
    end = np.where(rng.random(count) < 0.2, rng.choice(special, count), start + width)
    low, high = np.minimum(start, end), np.maximum(start, end)
    if row.start == 0 or row.pole:
        inside = rng.random(count) < 0.8
        low, high = (
            np.where(inside, np.abs(low), low),
            np.where(inside, np.abs(low) + np.minimum(high - low, 1e3), high),
        )
    return low, high


def moderate(name: str, parameters: tuple[float, ...], count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of the sizes that occur, inside the domain."""
    rng = np.random.default_rng(1)
    low = rng.uniform(-6, 6, count)
    row = row_of(name, parameters)
    if row.start == 0 or row.pole:
        low = np.abs(low) * 0.3 + 1e-3
    return low, low + np.exp(rng.uniform(math.log(1e-3), math.log(10), count))


def is_defined(name: str, parameters: tuple[float, ...], low: float, high: float) -> bool:
    row = row_of(name, parameters)
    above = row.start == -math.inf or low > row.start or (row.closed and low == row.start)
    return above and not (row.pole and low <= 0 <= high)


def meanings(name: str, parameters: tuple[float, ...], z: float) -> list[Any]:
    """Every value of the curve at z: both one-sided ones at a jump."""
    kinked = any(z == piece.end for piece in row_of(name, parameters).pieces)
    return [MEANING[name](mpf(z), mpf, side, *parameters)[0] for side in ((0, 1) if kinked else (1,))]


def probes(name: str, parameters: tuple[float, ...], low: float, high: float, slope: float) -> list[float]:
    """The ends, the kinks, and where the curve and the curve less a line are about largest and smallest."""
    grid = np.linspace(low, high, 65) if math.isfinite(high - low) else np.array([low, high])
    with np.errstate(all="ignore"):
        values = curves._at(row_of(name, parameters), grid)[0].high  # which places are looked at is no claim
    marks = [low, high, -1.5, 0.0, *(piece.end for piece in row_of(name, parameters).pieces[:-1])]
    for score in (values, values - slope * grid):
        if not np.isnan(score).all():
            marks += [grid[np.nanargmax(score)], grid[np.nanargmin(score)]]
    return [z for z in {float(min(max(mark, low), high)) for mark in marks} if abs(z) < 1e150]


def as_interval(low: np.ndarray, high: np.ndarray) -> Interval:
    return Interval(torch.tensor(low), torch.tensor(high))


def test_every_curve_of_the_engine_is_known() -> None:
    assert set(KNOWN) == set(CURVES)


@rows
def test_ranges_and_lines_enclose_the_exact_curve(name: str, parameters: tuple[float, ...]) -> None:
    low, high = draws(name, parameters, 40)
    slope = np.random.default_rng(2).normal(size=low.size)  # no good slope: only tightness may depend on it
    bottom, top = curves.value_range(name, parameters, low, high)
    guessed = curves.default_slopes(name, parameters, low, high)
    slopes = np.stack([slope, *guessed])
    bounds = [
        (side * slopes[k], side, bound)
        for side in (1, -1)
        for k, bound in enumerate(curves.offset_above(name, parameters, low, high, side * slopes, side))
    ]
    assert all(np.isfinite(s).all() for s in guessed)
    for i in range(low.size):
        if not is_defined(name, parameters, low[i], high[i]):
            assert (bottom[i], top[i]) == (-math.inf, math.inf)
            assert all(bound[i] == math.inf for _, _, bound in bounds)
            continue
        for z in probes(name, parameters, low[i], high[i], slope[i]):
            for value in meanings(name, parameters, z):
                case = f"{name}{parameters} on [{low[i]!r}, {high[i]!r}] at {z!r}"
                assert bottom[i] == -math.inf or mpf(float(bottom[i])) <= value, case
                assert top[i] == math.inf or mpf(float(top[i])) >= value, case
                for tilt, side, bound in bounds:
                    room = mpmath.inf if bound[i] == math.inf else mpf(float(bound[i]))
                    assert side * value - mpf(float(tilt[i])) * mpf(z) <= room, case


@rows
def test_taylor_coefficients_enclose_those_of_the_exact_curve(name: str, parameters: tuple[float, ...]) -> None:
    low, high = moderate(name, parameters, 12)
    high = np.minimum(high, low + 1)
    for piece, start, end in curves._spans(row_of(name, parameters)):
        inside = (low > start) & (high < end)
        if piece.line or not inside.any():
            continue
        with np.errstate(all="ignore"):
            jet = curves._enclosed(row_of(name, parameters), piece, low[inside], high[inside], 3)
        for i, (a, b) in enumerate(zip(low[inside], high[inside], strict=True)):
            truth = mpmath.taylor(lambda t: MEANING[name](t, mpf, 1, *parameters)[0], mpf(a) + (mpf(b) - mpf(a)) / 3, 3)
            for k, coefficient in enumerate(truth):
                # 400 bits less what numerical differentiation costs.
                error = mpf(2) ** -90 * (1 + abs(coefficient))
                ends = [float(np.broadcast_to(x, (inside.sum(),))[i]) for x in jet[k]]
                assert ends[0] - error <= coefficient <= ends[1] + error, (name, parameters, a, b, k)


@rows
def test_names_and_kinds_are_the_engines(name: str, parameters: tuple[float, ...]) -> None:
    facts = facts_of(name, parameters)
    if facts.derivative[0] == "undefined":
        with pytest.raises(ValueError, match="no curve is the derivative"):
            curves.derivative(name, parameters)
    else:
        assert curves.derivative(name, parameters) == facts.derivative
        assert row_of(*curves.derivative(name, parameters))
    assert curves.jumps(name, parameters) == bool(facts.jumps)
    assert curves.is_flat(name, parameters) == facts.flat
    low, high = draws(name, parameters, 200)
    expected = is_affine_on(facts, as_interval(low, high)).numpy()
    assert (curves.is_line_on(name, parameters, low, high) == expected).all()


@rows
def test_ranges_are_about_as_tight_as_the_engines(name: str, parameters: tuple[float, ...]) -> None:
    low, high = moderate(name, parameters)
    engine = curve_interval(facts_of(name, parameters), as_interval(low, high))
    width = (engine.upper - engine.lower).numpy()
    bottom, top = curves.value_range(name, parameters, low, high)
    assert (top - bottom <= width * 1.002 + 1e-14).all()


@rows
def test_lines_are_about_as_tight_as_the_engines(name: str, parameters: tuple[float, ...]) -> None:
    low, high = moderate(name, parameters)
    engine = curve_relaxation(facts_of(name, parameters), as_interval(low, high))
    above, below = engine.upper_slopes[0].numpy(), engine.lower_slopes[0].numpy()
    offsets = engine.upper_offset.numpy(), engine.lower_offset.numpy()
    middle = low + (high - low) / 2
    room = (above * middle + offsets[0]) - (below * middle + offsets[1])
    same = (
        curves.offset_above(name, parameters, low, high, above, 1),
        -curves.offset_above(name, parameters, low, high, -below, -1),
    )
    size = np.maximum(np.abs(low), np.abs(high)) * (np.abs(above) + np.abs(below))
    slack = 2e-3 * room + 1e-13 * (1 + size + np.abs(offsets[0]) + np.abs(offsets[1]))
    assert (same[0] - offsets[0] <= slack).all()
    assert (offsets[1] - same[1] <= slack).all()
    above, below = curves.default_slopes(name, parameters, low, high)
    top = above * middle + curves.offset_above(name, parameters, low, high, above, 1)
    bottom = below * middle - curves.offset_above(name, parameters, low, high, -below, -1)
    assert (top - bottom <= 1.06 * room + slack).all()


@lines
def test_ranges_of_lines_are_exact(name: str, parameters: tuple[float, ...]) -> None:
    low, high = draws(name, parameters, 100)
    bottom, top = curves.value_range(name, parameters, low, high)
    for i in range(low.size):
        marks = [low[i], high[i], *(piece.end for piece in row_of(name, parameters).pieces[:-1])]
        values = [
            v for z in marks for v in meanings(name, parameters, min(max(z, low[i]), high[i])) if low[i] <= z <= high[i]
        ]
        for got, truth in ((bottom[i], min(values)), (top[i], max(values))):
            exact = float(truth) == truth and name != "leaky_relu"
            assert (
                got == truth if exact else abs(mpf(float(got)) - truth) <= abs(truth) * mpf(2) ** -50 + mpf(2) ** -950
            )


@lines
def test_lines_have_the_engines_default_slopes(name: str, parameters: tuple[float, ...]) -> None:
    if name == "window":  # two lines are often equally close
        return
    low, high = moderate(name, parameters)
    engine = curve_relaxation(facts_of(name, parameters), as_interval(low, high))
    above, below = curves.default_slopes(name, parameters, low, high)
    np.testing.assert_allclose(above, engine.upper_slopes[0].numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(below, engine.lower_slopes[0].numpy(), rtol=1e-12, atol=1e-12)


@lines
def test_fractions_are_not_rounded(name: str, parameters: tuple[float, ...]) -> None:
    rng = np.random.default_rng(3)
    numbers = np.array([Fraction(int(n), 7) for n in rng.integers(-70, 70, 120)], dtype=object).reshape(3, 40)
    low, high, slope = np.minimum(numbers[0], numbers[1]), np.maximum(numbers[0], numbers[1]), numbers[2]
    bottom, top = curves.value_range(name, parameters, low, high)
    for side in (1, -1):
        bound = curves.offset_above(name, parameters, low, high, slope, side)
        for i in range(low.size):
            marks = [Fraction(piece.end) for piece in row_of(name, parameters).pieces[:-1]]
            places = [low[i], high[i], *(z for z in marks if low[i] <= z <= high[i])]
            values = [
                (z, MEANING[name](z, Fraction, at, *map(Fraction, parameters))[0]) for z in places for at in (0, 1)
            ]
            # An end that is a kink is in the closures of both pieces.
            assert bound[i] == max(side * v - slope[i] * z for z, v in values)
            assert (top if side > 0 else bottom)[i] == side * max(side * v for _, v in values)


def test_what_is_exactly_zero_stays_so() -> None:
    zero, one = np.array([0.0]), np.array([1.0])
    for name in (
        "relu",
        "tanh",
        "erf",
        "atan",
        "softsign",
        "silu",
        "gelu",
        "gelu_tanh",
        "mish",
        "hard_swish",
        "square",
        "sin",
    ):
        assert [float(end[0]) for end in curves.value_range(name, (), zero, zero)] == [0.0, 0.0], name
    assert curves.value_range("relu", (), -one, zero) == (0.0, 0.0)
    assert curves.offset_above("relu", (), -2 * one, -one, 0.0, 1) == 0
    assert curves.offset_above("relu", (), one, 3.5 * one, 1.0, 1) == 0
    assert curves.offset_above("relu", (), one, 3.5 * one, -1.0, -1) == 0
    assert curves.offset_above("relu", (), -one, 3 * one, 0.0, -1) == 0
    for name in ("sigmoid", "dtanh", "dsigmoid", "derf", "datan", "dsoftsign", "softplus", "exp", "square"):
        assert curves.value_range(name, (), -900 * one, 900 * one)[0] >= 0, name


def test_a_touched_kink_is_the_whole_clarke_set() -> None:
    for low, high in itertools.product((-1.0, 0.0, -0.0), (0.0, -0.0, 1.0)):
        assert curves.value_range("step", (1.0, -2.0), low, high) == (-2.0, 1.0)
        assert not curves.is_line_on("step", (1.0, -2.0), low, high)
    assert curves.value_range("step", (0.0, 1.0), 5e-324, 1.0) == (1.0, 1.0)
    assert curves.value_range("window", (-1.0, 1.0), 1.0, 1.0) == (0.0, 1.0)
    assert curves.offset_above("step", (0.0, 1.0), 5e-324, 5e-324, -0.3, 1) > 1  # though slope · z underflows
    assert curves.value_range("delu", (0.5, 1.0), 0.0, 0.0)[0] <= 0.5
    assert curves.value_range("delu", (0.5, 1.0), 0.0, 0.0)[1] == 1.0


@rows
def test_nothing_is_ever_nan(name: str, parameters: tuple[float, ...]) -> None:
    ends = np.array([-np.inf, -1e308, -1.0, 0.0, 0.5, 1e308, np.inf])
    low, high = (x.ravel() for x in np.meshgrid(ends, ends))
    slopes = curves.default_slopes(name, parameters, low, high)
    bounds = [*curves.value_range(name, parameters, low, high), *slopes]
    bounds += [curves.offset_above(name, parameters, low, high, s, side) for s in (*slopes, 0.3) for side in (1, -1)]
    assert not any(np.isnan(bound).any() for bound in bounds)
    backward = low > high
    assert all(np.isinf(bound[backward]).all() for bound in (*bounds[:2], *bounds[4:]))


@rows
def test_of_what_is_no_interval_nothing_is_known(name: str, parameters: tuple[float, ...]) -> None:
    for low, high in ((1.0, 0.5), (math.nan, 1.0), (0.5, math.nan)):
        assert curves.value_range(name, parameters, low, high) == (-math.inf, math.inf)
        assert curves.offset_above(name, parameters, low, high, 0.5, 1) == math.inf


@rows
def test_entries_are_independent_and_broadcast(name: str, parameters: tuple[float, ...]) -> None:
    low, high = moderate(name, parameters, 6)
    slope = np.linspace(-1, 1, 4)[:, None, None]
    whole = curves.offset_above(name, parameters, low.reshape(2, 3), high.reshape(2, 3), slope, 1)
    assert whole.shape == (4, 2, 3)
    single = curves.offset_above(name, parameters, low[4], high[4], slope[2, 0, 0], 1)
    assert whole[2, 1, 1] == single


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(KeyError, match="knows no curve 'sinc'"):
        curves.value_range("sinc", (), 0.0, 1.0)
    for name, parameters in (("clip", (1.0, 0.0)), ("leaky_relu", (math.nan,)), ("power", (1.0, math.inf))):
        with pytest.raises(ValueError, match="have no meaning"):
            curves.value_range(name, parameters, 0.0, 1.0)
    with pytest.raises(TypeError):
        curves.value_range("relu", (1.0,), 0.0, 1.0)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_jets_have_what_was_asked_for(order: int) -> None:
    at = np.array([0.25, 0.5])
    for name, parameters in ROWS:
        for piece in row_of(name, parameters).pieces:
            if piece.jet:
                assert 1 <= len(piece.jet(jets.variable(at, at), order)) <= max(order, 1) + 2, name


def test_the_checker_imports_neither_torch_nor_the_engine() -> None:
    script = (
        "import sys, mlflow_lipschitz.checker.curves; "
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'scipy') or m.startswith('mlflow_lipschitz.engine')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_top_of_a_parabola_is_not_passed() -> None:
    rng = np.random.default_rng(4)
    tilt, curl, reach = rng.exponential(size=400), rng.normal(size=400), rng.exponential(size=400)
    bound = curves._rise(tilt, curl, reach)
    for t, c, r, got in zip(*(map(Fraction, x) for x in (tilt, curl, reach, bound)), strict=True):
        places = [Fraction(0), r, *([min(r, t / (-2 * c))] if c < 0 else [])]
        truth = max(t * x + c * x * x for x in places)
        assert truth <= got <= truth + Fraction(1, 10**12) * (1 + t * r + abs(c) * r * r)
