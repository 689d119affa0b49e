"""Two affine functions that enclose an op, linear in some of its operands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval


@dataclass(frozen=True)
class Relaxation:
    """Σ lower_slopes · x + lower_offset ≤ y ≤ Σ upper_slopes · x + upper_offset over the node's inputs number `operands`.

    All tensors are (points, objectives or 1, *shape). The slopes are free; the offsets were rounded outward, so the planes
    enclose the op exactly as stored.
    """

    operands: tuple[int, ...]
    lower_slopes: tuple[Tensor, ...]
    lower_offset: Tensor
    upper_slopes: tuple[Tensor, ...]
    upper_offset: Tensor

    def magnitude(self, *inputs: Interval) -> Tensor:
        """(points, objectives): bound of Σ |slope||x| + |offset| over all entries, both planes; `inputs` are the node's."""
        size = torch.maximum(self.lower_offset.abs(), self.upper_offset.abs())
        for position, lower, upper in zip(self.operands, self.lower_slopes, self.upper_slopes, strict=True):
            size = size + torch.maximum(lower.abs(), upper.abs()) * inputs[position].magnitude
        return size.flatten(2).amax(-1)
