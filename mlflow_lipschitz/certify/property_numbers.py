"""A property's unsafe set as arrays of floats that enclose it: what the engine computes with.

Rounding goes where it cannot hide anything: boxes grow, and half-spaces grow. What is reported as a counterexample is
checked against the exact numbers, not against these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.engine.search.input_splitting import Pieces
from mlflow_lipschitz.errors import PropertyError
from mlflow_lipschitz.vnnlib.numbers import floats_above, floats_below
from mlflow_lipschitz.vnnlib.unsafe_set import Conjunction, HalfSpace, UnsafeCase, UnsafeSet


@dataclass(frozen=True)
class PropertyNumbers:
    """All float64, one entry per case of the unsafe set.

    Attributes:
        lower, upper: (cases, *input shape), the boxes, rounded outward.
        served_lower, served_upper: (cases, *input shape), the smallest and largest inputs in the box that the model's own
            type can hold; where a box holds none, both are the nearest there is.
        nearest: (cases,) bool, whether that was so for any entry.
        rows: (cases, conjunctions, half-spaces, outputs), exact.
        limits: (cases, conjunctions, half-spaces), rounded up: unsafe are outputs with rows · y ≤ limits, all of one conjunction.
            A case with fewer conjunctions than others is filled with impossible ones, a conjunction with half-spaces that
            have no limit.
    """

    lower: Tensor
    upper: Tensor
    served_lower: Tensor
    served_upper: Tensor
    nearest: Tensor
    rows: Tensor
    limits: Tensor

    @staticmethod
    def of(unsafe: UnsafeSet, input_shape: tuple[int, ...], kind: type, device: torch.device) -> PropertyNumbers:
        """Convert an unsafe set for a model that computes in `kind`, np.float32 or np.float64.

        Raises:
            PropertyError: a number out of range, or a coefficient that float64 cannot hold.
        """
        boxes = [_box(case, kind) for case in unsafe.cases]
        lower, upper, low, high, empty = (
            torch.from_numpy(np.stack(part)).to(device) for part in zip(*boxes, strict=True)
        )
        rows, limits = _half_spaces([case.conjunctions for case in unsafe.cases], unsafe.outputs)
        lower, upper, low, high = (end.reshape(-1, *input_shape) for end in (lower, upper, low, high))
        return PropertyNumbers(lower, upper, low, high, empty.any(1), rows.to(device), limits.to(device))

    @property
    def roots(self) -> Pieces:
        return Pieces(self.lower, self.upper, torch.arange(len(self.lower), device=self.lower.device))


def _box(case: UnsafeCase, kind: type) -> tuple[np.ndarray, ...]:
    lower, upper = floats_below(case.lower), floats_above(case.upper)
    low, high = floats_above(case.lower, kind).astype(np.float64), floats_below(case.upper, kind).astype(np.float64)
    empty = low > high
    nearest = np.where(np.abs(low - lower) < np.abs(lower - high), low, high)
    return lower, upper, np.where(empty, nearest, low), np.where(empty, nearest, high), empty


def _half_spaces(cases: Sequence[tuple[Conjunction, ...]], outputs: int) -> tuple[Tensor, Tensor]:
    most = max(len(conjunctions) for conjunctions in cases)
    longest = max(1, *(len(conjunction) for conjunctions in cases for conjunction in conjunctions))
    rows = np.zeros((len(cases), most, longest, outputs))
    limits = np.full((len(cases), most, longest), -np.inf)
    for case, conjunctions in enumerate(cases):
        for place, conjunction in enumerate(conjunctions):
            limits[case, place] = np.inf
            for position, half in enumerate(conjunction):
                row, limit = _row(half)
                rows[case, place, position, [index for index, _ in half.coefficients]] = row
                limits[case, place, position] = limit
    return torch.from_numpy(rows), torch.from_numpy(limits)


def _row(half: HalfSpace) -> tuple[list[float], float]:
    """Coefficients that float64 holds exactly, scaled to whole numbers where they have to be, and the limit, rounded up."""
    exact, limit = [factor for _, factor in half.coefficients], half.limit
    if not all(_fits(factor) for factor in exact):
        scale = math.lcm(*(factor.denominator for factor in exact))
        exact, limit = [factor * scale for factor in exact], limit * scale
        if not all(_fits(factor) for factor in exact):
            raise PropertyError("these coefficients have more digits than float64 holds", half.line)
    return [float(factor) for factor in exact], float(floats_above([limit])[0])


def _fits(value: Fraction) -> bool:
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False
