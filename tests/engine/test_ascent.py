"""The search for large gradients: what it finds is real, in the region, and worth having."""

from __future__ import annotations

import numpy as np
import torch

from mlflow_lipschitz.engine.attack.ascent import ascend, enclose_at
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.clarke_jacobian import clarke_jacobian
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph, summed
from mlflow_lipschitz.engine.transforms.smoothing import has_jumps, smoothed


def network(seed: int, curve: str) -> Graph:
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add(ops.Linear(rng.normal(size=(30, 12)), rng.normal(size=30)), builder.add(ops.Input((12,))))
    x = builder.add(ops.Linear(rng.normal(size=(20, 30))), builder.add(ops.Elementwise(curve), x))
    x = builder.add(ops.Linear(rng.normal(size=(2, 20))), builder.add(ops.Elementwise(curve), x))
    return builder.build(x)


def problem(seed: int, curve: str, count: int = 3) -> Problem:
    points = np.random.default_rng(seed + 1).normal(size=(count, 12))
    objectives = torch.eye(2, dtype=torch.float64)[None]
    return Problem.of(summed(gradient_graph(network(seed, curve)), "abs"), Box.around(points, 0.3), objectives)


def test_found_points_lie_in_the_region() -> None:
    for curve in ("relu", "tanh"):
        asked = problem(0, curve)
        with torch.no_grad():
            x = ascend(asked)
        box = asked.region.box
        assert x.shape == (3, 2, 12)
        assert bool((x >= box.lower[:, None]).all() and (x <= box.upper[:, None]).all())


def test_climbing_beats_sampling_as_often_as_not() -> None:
    climbed = sampled = 0
    for seed in range(6):
        asked = problem(seed, "relu")
        with torch.no_grad():
            found = enclose_at(asked, ascend(asked)[None]).lower[0, ..., 0]
            start = enclose_at(asked, ascend(asked, rounds=0)[None]).lower[0, ..., 0]
        climbed += int((found > start).sum())
        sampled += int((found < start).sum())
    assert climbed > 18 and sampled == 0


def test_softened_kinks_keep_the_gradient_away_from_them() -> None:
    graph = clarke_jacobian(network(0, "relu"))
    assert has_jumps(graph) and not has_jumps(smoothed(graph, 0.1))
    plain, soft = (GraphBuilder(), GraphBuilder())
    for builder in (plain, soft):
        builder.add(ops.Elementwise("step", (-1.0, 3.0)), builder.add(ops.Input((1,))))
    z = np.array([[-5.0], [0.0], [5.0]])
    got = evaluate(smoothed(soft.build(1), 0.01), z)[:, 0].tolist()
    np.testing.assert_allclose(got, [-1.0, 1.0, 3.0], atol=1e-9)
