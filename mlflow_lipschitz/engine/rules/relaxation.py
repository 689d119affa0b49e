"""Two affine functions that enclose an op, linear in some of its operands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval

# A half is exact above the subnormal numbers; 2⁻¹⁰⁷⁴ is the last bit of those below.
_HALVED, _LOST = 2.0**-1000, 2.0**-1070


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
        mean, half = upper / 2 + lower / 2, upper / 2 - lower / 2
        # Halves of the smallest numbers are rounded; where that matters, the half difference covers it.
        tiny = torch.maximum(upper.abs(), lower.abs()) < _HALVED
        lost = tiny & ((upper != 0) | (lower != 0))
        return Centered(mean[:, :, None], torch.where(lost, half + _LOST, half)[:, :, None])


class BackwardStep(NamedTuple):
    """One backward step through an op: what is passed on, the constant part, and the ℓ1 norm its rounding error scales with.

    `passed` holds (number of the input, coefficients on it, a bound of their ℓ1 norm per row where it came for free).
    """

    passed: list[tuple[int, Tensor, Tensor | None]]
    offset: Tensor | None
    norm: Tensor


@runtime_checkable
class Enclosure(Protocol):
    """Affine functions around an op, below and above."""

    def backward(self, coeffs: Tensor) -> BackwardStep:
        """Replace coeffs · y by an affine function above it; coeffs are (points, objectives, rows, *shape)."""
        ...

    def magnitude(self, *inputs: Interval) -> Tensor:
        """(points, objectives): bound over all entries of the absolute terms in the functions; `inputs` are the node's."""
        ...


@runtime_checkable
class Family(Protocol):
    """Relaxations of one op over one set of intervals, picked by a weight for the plane above and one for the plane below."""

    @property
    def start(self) -> tuple[Tensor, Tensor]:
        """Weights (upper, lower) in [0, 1] that are best where nothing else is known."""
        ...

    def at(self, weights: tuple[Tensor, Tensor]) -> Relaxation:
        """Sound for any weights in [0, 1], and differentiable in them."""
        ...


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

    def backward(self, coeffs: Tensor) -> BackwardStep:
        """Upper plane under a positive coefficient, lower plane under a negative one: A·mean + |A|·half the difference.

        Rounding of mean and half difference is within `RelaxedOp.rounding_terms`.
        """
        size = coeffs.abs()
        norm = entries(size, 3).sum(-1)
        passed: list[tuple[int, Tensor, Tensor | None]] = []
        for position, slope, steepest in zip(self.operands, self.slopes, self.steepest, strict=True):
            onward = coeffs * slope.mean
            if slope.half is not None:
                onward = torch.addcmul(onward, size, slope.half)
            passed.append((position, onward, norm * steepest))
        offset = dot(coeffs, self.offset.mean)
        if self.offset.half is not None:
            offset = offset + dot(size, self.offset.half)
        return BackwardStep(passed, offset, norm)


def dot(form: Tensor, values: Tensor) -> Tensor:
    """Products summed over a node's entries. Measured on CPUs: a batch of matrix-vector products takes twice as long."""
    return entries(form * values, 3).sum(-1)
