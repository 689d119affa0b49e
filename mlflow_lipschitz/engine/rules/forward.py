"""One step of forward linear propagation through each kind of op.

Affine ops transform the form exactly; others add the half width of two parallel planes to its error (affine arithmetic,
Comba and Stolfi 1993, with all error terms that are not inputs merged into one). Computed coefficients are *chosen* numbers; what
they miss is charged to the error, against the magnitude of the terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.linear_form import LinearForm
from mlflow_lipschitz.engine.domains.rounding import error_bound
from mlflow_lipschitz.engine.rules.affine_maps import affine_map
from mlflow_lipschitz.engine.rules.relaxation import Relaxation
from mlflow_lipschitz.engine.rules.weights import Weights

# Covers the rounding of error terms themselves: sums of nonnegative numbers.
_SLACK = 1 + 2.0**-20
# What products that underflow may lose in one step, per unit of the largest input.
_UNDERFLOW = 2.0**-960


def through_affine(op: Any, weights: Weights, constant: Tensor | None, form: LinearForm, reach: Tensor) -> LinearForm:
    """y = W x + constant."""
    rule, shape = affine_map(op), tuple(form.offset.shape[2:])
    coeffs = None if form.coeffs is None else rule.apply(op, weights.full, form.coeffs, shape)
    offset = rule.apply(op, weights.full, form.offset, shape)
    terms = rule.terms(op, shape)
    if terms == 0:  # entries are moved, perhaps negated
        error = rule.apply(op, weights.full, form.error, shape).abs()
        return LinearForm(coeffs, offset if constant is None else offset + constant, error)
    error, size = _absolute(op, weights, form.error, shape), _absolute(op, weights, form.size(reach), shape)
    if constant is not None:
        offset, size = offset + constant, size + constant.abs()
    return LinearForm(coeffs, offset, (error + error_bound(size, terms + 4)) * _SLACK + lost_to_underflow(reach))


def through_sum(forms: Sequence[LinearForm], reach: Tensor) -> LinearForm:
    """y = x₀ + x₁."""
    a, b = forms
    known = [c for c in (a.coeffs, b.coeffs) if c is not None]
    coeffs = sum(known[1:], known[0]) if known else None
    error = a.error + b.error + error_bound(a.size(reach) + b.size(reach), 1)
    return LinearForm(coeffs, a.offset + b.offset, error * _SLACK)


def through_concat(forms: Sequence[LinearForm], axis: int, inputs: int) -> LinearForm:
    """Values side by side along an axis of their shape."""
    coeffs = None
    if any(form.coeffs is not None for form in forms):
        coeffs = _joined([form.coeffs_or_zero(inputs) for form in forms], axis + 3)
    offset, error = (_joined([getattr(f, part) for f in forms], axis + 2) for part in ("offset", "error"))
    return LinearForm(coeffs, offset, error)


def through_planes(relaxation: Relaxation, forms: Sequence[LinearForm], reach: Tensor) -> LinearForm:
    """An op between two parallel planes; `forms` are those of all its inputs."""
    low, high = relaxation.lower_offset, relaxation.upper_offset
    bounded = low.isfinite() & high.isfinite()
    middle = torch.where(bounded, low / 2 + high / 2, 0.0)
    error = torch.where(bounded, high / 2 - low / 2, torch.inf)
    size = torch.where(bounded, torch.maximum(low.abs(), high.abs()), 0.0)
    coeffs, offset = None, middle
    for position, slope in zip(relaxation.operands, relaxation.upper_slopes, strict=True):
        form = forms[position]
        offset, error = offset + slope * form.offset, error + slope.abs() * form.error
        size = size + slope.abs() * form.size(reach)
        if form.coeffs is not None:
            part = slope[:, :, None] * form.coeffs
            coeffs = part if coeffs is None else coeffs + part
    return LinearForm(coeffs, offset, (error + error_bound(size, 8)) * _SLACK + lost_to_underflow(reach))


def _absolute(op: Any, weights: Weights, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """|W| value."""
    apply = affine_map(op).apply
    if weights.full is None:
        return apply(op, None, value, shape)
    return apply(op, weights.positive, value, shape) - apply(op, weights.negative, value, shape)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    points, objectives = (max(part.shape[i] for part in parts) for i in (0, 1))
    return torch.cat([part.expand(points, objectives, *part.shape[2:]) for part in parts], axis)


def lost_to_underflow(reach: Tensor) -> Tensor:
    """What products in one step may lose altogether."""
    return _UNDERFLOW * (1 + reach.amax())
