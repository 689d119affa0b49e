"""Networks made to break a bound: extreme scales, underflow, saturation, cancellation, overflow."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from mlflow_lipschitz.certify import certified_radius, certify_lipschitz, certify_monotonicity
from mlflow_lipschitz.engine.domains.region import Box, LpBall
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.relaxation import Relaxation
from mlflow_lipschitz.errors import UnsupportedOperator


def chain(*layers: float | str, inputs: int = 1) -> Graph:
    """A one-unit-wide network: numbers are weights, strings are curves; the first layer sums its inputs."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((inputs,)))
    for layer in layers:
        width = builder.shape(x)[0]
        op: ops.Op = ops.Elementwise(layer) if isinstance(layer, str) else ops.Linear(np.full((1, width), layer))
        x = builder.add(op, x)
    return builder.build(x)


def slope(*weights: float) -> Fraction:
    product = Fraction(1)
    for weight in weights:
        product *= Fraction(weight)
    return product


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "weights",
    [
        (1e-30,) * 3 + (1e30,) * 3,
        (1e-30,) * 6,
        (1e-30,) * 12,
        (1e-170, 1e-170),
        (1e-170, 1e-170, 1e200, 1e140),
        (1e30,) * 6,
        (1e200, 1e-200, 3.0),
        (5e-324, 1.0),
        (1e-310, 1e300),
    ],
)
def test_scales_do_not_lose_a_slope(weights: tuple[float, ...], norm: str) -> None:
    for region in (Box([[-1.0]], [[2.0]]), Box([[1e60]], [[1e60]]), LpBall([[3.0]], 1.0), LpBall([[3.0]], 1.0, norm=1)):
        got = certify_lipschitz(chain(*weights), np.zeros((1, 1)), region, norm=norm, device="cpu")
        upper, lower = float(got.upper[0, 0]), float(got.lower[0, 0])
        assert upper == np.inf or Fraction(upper) >= slope(*weights)
        assert Fraction(lower) <= slope(*weights)


@pytest.mark.parametrize("point", [360.0, 380.0, 400.0, 1e3, 1e30])
@pytest.mark.parametrize("curve", ["tanh", "sigmoid"])
def test_a_saturated_curve_still_falls(curve: str, point: float) -> None:
    graph = chain(curve, -1.0)
    got = certify_monotonicity(graph, [[point]], Box([[point]], [[point]]), device="cpu")
    # The true derivative is tiny and negative: it may be certified as falling, never as rising or constant.
    assert got.lower[0, 0] < 0
    assert got.sign[0, 0] != 1


def test_a_slope_that_underflows_after_saturation_is_not_certified_to_rise() -> None:
    graph = chain("tanh", *(-1e-30,) * 11)
    got = certify_monotonicity(graph, [[3.0]], Box([[2.0]], [[4.0]]), device="cpu")
    assert got.lower[0, 0] < 0 and got.sign[0, 0] != 1


def test_cancellation_is_not_mistaken_for_zero() -> None:
    # 1e8 + x − 1e8 through a ReLU that is always active: the derivative is exactly 1.
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    up = builder.add(ops.ScaleShift(shift=ops.frozen_array([1e8])), x)
    down = builder.add(ops.ScaleShift(shift=ops.frozen_array([-1e8])), builder.add(ops.Elementwise("relu"), up))
    graph = builder.build(builder.add(ops.Elementwise("relu"), down))
    got = certify_lipschitz(graph, [[0.0]], Box([[-(2.0**-40)]], [[2.0**-40]]), device="cpu")
    assert got.upper[0, 0] >= 1.0
    got = certify_lipschitz(graph, [[1.0]], Box([[0.5]], [[2.0]]), device="cpu")
    assert got.upper[0, 0] >= 1.0 >= got.lower[0, 0]


@pytest.mark.parametrize("radius", [1e-150, 1e-170, 1e-200])
def test_a_tiny_ball_is_not_certified_beyond_the_boundary(radius: float) -> None:
    # logits (a, −a) with a = x₀ + x₁ at the point (0, radius/4): the decision changes at distance radius/(4·√2).
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    graph = builder.build(builder.add(ops.Linear(np.array([[1.0, 1.0], [-1.0, -1.0]])), x))
    got = certified_radius(graph, [[0.0, radius / 4]], [0], norm="l2", max_radius=radius, device="cpu")
    assert 2 * Fraction(float(got.radius[0])) ** 2 <= Fraction(radius / 4) ** 2
    assert got.radius[0] > 0


@pytest.mark.parametrize("center", [1.0, 1e3, 1e8, 1e16])
@pytest.mark.parametrize("norm", [1, 2])
def test_what_is_attained_lies_in_the_ball(center: float, norm: int) -> None:
    import torch

    from mlflow_lipschitz.engine.attack.sampling import sample

    for radius in (1.2 * np.spacing(center), 1e-5, 0.1, 3.0):
        ball = LpBall(np.full((2, 3), center), radius, norm=norm)
        for point in sample(ball, 40, torch.Generator().manual_seed(0)).reshape(-1, 3).numpy():
            distance = [abs(Fraction(float(p)) - Fraction(center)) for p in point]
            exact = sum(distance) ** 2 if norm == 1 else sum(d * d for d in distance)
            assert exact <= Fraction(float(radius)) ** 2


@pytest.mark.parametrize("weight", [np.inf, np.nan, 1e308])
def test_overflow_is_unknown_and_never_nan(weight: float) -> None:
    got = certify_lipschitz(chain(weight, "relu", 1e308), [[1.0]], Box([[-1.0]], [[2.0]]), device="cpu")
    assert got.upper[0, 0] == np.inf and got.status[0, 0] == "undecided"
    assert got.lower[0, 0] <= got.upper[0, 0]


def test_a_huge_box_overflows_upwards() -> None:
    import torch

    box = Box([[-1.7e308]], [[-1.6e308]])
    assert box.support(torch.ones((1, 1, 1, 1), dtype=torch.float64)).item() >= -1.6e308


def curve_chain(*layers: float | tuple[str, tuple[float, ...]]) -> Graph:
    """As `chain`, for curves with parameters."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    for layer in layers:
        x = builder.add(ops.Elementwise(*layer) if isinstance(layer, tuple) else ops.Linear(np.full((1, 1), layer)), x)
    return builder.build(x)


@pytest.mark.parametrize(
    ("layers", "least", "most"),
    [
        ((1e160, ("log", ())), Fraction(1, 3), Fraction(1)),
        ((1e110, ("atan", ()), 1e110), Fraction(112, 1000), Fraction(999, 1000)),
        ((1e110, ("softsign", ()), 1e110), Fraction(112, 1000), Fraction(999, 1000)),
        ((1e217, ("sqrt", ()), 1e-108), Fraction(9129, 10000), Fraction(15811, 10000)),
        ((-1e108, ("power", (1.0, -1.0)), 1e108), Fraction(112, 1000), Fraction(999, 1000)),
    ],
    ids=lambda value: str(value),
)
def test_a_slope_that_underflows_is_not_a_slope_of_zero(
    layers: tuple[float | tuple[str, tuple[float, ...]], ...], least: Fraction, most: Fraction
) -> None:
    """On [1, 3] the derivative takes every value from `least` to `most` (between 1/9, 1/3 and 1), at any scale."""
    got = certify_monotonicity(curve_chain(*layers), [[2.0]], Box([[1.0]], [[3.0]]), device="cpu")
    assert Fraction(float(got.lower[0, 0])) <= least
    assert Fraction(float(got.upper[0, 0])) >= most


@pytest.mark.parametrize("exponent", [0.3, 1 / 3, -0.3, -1.7, -3.1, -15.4, 0.01])
@pytest.mark.parametrize("z", [1e-100, 1e-6, 0.1, 10.0, 1e6, 1e100])
def test_the_exponent_of_a_derivative_is_rounded(exponent: float, z: float) -> None:
    with mpmath.workprec(400):
        truth = mpmath.mpf(exponent) * mpmath.mpf(z) ** (mpmath.mpf(exponent) - 1)
        got = certify_monotonicity(curve_chain(("power", (1.0, exponent))), [[z]], Box([[z]], [[z]]), device="cpu")
        assert mpmath.mpf(float(got.lower[0, 0])) <= truth <= mpmath.mpf(float(got.upper[0, 0]))


def test_a_whole_exponent_too_large_to_be_odd_or_even_has_no_derivative() -> None:
    with pytest.raises(UnsupportedOperator, match="no Clarke derivative"):
        certify_monotonicity(
            curve_chain(("power", (1.0, 2.0**53 + 2))), [[-1.0]], Box([[-1.0]], [[-1.0]]), device="cpu"
        )


def test_a_coefficient_multiplies_what_a_power_lost() -> None:
    got = bound_nodes(Problem.of(curve_chain(("power", (1e300, -2.0))), Box([[1e155]], [[1e155]])), None)[-1].interval
    with mpmath.workprec(400):
        assert mpmath.mpf(float(got.upper)) >= mpmath.mpf(1e300) / mpmath.mpf(1e155) ** 2


def test_the_last_bit_of_a_subnormal_end_is_not_lost() -> None:
    end = 5e-324
    reached = Box([[0.0]], [[end]]).support(torch.full((1, 1, 1, 1), 1e300, dtype=torch.float64))
    assert Fraction(float(reached)) >= Fraction(1e300) * Fraction(end)


@pytest.mark.parametrize(("low", "high"), [(2, 3), (3, 3), (-3, 4), (1, 2)])
def test_a_subnormal_slope_keeps_its_last_bit(low: int, high: int) -> None:
    bit, coefficient = 5e-324, 1e300
    lines = [torch.full((1, 1, 1), units * bit, dtype=torch.float64) for units in (low, high)]
    zero = torch.zeros((1, 1, 1), dtype=torch.float64)
    planes = Relaxation((0,), (lines[0],), zero, (lines[1],), zero)
    passed = float(planes.backward(torch.full((1, 1, 1, 1), coefficient, dtype=torch.float64)).passed[0][1])
    assert Fraction(passed) >= Fraction(coefficient) * high * Fraction(bit) * (1 - Fraction(1, 2**40))
