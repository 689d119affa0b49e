"""Where bounds are tightened: at the node that computes, behind whatever copies lie between it and a nonlinear op."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem

Copy = Callable[[GraphBuilder, int], int]


def bounds(graph: Graph, refinement: Refinement | None) -> list[NodeBounds]:
    box = Box.around([[0.1, -0.2, 0.3]], 1.0)
    with torch.no_grad():
        return bound_nodes(Problem.of(graph, box), refinement)


def squared_after(copy: Copy) -> tuple[Graph, int]:
    """A hidden layer of four entries, `copy` of it, and the product of that with itself; index of the hidden layer."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.add(ops.Linear(rng.normal(size=(5, 3))), builder.add(ops.Input((3,))))
    hidden = builder.add(ops.Linear(rng.normal(size=(4, 5))), x)
    copied = copy(builder, hidden)
    return builder.build(builder.add(ops.Multiply(), copied, copied)), hidden


COPIES: dict[str, Copy] = {
    "none": lambda b, x: x,
    "expand": lambda b, x: b.add(ops.Expand((3, 4)), x),
    "reshape": lambda b, x: b.add(ops.Reshape((2, 2)), x),
    "transpose": lambda b, x: b.add(ops.Transpose((1, 0)), b.add(ops.Reshape((2, 2)), x)),
    "select": lambda b, x: b.add(ops.Select(0, (3, 1, 3, 0, 2)), x),
    "pad": lambda b, x: b.add(ops.Pad(((1, 0),)), x),
    "negative": building.negative,
    "several": lambda b, x: b.add(
        ops.Expand((2, 2, 2)), b.add(ops.Reshape((2, 2)), b.add(ops.Select(0, (3, 2, 1, 0)), x))
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_what_is_refined_is_the_node_behind_copies(name: str) -> None:
    graph, hidden = squared_after(COPIES[name])
    plain, got = bounds(graph, None), bounds(graph, Refinement(64))
    direct, position = squared_after(COPIES["none"])
    expected = bounds(direct, Refinement(64))[position].interval
    assert bool((expected.upper - expected.lower < plain[hidden].interval.upper - plain[hidden].interval.lower).all())
    tight = got[hidden].interval
    torch.testing.assert_close((tight.lower, tight.upper), (expected.lower, expected.upper), rtol=1e-12, atol=1e-12)
    # The copies were made again of what is known now.
    copied = graph.nodes[graph.output].inputs[0]
    sizes = {float(v) for v in torch.cat([tight.lower, tight.upper], -1)[0].abs().flatten()} | {0.0}
    ends = torch.cat([got[copied].interval.lower[0].flatten(), got[copied].interval.upper[0].flatten()])
    assert {float(v) for v in ends.abs()} <= sizes


def test_entries_that_no_copy_holds_are_left_alone() -> None:
    graph, hidden = squared_after(lambda b, x: b.add(ops.Select(0, (1, 1)), x))
    plain, got = bounds(graph, None)[hidden].interval, bounds(graph, Refinement(64))[hidden].interval
    changed = (got.upper < plain.upper)[:, 0]
    assert changed[:, 1].all() and not changed[:, [0, 2, 3]].any()


def test_a_second_consumer_refines_what_the_first_left() -> None:
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.add(ops.Linear(rng.normal(size=(5, 3))), builder.add(ops.Input((3,))))
    hidden = builder.add(ops.Linear(rng.normal(size=(4, 5))), x)
    first, second = (builder.add(ops.Select(0, chosen), hidden) for chosen in ((0, 1), (1, 2)))
    graph = builder.build(builder.add(ops.Multiply(), first, second))
    both = bounds(graph, Refinement(64))[hidden].interval
    whole = bounds(squared_after(COPIES["none"])[0], Refinement(64))[hidden].interval
    plain = bounds(graph, None)[hidden].interval
    torch.testing.assert_close(both.upper[..., :3], whole.upper[..., :3], rtol=1e-12, atol=1e-12)
    assert torch.equal(both.upper[..., 3], plain.upper[..., 3])
