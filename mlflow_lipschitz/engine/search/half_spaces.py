"""What half-spaces leave of a box: how far it shrinks around them, and whether they leave anything.

Linear bounds of a piece say more than whether it is proved: what they rule out is a half-space, and only the rest of the piece
has to be looked at (as interval constraint propagation does; Zhou et al., *Clip-and-Verify*, NeurIPS 2025). Several half-spaces
that each leave something may leave nothing together, which a combination of them shows (Farkas).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.rounding import error_bound, next_down, next_up

_ROUNDS = 3
_STEPS = 24
_TINY = 1e-300
_UNDERFLOW = 2.0**-960


class HalfSpaces(NamedTuple):
    """All x with coeffs · x ≥ threshold for every row: (boxes, rows, inputs) and (boxes, rows). A threshold of −∞ says nothing."""

    coeffs: Tensor
    threshold: Tensor


def shrunk(lower: Tensor, upper: Tensor, spaces: HalfSpaces) -> tuple[Tensor, Tensor, Tensor]:
    """A box around what all half-spaces leave of each box, rounded outward.

    Args:
        lower, upper: (boxes, inputs).
        spaces: the half-spaces of each box.

    Returns:
        lower, upper and (boxes,) whether nothing is left; there the ends mean nothing.
    """
    coeffs, threshold = spaces.coeffs, spaces.threshold[..., None].nan_to_num(-torch.inf, torch.inf, -torch.inf)
    empty = torch.zeros(lower.shape[0], dtype=torch.bool, device=lower.device)
    for _ in range(_ROUNDS):
        most = torch.maximum(coeffs * lower[:, None], coeffs * upper[:, None])
        reach = torch.maximum(lower.abs(), upper.abs())[:, None]
        size = (coeffs.abs() * reach).sum(-1, keepdim=True) + threshold.abs()
        # What one entry's product must make up for when all others are as large as they can be.
        missing = threshold - (most.sum(-1, keepdim=True) - most)
        missing = missing - error_bound(size, 2 * coeffs.shape[-1] + 8) - _UNDERFLOW
        end = missing / coeffs
        at_least = torch.where((coeffs > 0) & ~end.isnan(), next_down(end), -torch.inf).amax(1)
        at_most = torch.where((coeffs < 0) & ~end.isnan(), next_up(end), torch.inf).amin(1)
        lower, upper = torch.maximum(lower, at_least), torch.minimum(upper, at_most)
        empty = empty | (lower > upper).any(-1)
    return lower, upper, empty


def leave_nothing(lower: Tensor, upper: Tensor, spaces: HalfSpaces) -> Tensor:
    """(boxes,) whether a combination of the half-spaces shows that together they leave nothing of the box.

    Any weights λ ≥ 0 will do: if Σ λᵣ (coeffsᵣ · x − thresholdᵣ) is negative all over the box, no x satisfies all. They are
    found by multiplicative updates, a few steps of a game against the best x.
    """
    known = spaces.threshold.isfinite() & spaces.coeffs.isfinite().all(-1)
    coeffs = torch.where(known[..., None], spaces.coeffs, 0.0)
    threshold = torch.where(known, spaces.threshold, 0.0)
    reach = torch.maximum(lower.abs(), upper.abs())[:, None]
    size = (coeffs.abs() * reach).sum(-1) + threshold.abs()
    terms = 2 * sum(coeffs.shape[1:]) + 16
    # Rows are weighed by their size: no unit of measurement matters.
    unit = 1 / size.clamp(min=_TINY)
    weights = known.to(coeffs.dtype)
    nothing = torch.zeros(lower.shape[0], dtype=torch.bool, device=lower.device)
    for step in range(_STEPS):
        scaled = weights * unit
        combined = (scaled[..., None] * coeffs).sum(1)
        most = torch.maximum(combined * lower, combined * upper).sum(-1)
        bound = most - (scaled * threshold).sum(-1) + error_bound((scaled * size).sum(-1), terms) + _UNDERFLOW
        nothing = nothing | (bound < 0)
        x = torch.where(combined > 0, upper, lower)
        excess = ((coeffs * x[:, None]).sum(-1) - threshold) * unit
        rate = 1.0 / (1 + step) ** 0.5
        weights = weights * torch.exp(-rate * excess / excess.abs().amax(-1, keepdim=True).clamp(min=_TINY))
        weights = (weights / weights.amax(-1, keepdim=True).clamp(min=_TINY)).nan_to_num(0.0, 0.0, 0.0)
    return nothing
