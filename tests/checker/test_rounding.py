"""Float64 rounds; bounds do not. Where no relaxation leaves room, a bound in float64 must not be below the rational one."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from mlflow_lipschitz.checker.arithmetic import FLOATS, Arithmetic, floats_down, floats_up
from mlflow_lipschitz.checker.propagation import Problem, bound_entries, bound_nodes, largest
from mlflow_lipschitz.checker.regions import Region
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from tests.checker.certified import cnn, mlp

EVERYWHERE = (-np.inf, np.inf)


def _linear(rng: np.random.Generator, inputs: int, outputs: int, bias: bool = True) -> ops.Linear:
    weight = rng.normal(size=(outputs, inputs)) * 10.0 ** rng.integers(-3, 4, (outputs, inputs))
    return ops.Linear(ops.frozen_array(weight), ops.frozen_array(rng.normal(size=outputs)) if bias else None)


def affine(seed: int) -> Graph:
    """Branches that are added, set side by side, moved, scaled and summed."""
    rng, builder = np.random.default_rng(seed), GraphBuilder()
    x = builder.add(ops.Input((3,)))
    a, b = (builder.add(_linear(rng, 3, 4, bias), x) for bias in (True, False))
    added = builder.add(ops.Add(), a, b)
    factors = (ops.frozen_array(rng.normal(size=4)) for _ in range(2))
    scaled = builder.add(ops.ScaleShift(*factors), added)
    both = builder.add(ops.Concat(0), scaled, a)
    square = builder.add(ops.Reshape((2, 4)), both)
    total = builder.add(ops.Sum((1,)), square)
    spread = builder.add(ops.Expand((2, 4)), total)
    flat = builder.add(ops.Reshape((8,)), builder.add(ops.Add(), square, spread))
    return builder.build(builder.add(_linear(rng, 8, 3), flat))


def products(seed: int) -> Graph:
    rng, builder = np.random.default_rng(seed), GraphBuilder()
    x = builder.add(ops.Input((3,)))
    a, b = (builder.add(_linear(rng, 3, 3), x) for _ in range(2))
    return builder.build(builder.add(_linear(rng, 3, 3), builder.add(ops.Multiply(), a, b)))


def matrix_products(seed: int) -> Graph:
    rng, builder = np.random.default_rng(seed), GraphBuilder()
    x = builder.add(ops.Input((4,)))
    a, b = (builder.add(ops.Reshape((2, 2)), builder.add(_linear(rng, 4, 4), x)) for _ in range(2))
    return builder.build(builder.add(ops.MatMul(), a, b))


NETWORKS = {
    "affine": affine,
    "relu": lambda seed: mlp("relu", (3, 5, 4, 2), seed),
    "abs": lambda seed: mlp("abs", (3, 4, 2), seed),
    "convolution": cnn,
    "products": products,
    "matrix products": matrix_products,
}


def problems(graph: Graph, seed: int, radius: float, norm: str) -> tuple[Problem, Problem]:
    points = np.random.default_rng(seed).normal(size=(12, *graph.input_shape))
    region = Region.around(points, radius, norm, EVERYWHERE)
    return Problem(graph, region, None, FLOATS), Problem(graph, region, None, Arithmetic(True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NETWORKS)
def test_at_a_point_every_range_holds_the_rational_value(name: str, seed: int) -> None:
    """Nothing is relaxed where the input does not move: the rational bounds are the value, and nothing hides a lost error.

    Curves are asked about float64 numbers, rounded outward also in rational mode: behind one, the value has a bit of room.
    """
    floats, rationals = problems(NETWORKS[name](seed), seed, 0.0, "linf")
    (rough, _), (true, _) = bound_nodes(floats, None), bound_nodes(rationals, None)
    for index, node in rough.items():
        if name in ("affine", "products", "matrix products"):
            assert (true[index].lower == true[index].upper).all()
        assert (node.lower <= true[index].lower).all() and (true[index].upper <= node.upper).all()
    low, high = bound_entries(floats)
    assert (low <= true[floats.graph.output].lower).all() and (true[floats.graph.output].upper <= high).all()


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("seed", range(6))
def test_an_affine_graph_is_bounded_from_outside(seed: int, norm: str) -> None:
    graph = affine(seed)
    floats, rationals = problems(graph, seed, 0.1, norm)
    for rough, true, side in zip(bound_entries(floats), bound_entries(rationals), (-1, 1), strict=True):
        assert (side * rough >= side * true).all()
        assert np.abs(rough - true.astype(float)).max() <= 1e-12 * np.abs(rough).max()  # and tightly


@pytest.mark.parametrize("seed", range(6))
def test_a_combination_of_outputs_is_bounded_from_outside(seed: int) -> None:
    graph = affine(seed)
    floats, rationals = problems(graph, seed, 0.1, "linf")
    coeffs = np.random.default_rng(seed).normal(size=(12, 3))
    rough, true = (largest(replace(problem, coeffs=coeffs)) for problem in (floats, rationals))
    assert (rough >= true).all() and np.isfinite(rough).all()


def test_fractions_become_the_floats_next_to_them() -> None:
    third, tiny, huge = Fraction(1, 3), Fraction(1, 10**400), Fraction(10) ** 400
    values = np.array([third, -third, Fraction(1, 2), Fraction(0), tiny, -tiny], dtype=object)
    for value, low, high in zip(values, floats_down(values).tolist(), floats_up(values).tolist(), strict=True):
        assert Fraction(low) <= value <= Fraction(high)
        assert low == high if Fraction(float(value)) == value else np.nextafter(low, np.inf) == high
    beyond, largest_float = np.array([huge, -huge], dtype=object), float(np.finfo(np.float64).max)
    assert floats_up(beyond).tolist() == [np.inf, -largest_float]
    assert floats_down(beyond).tolist() == [largest_float, -np.inf]
