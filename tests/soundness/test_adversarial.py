"""Models and regions made to break a bound: each is answered rightly, or with "undecided", or refused; never with a wrong bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from mlflow_lipschitz.certify import (
    Budget,
    certified_radius,
    certify_lipschitz,
    certify_monotonicity,
    find_violation,
)
from mlflow_lipschitz.certify.objectives import cotangents
from mlflow_lipschitz.engine.domains.region import Box, LpBall, Region
from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph
from mlflow_lipschitz.errors import InvalidRegion, UnsupportedOperator, UsageError
from tests.soundness.claims import Claims, Tally, violations
from tests.soundness.probes import look
from tests.soundness.regions import contains

Layer = tuple[Any, Any]
NORMS = ("linf", "l2", "l1")
REPEATABLE = Budget(1e6, 0.0, parts_per_point=6)


def mlp(*layers: Layer, curve: str = "relu") -> Graph:
    """Linear layers (weight, bias or None) with a curve between them."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((np.shape(layers[0][0])[1],)))
    for i, (weight, bias) in enumerate(layers):
        x = x if i == 0 else builder.add(ops.Elementwise(curve), x)
        x = builder.add(ops.Linear(ops.frozen_array(weight), None if bias is None else ops.frozen_array(bias)), x)
    return builder.build(x)


def drawn(rng: np.random.Generator, *scales: float, curve: str = "relu", inputs: int = 3) -> Graph:
    """A random network; layer k's weights and biases are scaled by scales[k]."""
    widths = [inputs, *[4] * (len(scales) - 1), 2]
    pairs = zip(widths[:-1], widths[1:], scales, strict=True)
    return mlp(*((rng.normal(size=(m, n)) * s, rng.normal(size=m) * s) for n, m, s in pairs), curve=curve)


def hold(graph: Graph, points: np.ndarray, region: Region, budget: Budget | None = None) -> float:
    """All claims of the three norms and of derivatives hold at the points where they are most in danger.

    Returns:
        the largest Lipschitz bound.
    """
    rng, count = np.random.default_rng(0), len(points)
    with np.errstate(all="ignore"):
        looked = look(graph, region, torch.Generator().manual_seed(0), differentiable=True)
    assert looked.jacobian is not None
    objectives = cotangents(math.prod(graph.output_shape), None, count)[0][0].numpy()
    mono = certify_monotonicity(graph, points, region, budget=budget, device="cpu")
    assert not (np.isnan(mono.lower) | np.isnan(mono.upper)).any()
    worst = 0.0
    for norm in NORMS:
        got = certify_lipschitz(graph, points, region, norm=norm, budget=budget, device="cpu")
        assert not np.isnan(got.upper).any() and (got.lower <= got.upper).all()
        assert ((got.status == "certified") == np.isfinite(got.upper)).all()
        worst = max(worst, float(got.upper.max()))
        for row in range(count):
            ends = mono.lower[row].reshape(-1), mono.upper[row].reshape(-1)
            claims = Claims(row, (got.upper[row], norm, objectives), (*ends, 0))
            with np.errstate(all="ignore"):
                size = np.abs(looked.jacobian[:, row]).sum((1, 2))
            at = looked.worst(region, row, size)
            for x in (points[row], at):
                if x is not None and contains(region, row, x):
                    assert violations(graph, claims, x, rng, Tally()) == []
    return worst


SCALES = [
    (1e30, 1e-30),
    (1e-30, 1e30),
    (1e30, 1e-30, 1e30),
    (1e-30,) * 3,
    (1e150, 1e150, 1e-290),
    (1e30,) * 3,
    (1e200, 1e200),
]


@pytest.mark.parametrize("curve", ["relu", "tanh"])
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_weights_of_every_scale(scales: tuple[float, ...], curve: str) -> None:
    rng = np.random.default_rng(len(scales))
    graph, points = drawn(rng, *scales, curve=curve), rng.normal(size=(3, 3))
    points[0] = 0.0
    worst = hold(graph, points, Box.around(points, 0.25))
    if curve == "relu" and math.prod(scales) < 1e200:
        assert worst < np.inf, "a scale that float64 holds is no reason to give up"


@pytest.mark.parametrize("tiny", [5e-324, 1e-310, -(2.0**-1040)])
@pytest.mark.parametrize("curve", ["relu", "tanh", "gelu"])
def test_denormal_weights_and_biases(tiny: float, curve: str) -> None:
    rng = np.random.default_rng(1)
    for where in range(4):
        layers = [[rng.normal(size=(3, 2)), rng.normal(size=3)], [rng.normal(size=(2, 3)), rng.normal(size=2)]]
        layers[where // 2][where % 2] = np.full_like(layers[where // 2][where % 2], tiny)
        points = rng.normal(size=(1, 2))
        hold(mlp(*((w, b) for w, b in layers), curve=curve), points, Box.around(points, 0.5))


def test_denormal_regions() -> None:
    points = np.array([[5e-324, -5e-324], [0.0, 1e-310]])
    graph = mlp(([[1.0, 1e300], [1.0, -1.0]], None), ([[1.0, -1.0]], [0.0]))
    hold(graph, points, Box(points, points))
    hold(graph, points, Box(np.minimum(points, 0.0), points + 5e-324))
    hold(graph, points, LpBall(points, 1e-320))


@pytest.mark.parametrize("big", [1e8, 1e16, 2.0**60])
@pytest.mark.parametrize("curve", ["relu", "abs", "clip"])
def test_catastrophic_cancellation(big: float, curve: str) -> None:
    # relu(x + big) − big, and then a kink: float64 loses x, the bound must not.
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    up = builder.add(ops.Linear(ops.frozen_array(np.eye(2)), ops.frozen_array([big, big])), x)
    back = builder.add(ops.ScaleShift(shift=ops.frozen_array([-big, -big])), builder.add(ops.Elementwise("relu"), up))
    kinked = builder.add(ops.Elementwise(curve, (-1.0, 1.0) if curve == "clip" else ()), back)
    graph = builder.build(builder.add(ops.Linear(ops.frozen_array([[1.0, -1.0], [1.0, 1.0]])), kinked))
    points = np.array([[0.0, 0.0], [2.0**-30, -(2.0**-30)], [0.5, 0.25]])
    for region in (Box(points, points), Box.around(points, 2.0**-31)):
        hold(graph, points, region)
    assert certify_lipschitz(graph, points, Box(points, points), outputs=1, device="cpu").upper[2, 0] >= 2.0


@pytest.mark.parametrize(("curve", "budget"), [("relu", None), ("tanh", REPEATABLE)])
@pytest.mark.parametrize("where", range(4), ids=["first weight", "first bias", "last weight", "last bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_constant_that_is_no_number_bounds_nothing(
    value: float, where: int, curve: str, budget: Budget | None
) -> None:
    rng = np.random.default_rng(2)
    layers = [[rng.normal(size=(3, 2)), rng.normal(size=3)], [rng.normal(size=(2, 3)), rng.normal(size=2)]]
    layers[where // 2][where % 2].flat[1] = value
    graph, points = mlp(*((w, b) for w, b in layers), curve=curve), rng.normal(size=(2, 2))
    box = Box.around(points, 0.1)
    for norm in NORMS:
        got = certify_lipschitz(graph, points, box, norm=norm, budget=budget, device="cpu")
        assert (got.upper == np.inf).all() and (got.lower == 0).all() and (got.status == "undecided").all()
    mono = certify_monotonicity(graph, points, box, budget=budget, device="cpu")
    assert (mono.sign == 0).all() and (mono.lower == -np.inf).all() and (mono.upper == np.inf).all()
    assert not find_violation(graph, points, box, feature=0, direction="increasing").found.any()
    if not (np.isinf(value) and where in (1, 3)):
        radius = certified_radius(graph, points, [0, 0], device="cpu")
        assert (radius.radius == 0).all() and (radius.status == "undecided").all()


def test_a_constant_of_any_operator_is_looked_at() -> None:
    def held(op: ops.Op, shape: tuple[int, ...] = (1, 2)) -> ops.Op:
        builder = GraphBuilder()
        x = builder.add(op, builder.add(ops.Input(shape)))
        return gradient_graph(builder.build(x)).nodes[-2].op

    nan = ops.frozen_array([[[np.nan]]])
    conv = ops.Conv(ops.frozen_array([[[1.0]]]), None, (1,), ((0, 0),), (1,))
    bad = (
        ops.ScaleShift(shift=ops.frozen_array(np.inf)),
        ops.Pad(((0, 0), (0, 1)), value=np.inf),
        ops.Conv(conv.weight, nan[0, 0], (1,), ((0, 0),), (1,)),
        ops.Adjoint(ops.Conv(nan, None, (1,), ((0, 0),), (1,)), (1, 2)),
    )
    for op in bad:
        poison = held(op)
        assert isinstance(poison, ops.ScaleShift) and poison.scale is not None and np.isnan(poison.scale).all()
    for op in (ops.Elementwise("clip", (0.0, np.inf)), ops.Pad(((0, 0), (0, 1))), ops.Adjoint(conv, (1, 2))):
        assert not isinstance(held(op), ops.ScaleShift)


def test_a_model_with_a_constant_that_is_no_number_is_refused() -> None:
    import mlflow_lipschitz as ml

    for name, value in (("weight", np.inf), ("bias", np.nan)):
        layer = torch.nn.Linear(2, 2)
        with torch.no_grad():
            getattr(layer, name).view(-1)[0] = value
        with pytest.raises(UnsupportedOperator, match="NaN or infinit"):
            ml.trace(torch.nn.Sequential(layer, torch.nn.ReLU()), torch.zeros(1, 2))


KINKS = {
    "relu": ((), 0.0, 0, 1),
    "leaky_relu": ((0.01,), 0.0, 0.01, 1),
    "abs": ((), 0.0, -1, 1),
    "clip": ((-0.5, 2.0), -0.5, 0, 1),
    "hard_swish": ((), -3.0, -0.5, 0),
    "elu": ((0.5, 1.0), 0.0, 0.5, 1),
}


@pytest.mark.parametrize("curve", KINKS)
@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_on_a_kink_has_the_whole_clarke_hull(curve: str, norm: str) -> None:
    parameters, place, left, right = KINKS[curve]
    builder = GraphBuilder()
    kinked = builder.add(ops.Elementwise(curve, parameters), builder.add(ops.Input((1,))))
    graph = builder.build(builder.add(ops.Linear(ops.frozen_array([[3.0]])), kinked))
    at = np.array([[place]])
    for region in (Box(at, at), Box.around(at, 0.0), LpBall(at, 0.0), LpBall(at, 0.0, norm=1)):
        mono = certify_monotonicity(graph, at, region, device="cpu")
        low, high = sorted((3 * Fraction(left), 3 * Fraction(right)))
        assert Fraction(float(mono.lower[0, 0])) <= low and Fraction(float(mono.upper[0, 0])) >= high
        assert mono.sign[0, 0] in (0, 1 if low >= 0 else -1 if high <= 0 else 0)
        got = certify_lipschitz(graph, at, region, norm=norm, device="cpu")
        assert Fraction(float(got.upper[0, 0])) >= max(abs(low), abs(high))


def test_radius_zero_on_a_tie_has_both_sides() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    a, b = (builder.add(ops.Select(0, (i,)), x) for i in range(2))
    graph = builder.build(building.maximum(builder, a, b))
    at = np.array([[0.75, 0.75]])
    mono = certify_monotonicity(graph, at, Box(at, at), device="cpu")
    assert (mono.lower <= 0).all() and (mono.upper >= 1).all()
    hold(graph, at, Box(at, at))


@pytest.mark.parametrize("radius", [1e6, 1e30, 1e300])
@pytest.mark.parametrize("curve", ["relu", "tanh", "gelu", "softplus", "exp", "square", "sin", "hard_swish"])
def test_a_radius_at_which_everything_is_unstable(curve: str, radius: float) -> None:
    rng = np.random.default_rng(3)
    graph, points = drawn(rng, 1.0, 1.0, curve=curve, inputs=2), rng.normal(size=(2, 2))
    worst = hold(graph, points, Box.around(points, radius) if curve < "m" else LpBall(points, radius))
    if curve in ("relu", "tanh", "gelu", "softplus", "sin"):
        assert worst < 1e3, "the curve's slope is bounded, and so is the constant, however large the region"


def test_duplicated_rows_have_the_same_bounds() -> None:
    rng = np.random.default_rng(4)
    graph, row = drawn(rng, 1.0, 1.0, 1.0, curve="tanh"), rng.normal(size=(1, 3))
    points = np.concatenate([row, rng.normal(size=(1, 3)), row, row])
    box = Box.around(points, 0.5)
    for budget in (None, REPEATABLE):
        got = certify_lipschitz(graph, points, box, budget=budget, device="cpu")
        assert (got.upper[[2, 3]] == got.upper[0]).all()
        mono = certify_monotonicity(graph, points, box, budget=budget, device="cpu")
        assert (mono.lower[[2, 3]] == mono.lower[0]).all() and (mono.upper[[2, 3]] == mono.upper[0]).all()
    radius = certified_radius(graph, points, [0] * 4, device="cpu").radius
    assert (radius[[2, 3]] == radius[0]).all()


def test_a_hundred_thousand_features() -> None:
    count = 100_000
    rng = np.random.default_rng(5)
    weight, last = rng.integers(-8, 9, (4, count)) / 1024, rng.integers(-8, 9, (2, 4)) / 4
    points = rng.integers(-8, 9, (1, count)) / 8
    active = points @ weight.T > 0  # of dyadic numbers: exact
    graph = mlp((weight, None), (last, None))
    gradient = (last * active) @ weight  # exact too
    got = certify_lipschitz(graph, points, Box.around(points, 2.0**-30), device="cpu")
    assert (np.abs(gradient).sum(1) <= got.upper[0]).all()
    np.testing.assert_allclose(got.upper[0], np.abs(gradient).sum(1), rtol=1e-6)


def test_identical_features_are_bounded_alike() -> None:
    rng = np.random.default_rng(6)
    column = rng.normal(size=(4, 1))
    graph = mlp((np.concatenate([column, column, column], 1), rng.normal(size=4)), (rng.normal(size=(1, 4)), None))
    points = np.array([[0.25, 0.25, 0.25], [1.0, -1.0, 0.5]])
    box = Box.around(points, 0.5)
    mono = certify_monotonicity(graph, points, box, device="cpu")
    for end in (mono.lower, mono.upper):
        np.testing.assert_allclose(end[:, 1:], end[:, :1].repeat(2, 1), rtol=1e-12)
    hold(graph, points, box)


def test_dead_units_have_no_slope_and_are_called_so() -> None:
    rng = np.random.default_rng(7)
    graph = mlp((rng.normal(size=(4, 3)), np.full(4, -100.0)), (rng.normal(size=(2, 4)), rng.normal(size=2)))
    points = rng.normal(size=(2, 3))
    for norm in NORMS:
        got = certify_lipschitz(graph, points, Box.around(points, 1.0), norm=norm, device="cpu")
        assert (got.upper == 0).all() and (got.lower == 0).all() and (got.status == "certified").all()
    hold(graph, points, Box.around(points, 1.0))
    # Dead by exactly nothing: at the edge of the region a unit touches its kink.
    edge = mlp(([[1.0]], [-1.0]), ([[5.0]], None))
    at = np.array([[0.5]])
    got = certify_lipschitz(edge, at, Box([[0.0]], [[1.0]]), device="cpu")
    assert got.upper[0, 0] >= 5.0, "the Clarke derivative at the kink belongs to the region"


@pytest.mark.parametrize("budget", [None, REPEATABLE], ids=["one pass", "searched"])
def test_an_output_that_does_not_depend_on_the_input(budget: Budget | None) -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((3,)))
    nothing = builder.add(ops.Linear(ops.frozen_array(np.zeros((2, 3))), ops.frozen_array([2.0, 1.0])), x)
    constant = builder.build(builder.add(ops.Elementwise("tanh"), nothing))
    points = np.random.default_rng(8).normal(size=(2, 3))
    for region, norm in product((Box.around(points, 3.0), LpBall(points, 1e200)), NORMS):
        got = certify_lipschitz(constant, points, region, norm=norm, budget=budget, device="cpu")
        assert (got.upper == 0).all() and (got.lower == 0).all()
        assert (certify_monotonicity(constant, points, region, budget=budget, device="cpu").sign == 1).all()
    radius = certified_radius(constant, points, [0, 1], max_radius=7.0, device="cpu")
    assert radius.radius.tolist() == [7.0, 0.0] and radius.status.tolist() == ["certified", "violated"]


def test_a_bias_that_cancels_exactly() -> None:
    # Every unit is exactly zero at the point, and one of them everywhere: relu(w·x − w·x₀) and relu(0·x + 0).
    weight = np.array([[1.0, -0.5], [0.25, 2.0], [0.0, 0.0]])
    point = np.array([[0.5, -0.75]])
    graph = mlp((weight, -(weight @ point[0])), (np.array([[2.0, -1.0, 1e6]]), [0.0]))
    for region in (Box(point, point), Box.around(point, 2.0**-20), LpBall(point, 0.5, norm=1)):
        hold(graph, point, region)
    hold(graph, point, LpBall(point, 0.5), REPEATABLE)
    radius = certified_radius(graph, point, [0], device="cpu")
    assert radius.radius[0] == 0, "the output is zero at the point, on the boundary of the decision"


def test_what_is_equal_at_the_boundary_is_not_certified() -> None:
    graph = mlp(([[1.0, 0.0], [1.0, 0.0]], None))
    radius = certified_radius(graph, [[0.3, 0.1]], [0], device="cpu")
    assert radius.radius[0] == 0 and radius.status[0] != "certified"


POINTS = np.array([[0.5, 0.25], [1.0, 2.0]])


def broken_points(value: float) -> np.ndarray:
    points = POINTS.copy()
    points[1, 0] = value
    return points


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "ask",
    [
        lambda graph, bad: certify_lipschitz(graph, bad, Box.around(POINTS, 0.1), device="cpu"),
        lambda graph, bad: certify_monotonicity(graph, bad, Box.around(POINTS, 0.1), device="cpu"),
        lambda graph, bad: find_violation(graph, bad, Box.around(POINTS, 0.1), feature=0, direction="increasing"),
        lambda graph, bad: certified_radius(graph, bad, [0, 0], device="cpu"),
        lambda graph, bad: Box.around(bad, 0.1),
        lambda graph, bad: Box.around(POINTS, np.abs(bad)),
        lambda graph, bad: Box(bad, bad),
        lambda graph, bad: LpBall(bad, 0.1),
        lambda graph, bad: LpBall(POINTS, bad),
    ],
    ids=["lipschitz", "monotonicity", "violation", "radius", "box around", "reach", "box", "ball", "ball's reach"],
)
def test_points_and_regions_that_are_no_numbers_are_refused(
    value: float, ask: Callable[[Graph, np.ndarray], object]
) -> None:
    with pytest.raises(InvalidRegion, match="point 1"):
        ask(drawn(np.random.default_rng(9), 1.0, 1.0, inputs=2), broken_points(value))


def test_other_questions_that_are_no_numbers_are_refused() -> None:
    graph = drawn(np.random.default_rng(9), 1.0, 1.0, inputs=2)
    with pytest.raises(InvalidRegion, match="not finite"):
        Box.around(POINTS, 0.1, domain=(np.nan, 1.0))
    for settings in (
        {"max_radius": np.nan},
        {"max_radius": np.inf},
        {"feature_scale": np.nan},
        {"feature_scale": -1.0},
    ):
        with pytest.raises(UsageError):
            certified_radius(graph, POINTS, [0, 0], device="cpu", **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        certified_radius(graph, POINTS, [0, np.nan], device="cpu")
    got = certify_lipschitz(graph, POINTS, Box.around(POINTS, 0.1), feature_scale=[1.0, np.nan], device="cpu")
    assert (got.upper == np.inf).all() and (got.status == "undecided").all()
