"""Served programs are never farther from the exact function than the error analysis says: no tolerance, exact arithmetic."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import mlflow_lipschitz as ml
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.rules.curves.table import facts_of
from mlflow_lipschitz.engine.served.formats import FORMATS, format_named
from mlflow_lipschitz.engine.served.libraries import LIBRARIES
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph
from mlflow_lipschitz.errors import InvalidRegion, UsageError
from tests import exact
from tests.cases import DIFFERENTIABLE, JUMPS, draw, points_of
from tests.served import CURVES, serve

# A power whose exponent no float32 is.
NOT_ASSUMED = {"power, fractional"}
ROUNDOFFS = 2.0**-24


def deviations(graph: Graph, point: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Exact |answer − exact value|, per output."""
    lift = exact.number(graph)
    return np.array([abs(lift(float(a)) - v) for a, v in zip(answer, exact.values_at(graph, point), strict=True)])


def require_within(graph: Graph, region: Any, points: np.ndarray, bounds: np.ndarray, format: str = "float32") -> None:
    rng = np.random.default_rng(0)
    lift = exact.number(graph)
    for point in points:
        found = deviations(graph, point, serve(graph, point, rng, format))
        assert all(d <= lift(float(b)) for d, b in zip(found, bounds, strict=True) if np.isfinite(b)), (found, bounds)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_served_values_lie_within_the_error(name: str) -> None:
    for radius in (0.0, 0.125):
        graph, points = draw(name, seed=1)
        region = ml.Box.around(points, radius)
        bounds = ml.served_error_bounds(graph, region)
        assert bounds.shape == (len(points), math.prod(graph.output_shape)) and not np.isnan(bounds).any()
        for row, bound in enumerate(bounds):
            inside = points_of(np.random.default_rng(row), region.lower[row].numpy(), region.upper[row].numpy(), 3)
            require_within(graph, region, inside, bound)


@pytest.mark.parametrize("name", sorted(set(DIFFERENTIABLE) - NOT_ASSUMED))
def test_something_is_known_of_every_op(name: str) -> None:
    graph, points = draw(name, seed=2)
    assert ml.why_unserved(graph) == ""
    bounds = ml.served_error_bounds(graph, ml.Box.around(points, 0.0))
    finite = np.isfinite(bounds).all(1)
    # A logarithm or a quotient may be asked beside its domain at some points.
    assert finite.any() and np.all(bounds[finite] < 1e-2), bounds


@pytest.mark.parametrize("format", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "matmul", "softmax", "gelu", "tanh", "maximum", "add (residual)", "exp"]
)
def test_coarser_formats(name: str, format: str) -> None:
    graph, points = draw(name, seed=3)
    bounds, fine = (ml.served_error_bounds(graph, ml.Box.around(points, 0.0), f) for f in (format, "float32"))
    assert np.all(bounds > fine)
    for row, bound in enumerate(bounds):
        require_within(graph, None, points[row : row + 1], bound, format)


def chain(*operators: ops.Op, inputs: int = 2) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((inputs,)))
    for op in operators:
        x = builder.add(op, x)
    return builder.build(x)


def mlp(rng: np.random.Generator, widths: list[int], curve: str, scale: float = 1.0) -> Graph:
    layers: list[ops.Op] = []
    for n, m in itertools.pairwise(widths):
        weight = (rng.normal(size=(m, n)) * scale / math.sqrt(n)).astype(np.float32).astype(np.float64)
        layers += [ops.Linear(weight, rng.normal(size=m).astype(np.float32).astype(np.float64)), ops.Elementwise(curve)]
    return chain(*layers[:-1], inputs=widths[0])


@pytest.mark.parametrize("curve", ["relu", "tanh", "sigmoid", "gelu", "softplus"])
def test_deep_networks_in_any_order_of_summation(curve: str) -> None:
    rng = np.random.default_rng(5)
    graph = mlp(rng, [6, 8, 8, 3], curve)
    points = rng.normal(size=(3, 6))
    for radius in (0.0, 0.01, 0.3):
        region = ml.Box.around(points, radius)
        bounds = ml.served_error_bounds(graph, region)
        assert np.all(bounds < 1e-4)
        for row in range(len(points)):
            inside = points_of(rng, region.lower[row].numpy(), region.upper[row].numpy(), 6)
            require_within(graph, region, inside, bounds[row])


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e10, 1e30])
def test_scaled_weights_are_right_or_infinite(scale: float) -> None:
    rng = np.random.default_rng(6)
    weights = [
        (rng.normal(size=(4, 4)) * factor).astype(np.float32).astype(np.float64) for factor in (scale, 1 / scale, scale)
    ]
    graph = chain(*(op for w in weights for op in (ops.Linear(w), ops.Elementwise("relu"))), inputs=4)
    points = rng.normal(size=(4, 4))
    bounds = ml.served_error_bounds(graph, ml.Box.around(points, 0.0))
    for row in range(len(points)):
        require_within(graph, None, points[row : row + 1], bounds[row])


def test_what_is_flushed_to_zero_is_counted() -> None:
    tiny = 2.0**-126
    graph = chain(
        ops.Linear(np.array([[2.0**-120, 0.0]])),
        ops.ScaleShift(scale=np.array(2.0**-10)),
        ops.ScaleShift(scale=np.array(2.0**100)),
    )
    points = np.array([[1.0, 1.0]])
    (bound,) = ml.served_error_bounds(graph, ml.Box.around(points, 0.0))
    # Kept, the denormal number in the middle is exact; flushed, the answer is 0.
    assert exact.values_at(graph, points[0])[0] == 2.0**-30 and bound[0] >= 2.0**-30 > 2.0**90 * tiny
    # A weight that is itself denormal may be read as zero.
    lost = chain(ops.Linear(np.array([[2.0**-130, 0.0]])))
    (bound,) = ml.served_error_bounds(lost, ml.Box.around(np.array([[1e20, 0.0]]), 0.0))
    assert bound[0] >= 2.0**-130 * 1e20


@pytest.mark.parametrize("largest", [3e38, 3.5e38])
def test_an_overflow_is_unknown(largest: float) -> None:
    graph = chain(ops.Linear(np.array([[1.0, 1.0]])), ops.Linear(np.array([[0.0]])))
    points = np.array([[largest, largest]])
    assert np.isinf(ml.served_error_bounds(graph, ml.Box.around(points, 0.0))).all()
    # In the middle of a sum too, whatever its end is.
    graph = chain(ops.Linear(np.array([[1.0, -1.0]])))
    assert np.isinf(ml.served_error_bounds(graph, ml.Box.around(np.array([[2e38, 2e38]]), 0.0))).all()


def test_a_constant_beyond_the_format_is_named() -> None:
    graph = chain(ops.Linear(np.array([[1e39, 0.0]])))
    assert "exceed the largest number of float32" in ml.why_unserved(graph)
    assert np.isinf(ml.served_error_bounds(graph, ml.Box.around(np.zeros((1, 2)), 0.0))).all()
    assert ml.why_unserved(chain(ops.Linear(np.array([[1e5, 0.0]]))), "float32") == ""
    assert "float16" in ml.why_unserved(chain(ops.Linear(np.array([[1e5, 0.0]]))), "float16")


def test_cancellation_is_seen() -> None:
    """x + 1e8 − 1e8: the exact function is x, the served one a multiple of 8."""
    graph = chain(ops.ScaleShift(shift=np.array(1e8)), ops.ScaleShift(shift=np.array(-1e8)))
    points = np.array([[3.0, -5.0]])
    (bound,) = ml.served_error_bounds(graph, ml.Box.around(points, 0.0))
    assert np.all(bound >= 3) and np.all(bound < 1000)
    require_within(graph, None, points, bound)


def test_a_rounding_that_cancels_on_its_way_to_the_output_does_not_count() -> None:
    """(a + b) − (a + b) of a = 10⁴ x: what a was rounded by is in both sums; what each sum rounds is not."""
    sums, difference = ops.Linear(np.ones((2, 2))), ops.Linear(np.array([[1.0, -1.0]]))
    graph = chain(ops.ScaleShift(scale=np.array(1e4)), sums, difference)
    (bound,) = ml.served_error_bounds(graph, ml.Box.around(np.ones((1, 2)), 0.0))
    by_sums, by_difference = 2 * 6 * 2e4, 6 * 4e4
    assert ROUNDOFFS * 4e4 < bound[0] < 1.01 * ROUNDOFFS * (by_sums + by_difference)
    require_within(graph, None, np.ones((1, 2)), bound)


def test_the_bound_grows_no_faster_than_it_must() -> None:
    """Of one sum of n products: between the error that some order makes and the textbook's."""
    rng = np.random.default_rng(7)
    n = 64
    weight = np.abs(rng.normal(size=(1, n))).astype(np.float32).astype(np.float64)
    point = np.abs(rng.normal(size=(1, n))).astype(np.float32).astype(np.float64)
    (bound,) = ml.served_error_bounds(chain(ops.Linear(weight), inputs=n), ml.Box.around(point, 0.0))
    size = float((weight * point).sum())
    assert 5 * ROUNDOFFS * size < bound[0] < 1.05 * (n + 6) * ROUNDOFFS * size


@pytest.mark.parametrize("name", JUMPS)
def test_a_rounded_activation_is_unknown_and_named(name: str) -> None:
    graph, points = draw(name, seed=0)
    assert "Rounding" in ml.why_unserved(graph)
    assert np.isinf(ml.served_error_bounds(graph, ml.Box.around(points, 0.0))).all()


def test_what_a_served_program_computes_otherwise_is_unknown_and_named() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    joined = builder.add(ops.Linear(np.eye(2)), x, name="conv1")
    builder.mark_unserved([joined], "its steps are joined")
    graph = builder.build(joined)
    assert ml.why_unserved(graph) == "Linear 'conv1': its steps are joined"
    assert np.isinf(ml.served_error_bounds(graph, ml.Box.around(np.ones((1, 2)), 0.0))).all()
    # The mark stays on a graph that is made from this one, and says nothing of what it computes.
    assert ml.why_unserved(GraphBuilder(graph).build(graph.output)) != ""
    assert graph.content_hash() == chain(ops.Linear(np.eye(2))).content_hash()


def test_the_served_steps_are_those_that_count() -> None:
    from dataclasses import replace

    steps = chain(ops.ScaleShift(shift=np.array(1e8)), ops.ScaleShift(shift=np.array(-1e8)))
    joined = replace(chain(ops.ScaleShift(scale=np.array(1.0))), served=steps)
    region = ml.Box.around(np.ones((1, 2)), 0.0)
    assert np.array_equal(ml.served_error_bounds(joined, region), ml.served_error_bounds(steps, region))
    assert joined.with_output(joined.output).served is None


def test_a_derivative_is_not_served() -> None:
    graph = gradient_graph(chain(ops.Linear(np.eye(2)), ops.Elementwise("tanh")))
    assert "Cotangent" in ml.why_unserved(graph)


def test_more_points_than_fit_are_taken_in_turns() -> None:
    rng = np.random.default_rng(8)
    graph = mlp(rng, [3, 4, 2], "relu")
    region = ml.Box.around(rng.normal(size=(40, 3)), 0.1)
    assert np.array_equal(ml.served_error_bounds(graph, region, chunk_size=16), ml.served_error_bounds(graph, region))


def test_errors_of_use() -> None:
    graph = chain(ops.Linear(np.eye(2)))
    with pytest.raises(UsageError, match=r"format='int8': choose one of float32, bfloat16, float16"):
        ml.served_error_bounds(graph, ml.Box.around(np.zeros((1, 2)), 0.0), "int8")
    with pytest.raises(InvalidRegion):
        ml.served_error_bounds(graph, ml.Box.around(np.zeros((1, 3)), 0.0))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_what_torch_says(name: str) -> None:
    form, kind = format_named(name), torch.finfo(getattr(torch, name))
    assert (form.unit, form.tiny, form.largest) == (kind.eps / 2, kind.tiny, kind.max)
    assert form.holds(1.5) and form.holds(0.0) and not form.holds(0.1) and not form.holds(kind.max * 2.0)


# Where each curve is tried: everywhere that a float32 network computes, and beside its turns.
RANGES = {
    "exp": (-87.0, 80.0),
    "log": (1e-30, 1e30),
    "sqrt": (1e-30, 1e30),
    "reciprocal": (1e-20, 1e20),
    "power": (1e-3, 1e3),
}
PARAMETERS = {
    "leaky_relu": (0.125,), "clip": (-1.0, 2.0), "elu": (1.5, 1.25), "celu": (0.75,), "power": (1.0, 2.5),
}  # fmt: skip


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_are_as_accurate_as_is_assumed(name: str) -> None:
    """torch's float32 curves against the float64 ones, on many arguments; a float64 curve is itself off by far less."""
    facts, accuracy = facts_of(name, PARAMETERS.get(name, ())), LIBRARIES[name]
    low, high = RANGES.get(name, (-60.0, 60.0))
    generator = torch.Generator().manual_seed(0)
    if low > 0:
        z = torch.exp(torch.empty(200_000).uniform_(math.log(low), math.log(high), generator=generator))
    else:
        z = torch.cat([torch.empty(100_000).uniform_(a, b, generator=generator) for a, b in ((low, high), (-2.0, 2.0))])
    served = CURVES[name](z, *PARAMETERS.get(name, ())).to(torch.float64)
    argument = z.to(torch.float64)
    true = facts.value(argument)
    scale = math.prod(max(1.0, abs(p)) for p in PARAMETERS.get(name, ())) if accuracy.scaled else 1.0
    allowed = accuracy.relative * true.abs() + accuracy.absolute * scale + accuracy.argument * argument.abs()
    assert bool(((served - true).abs() <= ROUNDOFFS / 2 * allowed + 2.0**-126).all()), "less than half of it is used"
