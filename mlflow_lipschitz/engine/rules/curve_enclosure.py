"""From facts about a curve to enclosures of it: one function each for the interval and for the two lines.

For any slope s, y ≤ s·z + b with b = sup over [l, u] of f(z) − s·z. On a piece where f is convex or affine that supremum sits at
an end; where f is concave, every tangent is above f, so the tangent at any t gives a valid b, the best one where f′(t) = s.
Hence slopes are guesses, and only offsets have to be right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.rules.curve_facts import CurveFacts, Parameters
from mlflow_lipschitz.engine.rules.relaxation import Relaxation

_ULP = 2.0**-52
# Tightness only: an inexact tangent point costs the square of its error, an inexact slope the error itself.
_PEAK_BISECTIONS, _SLOPE_BISECTIONS = 5, 6
_UNDERFLOW = 2.0**-960


def curve_interval(facts: CurveFacts, parameters: Parameters, z: Interval) -> Interval:
    """The range of the curve over an interval: its values at the ends and at the turning points inside."""
    low, high = _ends_of_value(facts, parameters, z.lower)
    for at in (z.upper, *(torch.full_like(z.lower, p).clamp(z.lower, z.upper) for p in facts.stationary)):
        low_at, high_at = _ends_of_value(facts, parameters, at)
        low, high = torch.minimum(low, low_at), torch.maximum(high, high_at)
    return Interval.enclosing(low.clamp(min=facts.range[0]), high.clamp(max=facts.range[1]))


def curve_relaxation(facts: CurveFacts, parameters: Parameters, z: Interval) -> Relaxation:
    """Two lines around the curve, each the best at the interval's midpoint among a few natural slopes."""
    upper_slope, upper_offset = _best_line(facts, parameters, z, 1)
    lower_slope, lower_offset = _best_line(facts, parameters, z, -1)
    return Relaxation((0,), (lower_slope,), lower_offset, (upper_slope,), upper_offset)


def is_affine_on(facts: CurveFacts, z: Interval) -> Tensor:
    """Whether the curve is one affine function (single-valued) on each interval: then its relaxation is exact."""
    ends = (-math.inf, *facts.breakpoints, math.inf)
    inside = torch.zeros_like(z.lower, dtype=torch.bool)
    for curvature, a, b in zip(facts.curvature, ends[:-1], ends[1:], strict=True):
        if curvature == 0:
            # A set-valued curve is not one function at its breakpoint; a continuous one is.
            strict = facts.lowest is not None
            inside = inside | ((z.lower > a) & (z.upper < b) if strict else (z.lower >= a) & (z.upper <= b))
    return inside


def _best_line(facts: CurveFacts, parameters: Parameters, z: Interval, side: int) -> tuple[Tensor, Tensor]:
    """The line above (side = 1) or below (side = -1) the curve that is closest to it at the midpoint."""
    middle = z.lower + (z.upper - z.lower) / 2
    slopes = torch.stack(_candidate_slopes(facts, parameters, z, middle, side))
    slopes = torch.where(slopes.isfinite(), slopes, 0.0)
    offsets = side * _offset_above(facts, parameters, z, slopes * side, side)
    height = side * (slopes * middle + offsets)
    best = torch.where(height.isnan(), torch.inf, height).argmin(0, keepdim=True)
    return slopes.gather(0, best).squeeze(0), offsets.gather(0, best).squeeze(0)


def _candidate_slopes(
    facts: CurveFacts, parameters: Parameters, z: Interval, middle: Tensor, side: int
) -> list[Tensor]:
    low, high = facts.value(z.lower, *parameters), facts.value(z.upper, *parameters)
    chord = (high - low) / (z.upper - z.lower)
    slopes = [chord, *(facts.slope(at, *parameters) for at in (z.lower, z.upper, middle))]
    if facts.curved:
        slopes.append(torch.zeros_like(chord))
        slopes.extend(_tangent_slopes(facts, parameters, z, side))
    return slopes


def _tangent_slopes(facts: CurveFacts, parameters: Parameters, z: Interval, side: int) -> Tensor:
    """Slopes of the lines through each end of the curve that touch it: where f(t) − f(end) = f′(t)(t − end)."""
    near, far = torch.stack([z.lower, z.upper]), torch.stack([z.upper, z.lower])
    fixed, value = near, facts.value(near, *parameters)
    for _ in range(_SLOPE_BISECTIONS):
        t = near + (far - near) / 2
        # How far the tangent at t passes above the fixed end; the sought t leaves no room.
        room = side * (facts.value(t, *parameters) + facts.slope(t, *parameters) * (fixed - t) - value)
        near, far = torch.where(room < 0, t, near), torch.where(room < 0, far, t)
    return facts.slope(near + (far - near) / 2, *parameters)


def _offset_above(facts: CurveFacts, parameters: Parameters, z: Interval, slope: Tensor, side: int) -> Tensor:
    """Rigorous upper bound of sup over z of side·f(z) − slope·z; `slope` is (candidates, *shape of z)."""
    ends = (-math.inf, *facts.breakpoints, math.inf)
    best = torch.full_like(slope, -torch.inf)
    for curvature, a, b in zip(facts.curvature, ends[:-1], ends[1:], strict=True):
        low, high = z.lower.clamp(min=a), z.upper.clamp(max=b)
        if side * curvature < 0:
            peak = _tangent_peak(facts, parameters, (low, high), slope, side)
        else:
            peak = torch.maximum(*(_gap(facts, parameters, at, slope, side) for at in (low, high)))
        best = torch.where(low <= high, torch.maximum(best, peak), best)
    return best


def _gap(facts: CurveFacts, parameters: Parameters, at: Tensor, slope: Tensor, side: int) -> Tensor:
    """side·f(at) − slope·at, rounded upward."""
    low, high = _ends_of_value(facts, parameters, at)
    value = high if side > 0 else -low
    drop = slope * at
    gap = value - drop
    return gap + 4 * _ULP * (value.abs() + drop.abs()) + _UNDERFLOW


def _tangent_peak(
    facts: CurveFacts, parameters: Parameters, piece: tuple[Tensor, Tensor], slope: Tensor, side: int
) -> Tensor:
    """Bound of side·f − slope·z on a piece where side·f is concave, by the tangent where side·f′ ≈ slope."""
    low, high = piece
    near, far = torch.broadcast_to(low, slope.shape), torch.broadcast_to(high, slope.shape)
    for _ in range(_PEAK_BISECTIONS):
        t = near + (far - near) / 2
        rising = side * facts.slope(t, *parameters) > slope
        near, far = torch.where(rising, t, near), torch.where(rising, far, t)
    t = near + (far - near) / 2
    steepness = side * facts.slope(t, *parameters)
    start, end = _ends_of_value(facts, parameters, t)
    value = end if side > 0 else -start
    peak = None
    for at in (low, high):
        rise, drop = steepness * (at - t), slope * at
        error = (8 + 4 * facts.ulps) * _ULP * rise.abs()
        total = value + rise - drop + error + 8 * _ULP * (value.abs() + drop.abs()) + _UNDERFLOW
        peak = total if peak is None else torch.maximum(peak, total)
    assert peak is not None
    return peak


def _ends_of_value(facts: CurveFacts, parameters: Parameters, z: Tensor) -> tuple[Tensor, Tensor]:
    """Floats below and above every value the curve takes at z."""
    low = (facts.lowest or facts.value)(z, *parameters)
    high = (facts.highest or facts.value)(z, *parameters)
    if facts.ulps == 0:
        return low, high
    # A value that underflowed to zero is not zero, unless z itself is.
    slack = torch.where(z == 0, 0.0, torch.full_like(z, _UNDERFLOW))
    widen = 2 * facts.ulps * _ULP
    return low - widen * low.abs() - slack, high + widen * high.abs() + slack
