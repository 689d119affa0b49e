"""Outward rounding: every bound the engine reports holds in real arithmetic, whatever float64 did on the way.

For a sum of n products, in any order, with or without FMA: |fl(Σ wᵢxᵢ) − Σ wᵢxᵢ| ≤ γ_n Σ |wᵢ||xᵢ|, γ_n = nu / (1 − nu), u = 2⁻⁵³
(Higham, Accuracy and Stability of Numerical Algorithms, §3.1). Underflow is outside that model and is guarded separately.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries

UNIT_ROUNDOFF = 2.0**-53

# Covers the rounding of the error terms themselves: they are sums of at most 2³⁰ float64 numbers, relative error < 1e-6.
_SLACK = 1.0 + 1e-6

# Any sum of fewer than 2⁶⁰ products of which some underflow is off by less than this (each by at most 2⁻¹⁰⁷⁴).
_UNDERFLOW = 2.0**-960


def gamma(terms: int) -> float:
    """γ_n of the module docstring, rounded up; 0 for n = 0 (an exact operation)."""
    if terms == 0:
        return 0.0
    return terms * UNIT_ROUNDOFF / (1.0 - terms * UNIT_ROUNDOFF) * _SLACK


def error_bound(magnitude: Tensor, terms: int) -> Tensor:
    """Bound of the rounding error of a sum of `terms` products whose absolute values add up to `magnitude` (itself rounded)."""
    return magnitude * gamma(terms + 4) if terms else torch.zeros_like(magnitude)


def underflow_guard(smallest_weight: Tensor, *values: Tensor) -> Tensor:
    """What to add to an error bound because products with these values may underflow: 0 where none can.

    Exact zeros are structural (an absent edge) and stay exact, so that a monotone network's zero slope is not lost.

    Args:
        smallest_weight: the least nonzero |w|, a scalar tensor.
        values: (points, objectives, *shape) tensors, reduced over all axes but the first two.

    Returns:
        (points, objectives) tensor broadcast to the rank of the values.
    """
    guard = None
    for value in values:
        size = value.abs()
        smallest = entries(torch.where(size == 0, torch.inf, size), 2).amin(-1)
        risky = smallest * smallest_weight < 2.0**-900
        guard = risky if guard is None else guard | risky
    assert guard is not None
    return (guard.to(torch.float64) * _UNDERFLOW).reshape(*guard.shape, *(1,) * (values[0].dim() - 2))


def next_up(value: Tensor) -> Tensor:
    """The next float64 above; +inf stays."""
    return _next(value, torch.inf)


def next_down(value: Tensor) -> Tensor:
    """The next float64 below; -inf stays."""
    return _next(value, -torch.inf)


def _next(value: Tensor, towards: float) -> Tensor:
    if value.requires_grad and torch.is_grad_enabled():
        return _Neighbor.apply(value, towards)
    return torch.nextafter(value, torch.full_like(value, towards))


class _Neighbor(torch.autograd.Function):
    """Neighbors move with their number: older versions of PyTorch know no derivative here."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, towards: float) -> Tensor:
        return torch.nextafter(value, torch.full_like(value, towards))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0], None


def product_bounds(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Floats below and above the exact product; exact where a factor is zero (0 · inf counts as unknown, not as 0)."""
    product = a * b
    exact = (a == 0) | (b == 0)
    return torch.where(exact, product, next_down(product)), torch.where(exact, product, next_up(product))
