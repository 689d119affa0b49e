"""What becomes of each node's own rounding at the output: at most its size times the derivative there.

Let the nodes be replaced one after another, each exact value by the served one: the output moves from the exact to the served
one. Replacing node k, with the nodes before it as served and those behind it exact functions of them, moves c · output by at most
the sum over its entries of |∂(c · output) / ∂zₖ| times its own rounding (Lebourg's mean value theorem), the derivative taken
anywhere between. All values between lie where served values may: an error that stops at node k is no larger than one that goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.rules.registry import rule_for
from mlflow_lipschitz.engine.rules.weights import weights_of
from mlflow_lipschitz.engine.transforms.clarke_jacobian import node_derivatives
from mlflow_lipschitz.errors import UnsupportedOperator


def rounding_at_output(
    graph: Graph, reached: Sequence[Interval], own: Sequence[Tensor], objectives: Tensor
) -> Tensor | None:
    """(points, objectives): what all nodes' own roundings do to the objectives.

    Args:
        graph: in the served program's steps.
        reached: per node, where served values lie.
        own: per node, its own rounding.
        objectives: (1 or points, objectives, outputs).

    Returns:
        No number where nothing is known; None for a graph that cannot be differentiated through the steps it is served in.
    """
    # The derivative of a normalization passes by its own steps, and so would what they round.
    if any(isinstance(node.op, ops.Normalized) for node in graph.nodes):
        return None
    try:
        whole, derivatives = node_derivatives(graph)
    except UnsupportedOperator:
        return None
    owners: dict[int, list[int]] = {}
    for owner, derivative in derivatives.items():
        owners.setdefault(derivative, []).append(owner)
    weights = weights_of(whole, objectives.device)
    known: dict[int, Interval] = dict(enumerate(reached))
    total = torch.zeros(objectives.shape[:2], dtype=torch.float64, device=objectives.device)
    for index, node in enumerate(whole.nodes):
        if isinstance(node.op, ops.Cotangent):
            known[index] = Interval(objectives, objectives)
        elif index >= len(reached):
            inputs = (known[i] for i in node.inputs)
            known[index] = rule_for(node.op, node.name).interval(node.op, weights[index], *inputs)
        for owner in owners.get(index, ()):
            steepest = known[index].magnitude
            total = total + entries(torch.where(steepest == 0, 0.0, steepest * own[owner]), 2).sum(-1)
        for source in whole.last_uses[index]:
            if source >= len(reached):
                known.pop(source, None)
    return total
