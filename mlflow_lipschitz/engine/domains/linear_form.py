"""Affine functions of the input around a node's value: what forward linear propagation carries from node to node."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearForm:
    """coeffs · x + offset − error ≤ value ≤ coeffs · x + offset + error, entry by entry, for every input x of the region.

    Attributes:
        coeffs: (points or 1, objectives or 1, inputs, *shape); None for a value that does not depend on the input.
        offset, error: (points or 1, objectives or 1, *shape); an error that is not a number means: nothing is known.
    """

    coeffs: Tensor | None
    offset: Tensor
    error: Tensor

    def size(self, reach: Tensor) -> Tensor:
        """Bound of the absolute terms behind each entry, for the rounding error; `reach` is (points, inputs), max |x|."""
        total = self.offset.abs() + self.error
        if self.coeffs is None:
            return total
        weights = reach.reshape(reach.shape[0], 1, reach.shape[1], *(1,) * (total.dim() - 2))
        # A rounded sum of nonnegative numbers: the slack covers it.
        return (total + (self.coeffs.abs() * weights).sum(2)) * (1 + 2.0**-20)

    def coeffs_or_zero(self, inputs: int) -> Tensor:
        """The coefficients, also of a constant."""
        if self.coeffs is not None:
            return self.coeffs
        lead, shape = self.offset.shape[:2], self.offset.shape[2:]
        return torch.zeros((*lead, inputs, *shape), dtype=torch.float64, device=self.offset.device)
