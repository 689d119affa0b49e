"""Elementwise bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """lower ≤ value ≤ upper, entry by entry. Never NaN when made by `enclosing`: unknown is the whole line."""

    lower: Tensor
    upper: Tensor

    @staticmethod
    def enclosing(lower: Tensor, upper: Tensor) -> Interval:
        """An interval in which NaN (∞ − ∞, 0 · ∞) means: nothing is known on that side."""
        # A single precision number anywhere would have been rounded, and not outward.
        assert lower.dtype == upper.dtype == torch.float64
        return Interval(
            torch.where(lower.isnan(), -torch.inf, lower),
            torch.where(upper.isnan(), torch.inf, upper),
        )

    @property
    def magnitude(self) -> Tensor:
        """max |value|."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def intersect(self, other: Interval) -> Interval:
        """Both hold, so both ends may be taken."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))
