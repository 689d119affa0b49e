"""Conditions on intermediate values inside a bound, by Lagrange multipliers (β-CROWN, Wang et al., NeurIPS 2021).

Where every point of a part fulfils s (z − place) ≥ 0, adding β s (z − place) with β ≥ 0 to what is maximised cannot make it
smaller, so any β ≥ 0 is sound; and a part whose bound falls below every limit is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.rounding import error_bound
from mlflow_lipschitz.engine.propagation.backward import InputForm, upper_form
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem

_UNDERFLOW = 2.0**-960


@dataclass(frozen=True)
class Condition:
    """sign · (value − place) ≥ 0 for chosen entries of a node, all (parts, 1, *shape); sign 0 where there is none."""

    sign: Tensor
    place: Tensor


def charged(conditions: Mapping[int, Condition], betas: Mapping[int, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
    """What the multipliers add to an upper bound: coefficients (parts, 1, 1, *shape) per node, and a constant (parts, 1, 1).

    The constant is rounded upward.
    """
    more: dict[int, Tensor] = {}
    constant: Tensor | None = None
    for index, condition in conditions.items():
        coeffs = betas[index] * condition.sign
        more[index] = coeffs[:, :, None]
        terms = entries(coeffs * condition.place, 2)
        size = terms.abs().sum(-1)
        part = error_bound(size, terms.shape[-1] + 2) + _UNDERFLOW - terms.sum(-1)
        constant = part if constant is None else constant + part + error_bound(constant.abs() + part.abs(), 1)
    assert constant is not None
    return more, constant[:, :, None]


def weighed_form(
    problem: Problem,
    bounds: Sequence[NodeBounds],
    objective: tuple[int, Tensor],
    held: Mapping[int, Condition],
    betas: Mapping[int, Tensor],
) -> InputForm:
    """An upper bound of coeffs · value(target) + Σ β s (z − place), one row per part.

    Args:
        objective: target and coefficients (parts, 1, 1, *shape of target).
        held: conditions on nodes up to the target.
        betas: per node with conditions, (parts, 1, *shape), none negative.
    """
    target, coeffs = objective
    if not held:
        return upper_form(problem, bounds, target, coeffs)
    more, constant = charged(held, betas)
    if target in more:
        coeffs = coeffs + more.pop(target)
    form = upper_form(problem, bounds, target, coeffs, more)
    size = form.offset.detach().abs() + constant.detach().abs()
    return InputForm(form.coeffs, form.offset + constant + error_bound(size, 1))
