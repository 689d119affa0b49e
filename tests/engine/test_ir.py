"""The graph itself: what does not fit is refused when it is added, and two graphs with one hash compute the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import enclose, run
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.registry import is_supported
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph
from tests import cases

CONV = ops.Conv(np.ones((2, 3, 2, 2)), None, (2, 2), ((0, 0), (0, 0)), (1, 1))


def transposed(conv: ops.Conv, rows: int) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((1, 2, 3, 3)))
    return builder.build(builder.add(ops.Adjoint(conv, (1, 3, rows, 6)), x))


def test_the_hash_of_a_transposed_convolution_is_that_of_what_it_computes() -> None:
    hashes = {
        transposed(conv, rows).content_hash()
        for conv, rows in (
            (CONV, 6),
            (CONV, 7),
            (replace(CONV, weight=np.full((2, 3, 2, 2), 2.0)), 6),
            (replace(CONV, padding=((0, 0), (0, 1))), 6),
        )
    }
    assert len(hashes) == 4
    assert transposed(replace(CONV), 6).content_hash() in hashes


def test_a_transposed_convolution_is_supported() -> None:
    assert is_supported(ops.Adjoint(CONV, (1, 3, 6, 6)))


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (CONV, (3, 1, 4)),  # the kernel is larger than the image
        (CONV, (2, 4, 4)),  # channels
        (CONV, (4, 4)),  # no channel axis
        (replace(CONV, weight=np.ones((3, 1, 2, 2)), groups=2), (2, 4, 4)),
        (replace(CONV, weight=np.ones((2, 3))), (3, 4, 4)),
        (ops.Conv(np.ones((1, 1, 1, 1, 1, 1)), None, (1,) * 4, ((0, 0),) * 4, (1,) * 4), (1, 2, 2, 2, 2)),
    ],
)
def test_a_convolution_that_does_not_fit_is_refused(conv: ops.Conv, shape: tuple[int, ...]) -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input(shape))
    with pytest.raises(ValueError, match="Conv"):
        builder.add(conv, x)


def test_a_transposed_convolution_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="Adjoint"):
        transposed(CONV, 8)


def test_a_value_is_let_go_after_its_last_reader() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    a = builder.add(ops.Elementwise("relu"), x)
    b = builder.add(ops.Multiply(), a, a)
    c = builder.add(ops.Add(), x, b)
    graph = builder.build(c)
    assert graph.last_uses == ((), (), (a,), (x, b))


@pytest.mark.parametrize("name", ["attention", "maximum over windows", "concat", "constant"])
def test_what_is_kept_in_memory_is_all_that_is_needed(name: str) -> None:
    graph, points = cases.draw(name, 3)
    gradient = gradient_graph(graph)
    problem = Problem.of(gradient, Box.around(points, 0.125), torch.eye(2, dtype=torch.float64)[None])
    with torch.no_grad():
        every, alone = bound_nodes(problem, None)[gradient.output].interval, enclose(problem)
        value = run(gradient, problem.weights, torch.from_numpy(points)[:, None], problem.cotangent)
    assert torch.equal(every.lower, alone.lower) and torch.equal(every.upper, alone.upper)
    assert bool((alone.lower <= value).all() and (value <= alone.upper).all())
