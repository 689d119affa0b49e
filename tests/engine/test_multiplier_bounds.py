"""Bounds of values by slopes and multipliers: they hold in every part, and where nothing is left to cut they are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.certify.branching import rows_at
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.parts import Rows
from mlflow_lipschitz.engine.search.search import Found, Limits, search
from mlflow_lipschitz.engine.transforms.objectives import flat_output
from tests.exact import number, values_at
from tests.searching import CURVES, REFINEMENT, convolution, inside, network, reached, read_twice, regions

seeds = st.integers(0, 10**6)


def value_rows(graph: Graph, region: Region, seed: int) -> Rows:
    """A row per point: a random combination of the outputs, some of them signed units."""
    rng = np.random.default_rng(seed)
    problem = Problem.of(flat_output(graph), region)
    count, outputs = region.points, problem.graph.output_shape[0]
    coeffs = rng.integers(-2, 3, (count, outputs)) if seed % 2 else np.eye(outputs)[rng.integers(0, outputs, count)]
    with torch.no_grad():
        ranges: list[Interval] = [node.interval for node in bound_nodes(problem, REFINEMENT)]
    point = torch.arange(count)
    chosen = torch.from_numpy(coeffs.astype(float))[:, None, None]
    return rows_at(problem, ranges, (point, torch.zeros_like(point)), chosen)


def searched(rows: Rows, parts: int, batch: int = 8) -> Found:
    count = len(rows.coeffs)
    lower, at = reached(rows, torch.arange(count), rows.problem.region.box.lower)
    start = torch.full((count,), torch.inf, dtype=torch.float64), lower, at
    effort = Effort(REFINEMENT, steps=4, cuts="multipliers")
    with torch.no_grad():
        return search(
            rows, start, lambda owner, x: reached(rows, owner, x), effort, Limits(1e6, batch=batch, parts=parts)
        )


def check(graph: Graph, seed: int, radius: float) -> None:
    points = np.random.default_rng(seed).integers(-12, 13, (2, *graph.input_shape)) / 8
    region = list(regions(points, radius))[seed % 4]
    rows = value_rows(graph, region, seed)
    found, exact = searched(rows, 16), number(graph)
    assert bool((found.lower <= found.upper).all())
    for x in inside(region, seed, 6):
        for row in range(len(points)):
            weights = rows.coeffs[row].flatten().tolist()
            total = sum(exact(w) * v for w, v in zip(weights, values_at(graph, x[row].numpy()), strict=True))
            bound = float(found.upper[row])
            # The oracle of curves is a number of 400 bits.
            assert bound == np.inf or exact(bound) >= total - abs(total) * exact(2.0**-300) - exact(2.0**-300)


@pytest.mark.parametrize("curve", CURVES, ids=[name for name, _ in CURVES])
@given(seed=seeds, radius=st.sampled_from([0.0, 0.125, 1.0]))
def test_no_value_is_larger(curve: Any, seed: int, radius: float) -> None:
    check(network(seed, curve), seed, radius)


@pytest.mark.parametrize("build", [convolution, read_twice])
@given(seed=seeds, radius=st.sampled_from([0.125, 1.0]))
def test_nor_with_shared_values(build: Any, seed: int, radius: float) -> None:
    check(build(seed), seed, radius)


@pytest.mark.parametrize("curve", [("relu", ()), ("abs", ())])
@given(seed=seeds)
def test_a_search_that_ends_is_exact(curve: Any, seed: int) -> None:
    graph = network(seed, curve, coarsely=False)
    points = np.random.default_rng(seed).normal(size=(2, *graph.input_shape))
    rows = value_rows(graph, next(regions(points, 0.75)), seed)
    found = searched(rows, 10**6, batch=64)
    np.testing.assert_allclose(found.upper, found.lower, rtol=1e-7, atol=1e-9)
    outputs = evaluate(flat_output(graph), found.at.numpy())
    np.testing.assert_allclose((outputs * rows.coeffs[:, 0, 0]).sum(1), found.lower, rtol=1e-7, atol=1e-9)
