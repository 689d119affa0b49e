"""What only shows in the last bit, or beneath the smallest normal number: every step of a bound by itself, in exact arithmetic.

A bound of a whole network hides an error term of one step behind those of the others.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from mlflow_lipschitz.certify import certify_lipschitz
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.backward import InputForm, concretize, upper_bounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.curve_enclosure import offset_above, parallel_lines
from mlflow_lipschitz.engine.rules.curves.table import facts_of
from mlflow_lipschitz.engine.rules.maximum import RemainderRule
from mlflow_lipschitz.engine.rules.product import McCormick, MultiplyRule
from mlflow_lipschitz.engine.rules.relaxation import Centered, Relaxation
from mlflow_lipschitz.engine.rules.weights import Weights
from tests.exact_curves import CURVES as MEANING

NO_WEIGHTS = Weights()
TINY = (5e-324, 1.5e-323, -5e-324, 3e-320, 0.0)


def number(value: float) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def ends_of(rng: np.random.Generator, count: int) -> Interval:
    """Intervals of numbers of every size and sign, some of them points, some with a zero at an end."""
    sizes = [-323.0, -310.0, -160.0, -20.0, -1.0, 0.0, 0.0, 20.0, 140.0]
    ends = rng.normal(size=(2, count)) * 10.0 ** rng.choice(sizes, (2, count))
    ends[:, rng.random(count) < 0.1] *= 0
    ends[1] = np.where(rng.random(count) < 0.1, ends[0], ends[1])
    lower, upper = (torch.from_numpy(end).reshape(-1, 1, 1) for end in (ends.min(0), ends.max(0)))
    return Interval(lower, upper)


def exact(x: Tensor) -> list[Fraction | float]:
    return [Fraction(v) if math.isfinite(v) else v for v in x.flatten().tolist()]


def corners(x: Interval, y: Interval) -> list[tuple[list[Fraction], list[Fraction]]]:
    ends = ((exact(x.lower), exact(x.upper)), (exact(y.lower), exact(y.upper)))
    return list(itertools.product(*ends))  # type: ignore[arg-type]


def require_planes_around_products(planes: Relaxation, x: Interval, y: Interval) -> None:
    """Above and below x·y at all corners of the box, where it has its extremes less a plane."""
    for slopes, offset, side in (
        (planes.upper_slopes, planes.upper_offset, 1),
        (planes.lower_slopes, planes.lower_offset, -1),
    ):
        tilts = [exact(torch.broadcast_to(s, offset.shape)) for s in slopes]
        for a, b in corners(x, y):
            operands = dict(enumerate((a, b)))
            for i, level in enumerate(exact(offset)):
                if not isinstance(level, Fraction):
                    continue
                plane = level + sum(t[i] * operands[p][i] for t, p in zip(tilts, planes.operands, strict=True))
                assert side * (plane - a[i] * b[i]) >= 0, (i, float(a[i]), float(b[i]))


@pytest.mark.parametrize("seed", range(4))
def test_planes_around_products_hold_at_every_corner(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = ends_of(rng, 100), ends_of(rng, 100)
    for weights in (0.0, 1.0, 0.5, None):
        family = McCormick(x, y)
        chosen = family.start if weights is None else (torch.full_like(x.lower, weights),) * 2
        require_planes_around_products(family.at(chosen), x, y)
    require_planes_around_products(MultiplyRule().relaxation(ops.Multiply((1,)), x, y), x, y)
    require_planes_around_products(MultiplyRule().parallel(ops.Multiply(), x, y), x, y)


def test_planes_around_products_are_those_of_the_textbook() -> None:
    x, y = Interval(number(1.0), number(3.0)), Interval(number(-2.0), number(5.0))
    for weight, above, below in ((0.0, (-2.0, 3.0), (-2.0, 1.0)), (1.0, (5.0, 1.0), (5.0, 3.0))):
        planes = McCormick(x, y).at((number(weight),) * 2)
        assert tuple(float(s) for s in planes.upper_slopes) == above
        assert tuple(float(s) for s in planes.lower_slopes) == below
    rule = MultiplyRule()
    assert bool(rule.imprecise(ops.Multiply(), 0, x, y)), "a first factor that varies makes the product bent"
    assert not bool(rule.imprecise(ops.Multiply(), 0, Interval(x.lower, x.lower), y))


def test_what_the_first_operand_of_a_maximum_leaves_over() -> None:
    """(1 − s) g, for any s in [0, 1]; s · g is not known, so that nothing else hides the product's rounding."""
    rng = np.random.default_rng(0)
    # Random numbers are multiples of 2⁻⁵³, of which 1 − s is no rounding; their cubes are not.
    anything, chosen = rng.random((2, 600)) ** 3, rng.choice([0.0, 1.0, 1e-20, 1 - 2.0**-53], (2, 600))
    ends = np.where(rng.random((2, 600)) < 0.5, chosen, anything)
    step = Interval(*(torch.from_numpy(end).reshape(-1, 1, 1) for end in np.sort(ends, axis=0)))
    whole = ends_of(rng, 600)
    unknown = Interval(torch.full_like(whole.lower, -torch.inf), torch.full_like(whole.lower, torch.inf))
    got = RemainderRule().interval(ops.Remainder(), NO_WEIGHTS, unknown, step, whole)
    for s, g in corners(step, whole):
        for i, (low, high) in enumerate(zip(exact(got.lower), exact(got.upper), strict=True)):
            assert low <= (1 - s[i]) * g[i] <= high
    none, all_of_it = (Interval(end, end) for end in (torch.ones_like(whole.lower), torch.zeros_like(whole.lower)))
    got = RemainderRule().interval(ops.Remainder(), NO_WEIGHTS, unknown, none, whole)
    assert not bool(got.magnitude.any()), "all of it went to the first operand"
    got = RemainderRule().interval(ops.Remainder(), NO_WEIGHTS, unknown, all_of_it, whole)
    positive = whole.lower > 1e-300
    assert bool((got.lower[positive] > 0).all()) and bool(positive.any())
    half = RemainderRule().evaluate(ops.Remainder(), NO_WEIGHTS, number(1.5), number(0.5), number(3.0))
    assert float(half) == 1.5


@pytest.mark.parametrize(("low", "high"), [pair for pair in itertools.combinations_with_replacement(sorted(TINY), 2)])
def test_halves_of_the_smallest_numbers_are_not_lost(low: float, high: float) -> None:
    got = Centered.of(number(low), number(high))
    assert got.half is not None
    mean, half = Fraction(float(got.mean)), Fraction(float(got.half))
    assert mean - half <= Fraction(low) and Fraction(high) <= mean + half


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_size_of_planes_is_that_of_the_steeper_one(sign: float) -> None:
    """Errors are in proportion to it; either plane may be the steeper one."""
    small, large = number(1.0), number(1000.0)
    planes = Relaxation((0,), (sign * large,), small, (small,), small)
    turned = Relaxation((0,), (small,), small, (sign * large,), small)
    reach = Interval(-small, small)
    assert float(planes.magnitude(reach)) >= 1001 and float(turned.magnitude(reach)) >= 1001


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("offset", "coefficient"), [(2.0**-60, 1.0), (1.0, 2.0**-60), (-(2.0**-60), 1.0), (3.0, -(2.0**-70))]
)
def test_the_last_addition_of_a_bound_is_rounded_upward(offset: float, coefficient: float, sign: float) -> None:
    problem = Problem.of(linear(np.ones((1, 1))), Box.around(np.full((1, 1), 1.0), 0.0))
    got = concretize(problem, InputForm(number(sign * coefficient)[..., None], number(sign * offset)))
    assert Fraction(float(got)) >= Fraction(sign * offset) + Fraction(sign * coefficient)


def linear(*weights: np.ndarray) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((weights[0].shape[1],)))
    for weight in weights:
        x = builder.add(ops.Linear(ops.frozen_array(weight)), x)
    return builder.build(x)


@pytest.mark.parametrize("seed", range(3))
def test_differences_of_outputs_are_bounded_to_the_last_bit(seed: int) -> None:
    """Signed coefficients: their sum may vanish where that of their sizes does not."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(6, 5))
    points = rng.normal(size=(8, 5))
    problem = Problem.of(linear(weight), Box.around(points, 0.0))
    bounds = bound_nodes(problem, Refinement(64))
    rows = np.eye(6)[:3] - np.eye(6)[3:]
    got = upper_bounds(problem, bounds, problem.graph.output, torch.from_numpy(rows)[None, None])[:, 0]
    for point, found in zip(points, got, strict=True):
        values = [sum(Fraction(w) * Fraction(v) for w, v in zip(row, point, strict=True)) for row in weight.tolist()]
        for j, high in enumerate(exact(found)):
            assert high >= values[j] - values[j + 3]
            assert high <= values[j] - values[j + 3] + Fraction(1, 10**11)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gradient_that_is_constant_is_bounded_to_the_last_bit(norm: str) -> None:
    """Here the form ends at the objective: its scalar product is all there is."""
    rng = np.random.default_rng(5)
    for _ in range(10):
        first, second = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
        got = certify_lipschitz(linear(first, second), np.zeros((1, 3)), Box.around(np.zeros((1, 3)), 1.0), norm=norm)
        for j, high in enumerate(got.upper[0]):
            gradient = [sum(Fraction(a) * Fraction(b) for a, b in zip(second[j], c, strict=True)) for c in first.T]
            sizes = [abs(g) for g in gradient]
            power = 2 if norm == "l2" else 1
            size = {"linf": sum(sizes), "l2": sum(s * s for s in sizes), "l1": max(sizes)}[norm]
            assert size <= Fraction(float(high)) ** power <= size * (1 + Fraction(1, 10**11))


def test_what_underflows_is_covered_in_proportion_to_the_largest_entry() -> None:
    """1e-200 · 1e-200 is no float64; times an entry of 1e300 it is 1e-100, whatever the other entries are."""
    half = np.diag([1e-200, 1.0])
    problem = Problem.of(linear(half, half), Box(np.zeros((1, 2)), np.array([[1e300, 0.0]])))
    bounds = bound_nodes(problem, Refinement(64))
    got = upper_bounds(problem, bounds, problem.graph.output, torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64))
    assert Fraction(float(got)) >= Fraction(1e-200) ** 2 * Fraction(1e300)


def test_the_product_with_the_objective_is_rounded_upward() -> None:
    """Of signed numbers, and of such whose products underflow; here it is all there is."""
    rng = np.random.default_rng(6)
    builder = GraphBuilder()
    builder.add(ops.Input((1,)))
    graph = builder.build(builder.add(ops.Cotangent((4,))))
    for scale in (1.0, 1e-200):
        rows, objectives = rng.normal(size=(20, 4)) * scale, rng.normal(size=(5, 4)) * scale
        problem = Problem.of(graph, Box.around(np.zeros((1, 1)), 0.0), torch.from_numpy(objectives)[None])
        bounds = bound_nodes(problem, Refinement(64))
        got = upper_bounds(problem, bounds, graph.output, torch.from_numpy(rows)[None, None].expand(1, 5, 20, 4))[0]
        for objective, found in zip(objectives.tolist(), got, strict=True):
            for row, high in zip(rows.tolist(), exact(found), strict=True):
                true = sum(Fraction(a) * Fraction(b) for a, b in zip(row, objective, strict=True))
                assert true <= high <= true + Fraction(1, 10**12)


def test_rows_that_only_fill_up_a_batch_change_nothing() -> None:
    """Around one point all units are undecided, around the other only the last."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((3,)))
    first = builder.add(ops.Linear(ops.frozen_array(np.eye(3) + 0.25), ops.frozen_array(np.zeros(3))), x)
    hidden = builder.add(ops.Linear(ops.frozen_array(np.eye(3) - 0.5)), builder.add(ops.Elementwise("relu"), first))
    last = builder.add(ops.Elementwise("relu"), hidden)
    graph = builder.build(builder.add(ops.Linear(ops.frozen_array(np.ones((1, 3)))), last))
    points = np.array([[0.1, 0.1, 0.1], [9.0, 2.0, 1.0]])
    together = bound_nodes(Problem.of(graph, Box.around(points, 0.5)), Refinement(64))
    for row in range(2):
        alone = bound_nodes(Problem.of(graph, Box.around(points[row : row + 1], 0.5)), Refinement(64))
        for one, both in zip(alone, together, strict=True):
            assert torch.equal(one.interval.lower[0], both.interval.lower[row])
            assert torch.equal(one.interval.upper[0], both.interval.upper[row])


@pytest.mark.parametrize("name", ["sin", "cos", "tanh", "softplus", "exp", "relu"])
def test_lines_of_any_slope_lie_above_the_curve(name: str) -> None:
    """Also of slopes that no relaxation would choose: an offset answers for the slope it is given."""
    facts, rng = facts_of(name), np.random.default_rng(7)
    slopes = torch.tensor([-5.0, -1.0, -1e-3, 0.0, 0.3, 1.0, 5.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    for _ in range(30):
        low = float(rng.normal() * 3)
        high = low + float(rng.choice([0.0, 1e-12, 0.1, 1.0, 3.0, 5.0]))
        places = [low, high, *np.linspace(low, high, 9).tolist()]
        for side in (1, -1):
            found = offset_above(facts, Interval(number(low), number(high)), slopes, side).flatten().tolist()
            for slope, offset in zip(slopes.flatten().tolist(), found, strict=True):
                for place in places:
                    value = MEANING[name](mpmath.mpf(place), mpmath.mpf, 1)[0]
                    assert side * value - mpmath.mpf(slope) * place <= offset, (low, high, slope, place, side)
        require_lines_around(name, parallel_lines(facts, Interval(number(low), number(high))), places)


def require_lines_around(name: str, lines: Relaxation, places: list[float]) -> None:
    (above,), (below,) = lines.upper_slopes, lines.lower_slopes
    for place in places:
        value = MEANING[name](mpmath.mpf(place), mpmath.mpf, 1)[0]
        assert value <= mpmath.mpf(float(above)) * place + float(lines.upper_offset)
        assert mpmath.mpf(float(below)) * place + float(lines.lower_offset) <= value
