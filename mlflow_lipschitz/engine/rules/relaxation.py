"""Two affine functions that enclose an op, linear in some of its operands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval


class Centered(NamedTuple):
    """Two values as mean ± half the difference, with an axis for rows: (points, objectives or 1, 1, *shape).

    `half` is None where the two are one and the same.
    """

    mean: Tensor
    half: Tensor | None

    @staticmethod
    def of(lower: Tensor, upper: Tensor) -> Centered:
        if lower is upper:
            return Centered(lower[:, :, None], None)
        return Centered(((upper + lower) / 2)[:, :, None], ((upper - lower) / 2)[:, :, None])


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

    @cached_property
    def offset(self) -> Centered:
        return Centered.of(self.lower_offset, self.upper_offset)

    @cached_property
    def slopes(self) -> tuple[Centered, ...]:
        """One per operand; every backward step through the node uses them."""
        return tuple(Centered.of(*pair) for pair in zip(self.lower_slopes, self.upper_slopes, strict=True))

    @cached_property
    def steepest(self) -> tuple[Tensor, ...]:
        """Per operand, (points, objectives, 1): the largest |slope| of any entry."""
        pairs = zip(self.lower_slopes, self.upper_slopes, strict=True)
        return tuple(entries(torch.maximum(a.abs(), b.abs()), 2).amax(-1)[:, :, None] for a, b in pairs)

    def magnitude(self, *inputs: Interval) -> Tensor:
        """(points, objectives): bound of Σ |slope||x| + |offset| over all entries, both planes; `inputs` are the node's."""
        size = torch.maximum(self.lower_offset.abs(), self.upper_offset.abs())
        for position, lower, upper in zip(self.operands, self.lower_slopes, self.upper_slopes, strict=True):
            size = size + torch.maximum(lower.abs(), upper.abs()) * inputs[position].magnitude
        return entries(size, 2).amax(-1)
