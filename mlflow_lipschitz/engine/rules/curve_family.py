"""All useful lines around a curve, one per slope: what an optimizer chooses from (α-CROWN, Xu et al., ICLR 2021).

A line of any slope is sound once its offset is the rigorous supremum, so a weight in [0, 1] may move the slope freely between the
flattest and the steepest natural one. By the envelope theorem the offset falls by z* per unit of slope, z* being where the
supremum is reached: that is the gradient, while the value stays the rigorous one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.rules.curve_enclosure import (
    candidate_slopes,
    curve_relaxation,
    defined_on,
    offset_above,
    tangent_point,
    where_defined,
)
from mlflow_lipschitz.engine.rules.curves.facts import CurveFacts
from mlflow_lipschitz.engine.rules.relaxation import Relaxation

# A chord this close to a tight one is the best line there is: nothing is left to choose.
_TIGHT = 2.0**-40


@dataclass(frozen=True)
class _Side:
    """Slopes from `flattest` to `steepest` for the lines above (side = 1) or below (side = −1); `start` is a weight."""

    side: int
    flattest: Tensor
    steepest: Tensor
    start: Tensor


@dataclass(frozen=True)
class CurveFamily:
    """The lines above and below a curve over an interval."""

    facts: CurveFacts
    z: Interval
    above: _Side
    below: _Side

    @staticmethod
    def of(facts: CurveFacts, z: Interval) -> CurveFamily:
        usual = curve_relaxation(facts, z)
        slopes = (usual.upper_slopes[0], usual.lower_slopes[0])
        if facts.flat:  # how a jump moves with its argument is the last thing to use: it adds what that one may do
            slopes = (torch.zeros_like(slopes[0]), torch.zeros_like(slopes[1]))
        sides = [_side(facts, z, side, slope) for side, slope in zip((1, -1), slopes, strict=True)]
        return CurveFamily(facts, z, sides[0], sides[1])

    @property
    def start(self) -> tuple[Tensor, Tensor]:
        """Weights (upper, lower) of the lines that are best where nothing else is known."""
        return self.above.start, self.below.start

    def at(self, weights: tuple[Tensor, Tensor]) -> Relaxation:
        """The two lines for weights in [0, 1], each (points, objectives or 1, *shape)."""
        (upper_slope, upper_offset), (lower_slope, lower_offset) = (
            self._line(side, weight) for side, weight in zip((self.above, self.below), weights, strict=True)
        )
        return Relaxation((0,), (lower_slope,), lower_offset, (upper_slope,), upper_offset)

    def _line(self, choice: _Side, weight: Tensor) -> tuple[Tensor, Tensor]:
        side = choice.side
        slope = torch.lerp(choice.flattest, choice.steepest, weight)
        with torch.no_grad():
            offset = side * offset_above(self.facts, self.z, slope * side, side)
            at = _reached_at(self.facts, self.z, slope * side, side)
        offset = offset + at * (slope.detach() - slope)
        inside = defined_on(self.facts, self.z)
        if inside is not None:
            known = where_defined(inside, offset, offset)
            slope, offset = torch.where(inside, slope, 0.0), known.upper if side > 0 else known.lower
        return slope, offset


def _side(facts: CurveFacts, z: Interval, side: int, usual: Tensor) -> _Side:
    middle = z.lower + (z.upper - z.lower) / 2
    slopes = torch.stack([usual, *candidate_slopes(facts, z, middle, side), *_jump_slopes(facts, z, side)])
    slopes = torch.where(slopes.isfinite(), slopes, usual)
    best = _chord_is_best(facts, z, side)
    flattest, steepest = (torch.where(best, usual, end) for end in (slopes.amin(0), slopes.amax(0)))
    start = (usual - flattest) / (steepest - flattest)
    return _Side(side, flattest, steepest, torch.where(start.isfinite(), start.clamp(0, 1), 0.5))


def _jump_slopes(facts: CurveFacts, z: Interval, side: int) -> list[Tensor]:
    """Slopes of the lines from each end to the far side of a jump inside."""
    slopes: list[Tensor] = []
    for place, height in facts.jumps:
        beside = facts.value(torch.tensor(place, dtype=torch.float64, device=z.lower.device))
        peak = beside + side * abs(height) / 2  # the value at a jump is the middle of it
        slopes.extend((peak - facts.value(end)) / (place - end) for end in (z.lower, z.upper))
    return slopes


def _chord_is_best(facts: CurveFacts, z: Interval, side: int) -> Tensor:
    """Whether the chord is the envelope on this side: tight at both ends, it is below every other line."""
    low, high = facts.value(z.lower), facts.value(z.upper)
    chord = (high - low) / (z.upper - z.lower)
    offset = offset_above(facts, z, chord * side, side)
    needed = torch.maximum(side * (low - chord * z.lower), side * (high - chord * z.upper))
    size = 1 + low.abs() + high.abs() + (chord * z.lower).abs() + (chord * z.upper).abs()
    return (offset - needed <= _TIGHT * size) | ~chord.isfinite()


def _reached_at(facts: CurveFacts, z: Interval, slope: Tensor, side: int) -> Tensor:
    """About where side·f − slope·z is largest."""
    best, place = torch.full_like(slope, -torch.inf), torch.zeros_like(slope)
    for piece, a, b in facts.spans:
        low, high = z.lower.clamp(min=a), z.upper.clamp(max=b)
        value = piece.value or facts.value
        candidates = [low, high]
        if side * piece.curvature < 0:
            candidates.append(tangent_point(piece.slope or facts.slope, (low, high), slope, side))
        for at in candidates:
            height = side * value(at) - slope * at
            better = (low <= high) & (height > best)
            best, place = torch.where(better, height, best), torch.where(better, at, place)
    return place.nan_to_num(0.0, 0.0, 0.0)
