"""Error analysis of served programs: how far one may be from the exact function anywhere in a region.

Forward, node by node: what the inputs' errors become, and what the node rounds itself. Through many layers that is far too much,
for errors lose their signs on the way; so each node's own rounding is also taken straight to the output, by the derivative
there (sensitivity.py), and the smaller of the two counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.rounding import next_down, next_up
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, Node
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.served.formats import Format
from mlflow_lipschitz.engine.served.obstacles import node_obstacle
from mlflow_lipschitz.engine.served.rules import (
    COPYING,
    ERROR_RULES,
    PRODUCT_ROUNDINGS,
    SCALE_ROUNDINGS,
    Step,
    products_in,
)
from mlflow_lipschitz.engine.served.sensitivity import rounding_at_output

# Every error is a sum of fewer than 2³⁰ products of nonnegative float64 numbers: what rounding takes away, this gives back.
_UPWARD = 1.0 + 2.0**-20


def served_errors(
    problem: Problem, known: Sequence[Interval], form: Format, objectives: Tensor | None = None
) -> Tensor:
    """How far objectives of the served program's output may be from those of the exact one.

    Args:
        problem: the graph in the served program's steps, with a vector as its output, and the region.
        known: the exact range of every node over the region, in order.
        form: what the program computes in.
        objectives: (1 or points, objectives, outputs); None: every output by itself.

    Returns:
        (points, objectives), rounded upward; +inf where nothing can be said.
    """
    graph = problem.graph
    if objectives is None:
        objectives = torch.eye(graph.output_shape[0], dtype=torch.float64, device=problem.device)[None]
    errors, own = _forward(problem, known, form)
    total = torch.where(objectives == 0, 0.0, objectives.abs() * errors[graph.output]).sum(-1)
    straight = rounding_at_output(graph, _reached(known, errors), own, objectives)
    # Where a number may overflow, no derivative tells what becomes of it.
    finite = torch.stack([error.flatten(1).isfinite().all(1).expand(problem.region.points) for error in errors]).all(0)
    if straight is not None:
        total = torch.where(finite[:, None], torch.fmin(total, straight), total)
    bound = torch.where(total.isnan(), torch.inf, total * _UPWARD)
    return bound.expand(problem.region.points, objectives.shape[1])


def _forward(problem: Problem, known: Sequence[Interval], form: Format) -> tuple[list[Tensor], list[Tensor]]:
    """Per node: how far its served value is from the exact one, and how far from the exact function of the served inputs."""
    graph = problem.graph
    errors: list[Tensor] = []
    own: list[Tensor] = []
    terms: list[int] = []
    for index, node in enumerate(graph.nodes):
        terms.append(_terms(node, graph, terms))
        if isinstance(node.op, ops.Input):
            # The program is handed the number of its format that is next to the input, which may itself be no such number.
            size = known[index].magnitude
            error = added = torch.where(size <= form.largest / 2, size * form.roundings(1) + form.tiny, torch.inf)
        elif node_obstacle(node, form):
            error = added = torch.full_like(known[index].lower, torch.inf)
        else:
            inputs, before = tuple(known[i] for i in node.inputs), tuple(errors[i] for i in node.inputs)
            fused, weights, rule = (
                tuple(terms[i] for i in node.inputs),
                problem.weights[index],
                ERROR_RULES[type(node.op)],
            )
            error = rule(Step(node.op, weights, inputs, before, fused, form))
            served = tuple(_reached(inputs, before))
            added = rule(Step(node.op, weights, served, tuple(torch.zeros_like(e) for e in before), fused, form))
        # 0 · ∞ and ∞ − ∞ come out as no number, which says nothing either.
        errors.append(torch.where(error.isnan(), torch.inf, error * _UPWARD))
        own.append(torch.where(added.isnan(), torch.inf, added * _UPWARD))
    return errors, own


def _reached(known: Sequence[Interval], errors: Sequence[Tensor]) -> list[Interval]:
    """Where served values lie."""
    return [
        Interval.enclosing(next_down(exact.lower - error), next_up(exact.upper + error))
        for exact, error in zip(known, errors, strict=True)
    ]


def _terms(node: Node, graph: Graph, terms: Sequence[int]) -> int:
    """How many roundings a summand may undergo that a runtime draws into the sum at or behind this node."""
    behind = max((terms[i] for i in node.inputs), default=0)
    if isinstance(node.op, ops.Linear | ops.Conv | ops.Sum | ops.Adjoint):
        return products_in(node.op, graph.nodes[node.inputs[0]].shape) + PRODUCT_ROUNDINGS
    if isinstance(node.op, ops.ScaleShift):
        return behind + SCALE_ROUNDINGS
    return behind if isinstance(node.op, COPYING) else 0
