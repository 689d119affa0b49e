"""Softmaxes and normalized values: ranges over boxes of any size, and Jacobians that stay bounded where compositions explode."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.certify import certify_lipschitz
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.registry import rule_for
from mlflow_lipschitz.engine.rules.weights import Weights
from mlflow_lipschitz.engine.transforms.clarke_jacobian import clarke_jacobian
from tests.properties import at_least, at_most

SPECIAL = (0.0, 1.0, -1.0, 5e-324, 1e-200, -1e-160, 40.0, -40.0, 700.0, -800.0, 1e5, -1e5, 1e160)
ends = st.lists(st.tuples(*[st.one_of(st.sampled_from(SPECIAL), st.floats(-6, 6))] * 2), min_size=1, max_size=4)
masks = st.integers(0, 15)


def interval(pairs: list[tuple[float, float]]) -> Interval:
    ordered = torch.tensor([sorted(pair) for pair in pairs], dtype=torch.float64)
    return Interval(ordered[None, None, :, 0], ordered[None, None, :, 1])


def unknown(x: Interval) -> Interval:
    return Interval(torch.full_like(x.lower, -torch.inf), torch.full_like(x.upper, torch.inf))


def corners(x: Interval) -> list[list[mpmath.mpf]]:
    """Both functions take their extremes at corners, but for squares that may be smallest at 0 or at an own end."""
    sides = [
        {low, high, min(max(0.0, low), high)} for low, high in zip(x.lower.flatten(), x.upper.flatten(), strict=True)
    ]
    return [[mpmath.mpf(float(v)) for v in point] for point in itertools.product(*sides)]


def assert_encloses(got: Interval, entry: int, values: list[mpmath.mpf], *, tight: bool) -> None:
    low, high = float(got.lower.flatten()[entry]), float(got.upper.flatten()[entry])
    assert at_most(low, min(values), mpmath.mpf) and at_least(high, max(values), mpmath.mpf)
    if tight:
        assert low == pytest.approx(float(min(values)), abs=1e-9, rel=1e-9)
        assert high == pytest.approx(float(max(values)), abs=1e-9, rel=1e-9)


def softmax_range(x: Interval, kept: np.ndarray | None) -> Interval:
    op = ops.LogSoftmax(kept)
    full = None if kept is None else torch.from_numpy(np.array(kept))
    return rule_for(op).interval(op, Weights(full), x, unknown(x))


@given(pairs=ends, mask=masks)
def test_the_range_of_a_log_softmax(pairs: list[tuple[float, float]], mask: int) -> None:
    x = interval(pairs)
    kept = np.array([float(mask >> i & 1) for i in range(len(pairs))])
    kept[0] = 1.0
    got = softmax_range(x, kept)
    moderate = float(x.magnitude.max()) <= 50
    for entry in np.flatnonzero(kept):
        values = [
            point[entry] - mpmath.log(sum(mpmath.exp(v) for v, k in zip(point, kept, strict=True) if k))
            for point in corners(x)
        ]
        assert_encloses(got, int(entry), values, tight=moderate)
    assert bool((got.upper[..., kept == 0] == torch.inf).all())


@given(pairs=ends, epsilon=st.sampled_from([0.0, 1e-5, 1.0]), factor=st.sampled_from([1.0, 0.25, 1 / 3]))
def test_the_range_of_a_normalized_value(pairs: list[tuple[float, float]], epsilon: float, factor: float) -> None:
    x, op = interval(pairs), ops.Normalized((0,), factor, epsilon)
    got = rule_for(op).interval(op, Weights(), x, unknown(x), unknown(x))
    moderate = epsilon > 0 and float(x.magnitude.min()) > 1e-100 and float(x.magnitude.max()) < 1e5
    for entry in range(len(pairs)):
        values = []
        for point in corners(x):
            size = mpmath.mpf(factor) * sum(v * v for v in point) + mpmath.mpf(epsilon)
            if size > 0:  # without it there is no value
                values.append(point[entry] / mpmath.sqrt(size))
        if values:
            assert_encloses(got, entry, values, tight=moderate)
    assert float(got.magnitude.max()) <= factor**-0.5 * (1 + 1e-9)


@pytest.mark.parametrize("infinite", [(-np.inf, np.inf), (-np.inf, 0.0), (0.0, np.inf)])
def test_unbounded_scores_and_entries_give_no_nan(infinite: tuple[float, float]) -> None:
    x = interval([infinite, (0.0, 1.0)])
    normalized = ops.Normalized((0,), 0.5, 0.0)
    for got in (
        softmax_range(x, None),
        rule_for(normalized).interval(normalized, Weights(), x, unknown(x), unknown(x)),
    ):
        assert not bool(got.lower.isnan().any() | got.upper.isnan().any())
        assert bool((got.lower <= got.upper).all())


def log_softmax(size: int) -> Graph:
    builder = GraphBuilder()
    return builder.build(building.log_softmax(builder, builder.add(ops.Input((size,)))))


def test_scores_whose_exponentials_overflow_still_have_a_softmax() -> None:
    x = np.array([[1000.0, 999.0, -1000.0]])
    got = evaluate(log_softmax(3), x)[0].numpy()
    np.testing.assert_allclose(got, [-np.log1p(np.exp(-1)), -1 - np.log1p(np.exp(-1)), -2000 - np.log1p(np.exp(-1))])
    with torch.no_grad():
        bounds = bound_nodes(Problem.of(log_softmax(3), Box.around(x, 0.25)), None)[-1].interval
    assert bool((bounds.upper - bounds.lower <= 1.01).all())


def test_the_jacobian_of_a_softmax_is_bounded_over_any_box() -> None:
    # Every row of it is p (e − p), with an l1 norm of at most 1/2.
    builder = GraphBuilder()
    logarithm = building.log_softmax(builder, builder.add(ops.Input((4,))))
    graph = builder.build(builder.add(ops.Elementwise("exp"), logarithm))
    x = np.zeros((1, 4))
    wide = certify_lipschitz(graph, x, Box.around(x, 20.0), device="cpu")
    narrow = certify_lipschitz(graph, x, Box.around(x, 1e-6), device="cpu")
    assert (wide.upper <= 5.0).all()
    np.testing.assert_allclose(narrow.upper, 0.375, rtol=1e-4)


def test_a_normalized_value_is_steep_only_where_its_argument_is_small() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((4,)))
    value, r = building.normalized(builder, x, (0,), factor=0.25, epsilon=1e-5)
    graph = builder.build(value)
    point = np.array([[3.0, -4.0, 5.0, 6.0]])
    far = certify_lipschitz(graph, point, Box.around(point, 2.5), device="cpu")
    # 1 / √(mean x²) is 0.43 at the least, and |y| at most 2: r (1 + |y| Σ|y| / 4) stays below 5.
    assert (far.upper <= 5.0).all() and (far.lower >= 0.3).all()
    assert graph.output != r and builder.shape(r) == (1,)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [((), None), ((2,), np.zeros(2)), ((2, 2), np.array([[1.0, 0.0], [0.0, 0.0]])), ((2,), np.ones(3))],
)
def test_what_has_no_softmax_is_refused(shape: tuple[int, ...], kept: np.ndarray | None) -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input(shape))
    with pytest.raises(ValueError, match=r"softmax|LogSoftmax|broadcast|shape"):
        builder.add(ops.LogSoftmax(kept), x, x)


@pytest.mark.parametrize(("axes", "factor", "epsilon"), [((1,), 1.0, 0.0), ((0,), 0.0, 1.0), ((0,), 1.0, -1.0)])
def test_what_cannot_be_normalized_is_refused(axes: tuple[int, ...], factor: float, epsilon: float) -> None:
    builder = GraphBuilder()
    with pytest.raises(ValueError, match=r"Normalized|Sum"):
        building.normalized(builder, builder.add(ops.Input((2,))), axes, factor=factor, epsilon=epsilon)


def test_a_curve_of_one_value_is_bounded_once() -> None:
    builder = GraphBuilder()
    logarithm = building.log_softmax(builder, builder.add(ops.Input((3,))))
    gradient = clarke_jacobian(builder.build(builder.add(ops.Elementwise("exp"), logarithm)))
    of_value = [
        node.inputs for node in gradient.nodes if isinstance(node.op, ops.Elementwise) and node.op.curve == "exp"
    ]
    assert len(of_value) == len(set(of_value))
