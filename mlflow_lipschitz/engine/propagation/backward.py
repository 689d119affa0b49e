"""Backward linear propagation (CROWN, Zhang et al. 2018; for Jacobian graphs Shi et al., NeurIPS 2022).

A linear form on a node is pushed through the graph to the input and the objective, through affine ops exactly and through the
others by their relaxations, and is there maximised over the region. Rounding: the computed coefficients are *chosen* numbers;
what they miss, |ΔA| ≤ γ |A||W|, is charged against the known magnitude of the values they multiply.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.rounding import gamma
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.registry import rule_for
from mlflow_lipschitz.engine.rules.relaxation import Relaxation

# A coefficient that underflowed is off by less than this; it multiplies magnitudes, like any other coefficient error.
_UNDERFLOW = 2.0**-900


def upper_bounds(problem: Problem, bounds: Sequence[NodeBounds], target: int, coeffs: Tensor) -> Tensor:
    """Rigorous upper bounds of coeffs · value(target) over the region.

    Args:
        problem: graph, region, objectives.
        bounds: per node before and including `target`; relaxations where the form passes.
        target: the node.
        coeffs: (1 or points, 1 or objectives, rows, *shape of target).

    Returns:
        (points, objectives or 1, rows); +inf where nothing could be proved.
    """
    nodes = problem.graph.nodes
    pending: dict[int, Tensor] = {target: coeffs}
    total: Tensor | float = 0.0
    error: Tensor | float = 0.0
    for index in range(target, -1, -1):
        form = pending.pop(index, None)
        if form is None:
            continue
        node = nodes[index]
        if isinstance(node.op, ops.Input):
            total = total + problem.region.support(form)
            continue
        if isinstance(node.op, ops.Cotangent):
            value, slack = _dot_cotangent(problem, form, len(nodes))
            total, error = total + value, error + slack
            continue
        known = bounds[index]
        assert known.magnitude is not None
        shapes = tuple(nodes[i].shape for i in node.inputs)
        terms = rule_for(node.op).rounding_terms(node.op, shapes) + form.shape[3:].numel() + len(nodes)
        steps, norm = _step(problem, known, index, form)
        error = error + (norm + _UNDERFLOW) * known.magnitude[:, :, None] * gamma(terms)
        for source, passed in steps:
            if isinstance(source, int):
                pending[source] = pending[source] + passed if source in pending else passed
            else:
                total = total + passed
    # The last additions round as well; both factors of (1 + 2⁻⁴⁰) cover them, as |total| and error bound their terms.
    bound = total + error * (1 + 2.0**-20)
    assert isinstance(bound, Tensor)
    return torch.where(bound.isnan(), torch.inf, bound)


# The form on the node's inputs as (input, coefficients), its constant part as (None, offset).
_Steps = list[tuple[int | None, Tensor]]


def _step(problem: Problem, known: NodeBounds, index: int, form: Tensor) -> tuple[_Steps, Tensor]:
    """One backward step, and the ℓ1 norm of the form (points, objectives, rows) that its rounding error scales with."""
    node = problem.graph.nodes[index]
    if known.relaxation is not None:
        return _relax(known.relaxation, node.inputs, form)
    rule, shapes = rule_for(node.op), tuple(problem.graph.nodes[i].shape for i in node.inputs)
    weights = problem.weights[index]
    steps: _Steps = [*zip(node.inputs, rule.backward(node.op, weights, form, shapes), strict=True)]
    offset = rule.offset(node.op, weights, form, shapes)
    if offset is not None:
        steps.append((None, offset))
    return steps, form.abs().flatten(3).sum(-1)


def _relax(relaxation: Relaxation, inputs: tuple[int, ...], form: Tensor) -> tuple[_Steps, Tensor]:
    """Upper plane under a positive coefficient, lower plane under a negative one: A·mean + |A|·half the difference.

    Rounding of mean and half difference is within `RelaxedOp.rounding_terms`.
    """
    size = form.abs()
    mean, half = _mean_and_half(relaxation.upper_offset[:, :, None], relaxation.lower_offset[:, :, None])
    constant = _dot(form, mean) + _dot(size, half)
    steps: _Steps = [(None, constant)]
    for position, upper, lower in zip(
        relaxation.operands, relaxation.upper_slopes, relaxation.lower_slopes, strict=True
    ):
        mean, half = _mean_and_half(upper[:, :, None], lower[:, :, None])
        steps.append((inputs[position], torch.addcmul(form * mean, size, half)))
    return steps, size.flatten(3).sum(-1)


def _mean_and_half(upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    return (upper + lower) / 2, (upper - lower) / 2


def _dot(form: Tensor, values: Tensor) -> Tensor:
    """Products summed over a node's entries. Measured on CPUs: a batch of matrix-vector products takes twice as long."""
    return (form * values).flatten(3).sum(-1)


def _dot_cotangent(problem: Problem, form: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    assert problem.cotangent is not None
    objective = problem.cotangent[:, :, None]
    slack = (_dot(form.abs(), objective.abs()) + _UNDERFLOW) * gamma(form.shape[3:].numel() + nodes)
    return _dot(form, objective), slack
