"""Backward linear propagation (CROWN, Zhang et al. 2018; for Jacobian graphs Shi et al., NeurIPS 2022).

A linear form on a node is pushed through the graph to the input and the objective, through affine ops exactly and through the
others by their relaxations, and is there maximised over the region. Rounding: the computed coefficients are *chosen* numbers;
what they miss, |ΔA| ≤ γ |A||W|, is charged against the known magnitude of the values they multiply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.rounding import error_bound, gamma
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.registry import rule_for
from mlflow_lipschitz.engine.rules.relaxation import BackwardStep, dot

# For sums that may underflow to zero altogether; far above n · 2⁻¹⁰⁷⁴ for any n that fits into memory.
_UNDERFLOW = 2.0**-960


class _Form(NamedTuple):
    """Coefficients (points, objectives, rows, *shape) and, where it came for free, a bound of their ℓ1 norm per row."""

    coeffs: Tensor
    norm: Tensor | None

    def plus(self, other: _Form) -> _Form:
        norm = None if self.norm is None or other.norm is None else self.norm + other.norm
        return _Form(self.coeffs + other.coeffs, norm)


class InputForm(NamedTuple):
    """An upper bound coeffs · x + offset over the region; `coeffs` (points, objectives, rows, *input shape) or None."""

    coeffs: Tensor | None
    offset: Tensor


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
    return concretize(problem, upper_form(problem, bounds, target, coeffs))


def concretize(problem: Problem, form: InputForm) -> Tensor:
    """The largest value of the form over the region, rounded upward; +inf where that is not a finite number."""
    bound = form.offset
    if form.coeffs is not None:
        largest = problem.region.support(form.coeffs)
        bound = bound + largest + error_bound(bound.abs() + largest.abs(), 1)
    # −∞ is no upper bound of a finite value either: something overflowed on the way.
    return torch.where(bound.isfinite(), bound, torch.inf)


def upper_form(
    problem: Problem,
    bounds: Sequence[NodeBounds],
    target: int,
    coeffs: Tensor,
    more: Mapping[int, Tensor] | None = None,
) -> InputForm:
    """As `upper_bounds`, before the input is maximised over the region.

    `more` holds coefficients on further nodes before the target, to which the form adds up.
    """
    nodes = problem.graph.nodes
    pending: dict[int, _Form] = {index: _Form(added, None) for index, added in (more or {}).items()}
    pending[target] = _Form(coeffs, None)
    on_input: Tensor | None = None
    total: Tensor = torch.zeros(coeffs.shape[:3], dtype=torch.float64, device=coeffs.device)
    error: Tensor | float = 0.0
    for index in range(target, -1, -1):
        form = pending.pop(index, None)
        if form is None:
            continue
        node = nodes[index]
        if isinstance(node.op, ops.Input):
            on_input = form.coeffs
            continue
        if isinstance(node.op, ops.Cotangent):
            value, slack = _dot_cotangent(problem, form.coeffs, len(nodes))
            total, error = total + value, error + slack
            continue
        known = bounds[index]
        assert known.magnitude is not None and known.underflow is not None
        shapes = tuple(nodes[i].shape for i in node.inputs)
        terms = rule_for(node.op).rounding_terms(node.op, shapes) + form.coeffs.shape[3:].numel() + len(nodes)
        step = _step(problem, known, index, form)
        error = error + step.norm * known.magnitude[:, :, None] * gamma(terms) + known.underflow[:, :, None]
        total = total if step.offset is None else total + step.offset
        for position, onward, norm in step.passed:
            source, passed = node.inputs[position], _Form(onward, norm)
            pending[source] = passed if source not in pending else pending[source].plus(passed)
    # Additions into `total` are counted in each node's `terms`; the factor covers the rounding of the error terms themselves.
    return InputForm(on_input, total + error * (1 + 2.0**-20))


def _step(problem: Problem, known: NodeBounds, index: int, form: _Form) -> BackwardStep:
    node = problem.graph.nodes[index]
    if known.relaxation is not None:
        return known.relaxation.backward(form.coeffs)
    rule, shapes = rule_for(node.op), tuple(problem.graph.nodes[i].shape for i in node.inputs)
    weights = problem.weights[index]
    passed = rule.backward(node.op, weights, form.coeffs, shapes)
    norm = entries(form.coeffs.abs(), 3).sum(-1) if form.norm is None else form.norm
    offset = rule.offset(node.op, weights, form.coeffs, shapes)
    return BackwardStep([(position, c, None) for position, c in enumerate(passed)], offset, norm)


def _dot_cotangent(problem: Problem, form: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    assert problem.cotangent is not None
    objective = problem.cotangent[:, :, None]
    slack = (dot(form.abs(), objective.abs()) + _UNDERFLOW) * gamma(form.shape[3:].numel() + nodes)
    return dot(form, objective), slack
