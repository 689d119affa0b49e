"""Small networks, the rows of a search over them, and points that lie where it hurts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.branching import _reached, rows_at
from mlflow_lipschitz.engine.domains.region import Box, LpBall, Region
from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.parts import Rows
from mlflow_lipschitz.engine.search.search import Found, Limits, search
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph, summed
from tests.cases import coarse, linear

REFINEMENT = Refinement(256)
EFFORT = Effort(REFINEMENT)
# Jumps at zero, at two places, shifted; curved ones; a jump between a curved and a straight piece.
CURVES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("relu", ()),
    ("leaky_relu", (-0.5,)),
    ("abs", ()),
    ("clip", (-0.25, 0.5)),
    ("hard_swish", ()),
    ("elu", (0.5, 1.5)),
    ("tanh", ()),
    ("sigmoid", ()),
    ("softplus", ()),
)


def network(seed: int, curve: tuple[str, tuple[float, ...]] = ("relu", ()), *, coarsely: bool = True) -> Graph:
    """2 to 3 inputs, 1 to 3 layers of 3 or 4 units, 1 or 2 outputs; on the grid of kinks, or anywhere."""
    rng = np.random.default_rng(seed)
    inputs = int(rng.integers(2, 4))
    sizes = [inputs, *rng.integers(3, 5, rng.integers(1, 4)).tolist()]
    builder = GraphBuilder()
    x = builder.add(ops.Input((inputs,)))
    for before, after in itertools.pairwise(sizes):
        layer = linear(rng, before, after) if coarsely else _anywhere(rng, before, after)
        x = builder.add(ops.Elementwise(*curve), builder.add(layer, x))
    outputs = int(rng.integers(1, 3))
    last = linear(rng, sizes[-1], outputs) if coarsely else _anywhere(rng, sizes[-1], outputs)
    return builder.build(builder.add(last, x))


def _anywhere(rng: np.random.Generator, inputs: int, outputs: int) -> ops.Linear:
    weight = rng.normal(size=(outputs, inputs)) / np.sqrt(inputs)
    return ops.Linear(ops.frozen_array(weight), ops.frozen_array(rng.normal(size=outputs) / 4))


def convolution(seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add(
        ops.Conv(coarse(rng, 2, 1, 2), coarse(rng, 2), (1,), ((1, 0),), (1,)), builder.add(ops.Input((1, 3)))
    )
    pooled = building.maximum_over(builder, builder.add(ops.Elementwise("relu"), x), 1)
    return builder.build(builder.add(linear(rng, 2, 1), builder.add(ops.Reshape((2,)), pooled)))


def read_twice(seed: int) -> Graph:
    """Two curves that jump at different places, and one that jumps at the same, read one layer; the input is read too."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    z = builder.add(linear(rng, 2, 3), builder.add(ops.Elementwise("abs"), x))
    read = [
        builder.add(ops.Elementwise(*c), z) for c in (("relu", ()), ("clip", (-0.25, 0.5)), ("leaky_relu", (-0.5,)))
    ]
    mixed = [builder.add(linear(rng, 3, 3), y) for y in read]
    total = building.maximum(builder, builder.add(ops.Add(), mixed[0], mixed[1]), mixed[2])
    return builder.build(builder.add(linear(rng, 3, 1), builder.add(ops.Elementwise("abs"), total)))


def rows_of(graph: Graph, region: Region, norm: str = "abs") -> Rows:
    """A row per point and output, with ranges of the whole regions."""
    outputs = int(np.prod(graph.output_shape))
    objectives = torch.eye(outputs, dtype=torch.float64)[None]
    problem = Problem.of(summed(gradient_graph(graph), norm), region, objectives)
    with torch.no_grad():
        ranges = [node.interval for node in bound_nodes(problem, REFINEMENT)]
    places = torch.ones(region.points, outputs).nonzero()
    ones = torch.ones((len(places), 1, 1, 1), dtype=torch.float64)
    return rows_at(problem, ranges, tuple(places.unbind(1)), ones)


def reached(rows: Rows, owner: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return _reached(rows, owner, points)


def searched(rows: Rows, parts: int, *, gap: float = 0.0, threshold: float | None = None, batch: int = 8) -> Found:
    """A search that time does not end, from nothing but one point."""
    count = len(rows.coeffs)
    lower, at = reached(rows, torch.arange(count), rows.problem.region.box.lower)
    upper = torch.full((count,), torch.inf, dtype=torch.float64)
    limits = None if threshold is None else torch.full((count,), threshold, dtype=torch.float64)
    with torch.no_grad():
        return search(
            rows,
            (upper, lower, at),
            lambda owner, x: reached(rows, owner, x),
            EFFORT,
            Limits(1e6, gap, limits, batch, parts),
        )


def regions(points: np.ndarray, radius: float) -> Iterator[Region]:
    yield Box.around(points, radius)
    yield LpBall(points, radius)
    # Kinks come to lie on the boundary.
    yield Box(points, points + 2 * radius)
    yield Box.around(points, radius, (points - radius / 2, points + radius))


def inside(region: Region, seed: int, count: int) -> Tensor:
    """(count, points, *input shape): corners, the center, grid points and others, all in the region."""
    from mlflow_lipschitz.engine.attack.sampling import clip

    box, generator = region.box, torch.Generator().manual_seed(seed)
    t = torch.rand((count, *box.lower.shape), generator=generator, dtype=torch.float64)
    t[1::2] = t[1::2].round()
    t[0] = 0.5
    points = box.lower + (box.upper - box.lower) * t
    points[2::3] = (points[2::3] * 8).round() / 8
    return clip(region, points)
