"""Two lines that enclose an op, linear in one of its operands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval


@dataclass(frozen=True)
class Relaxation:
    """lower_slope · x + lower_offset ≤ y ≤ upper_slope · x + upper_offset, for x = input number `operand` of the node.

    All tensors are (points, objectives or 1, *shape). The slopes are free; the offsets were rounded outward, so the lines
    enclose the op exactly as stored.
    """

    operand: int
    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor

    def magnitude(self, operand: Interval) -> Tensor:
        """(points, objectives): bound of |slope||x| + |offset| over all entries, both lines."""
        slope = torch.maximum(self.lower_slope.abs(), self.upper_slope.abs())
        offset = torch.maximum(self.lower_offset.abs(), self.upper_offset.abs())
        return (slope * operand.magnitude + offset).flatten(2).amax(-1)
