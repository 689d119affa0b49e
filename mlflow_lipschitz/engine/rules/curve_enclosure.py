"""From facts about a curve to enclosures of it: one function each for the interval and for the two lines.

For any slope s, y ≤ s·z + b with b = sup over [l, u] of f(z) − s·z. On a piece where f is convex or affine that supremum sits at
an end; where f is concave, every tangent is above f, so the tangent at any t gives a valid b, the best one where f′(t) = s.
Hence slopes are guesses, and only offsets have to be right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.rounding import next_up
from mlflow_lipschitz.engine.rules.curves.facts import Curve, CurveFacts, Period
from mlflow_lipschitz.engine.rules.relaxation import Relaxation

_ULP = 2.0**-52
# Tightness only: an inexact tangent point costs the square of its error, an inexact slope the error itself.
_PEAK_BISECTIONS, _SLOPE_BISECTIONS = 5, 6
_UNDERFLOW = 2.0**-960
# A slope computed as 1 / (z·z) is 0 where the square overflows: by then it is below this.
_LOST_SLOPE = 2.0**-1015
# Beyond this a float64 says too little about where in its period it is.
_FAR = 2.0**20


def curve_interval(facts: CurveFacts, z: Interval) -> Interval:
    """The range of the curve over an interval: its values at the ends and at the turning points inside.

    All of R where the interval leaves the curve's domain.
    """
    low, high = _ends_of_value(facts, z.lower)
    for at in (z.upper, *(torch.full_like(z.lower, p).clamp(z.lower, z.upper) for p in facts.turns)):
        low_at, high_at = _ends_of_value(facts, at)
        low, high = torch.minimum(low, low_at), torch.maximum(high, high_at)
    if facts.period is not None:
        low = torch.where(_reaches(z, facts.period, facts.period.bottom), facts.range[0], low)
        high = torch.where(_reaches(z, facts.period, facts.period.top), facts.range[1], high)
    known = Interval.enclosing(low, high)
    low, high = known.lower.clamp(min=facts.range[0]), known.upper.clamp(max=facts.range[1])
    return where_defined(defined_on(facts, z), low, high)


def curve_relaxation(facts: CurveFacts, z: Interval) -> Relaxation:
    """Two lines around the curve, each the best at the interval's midpoint among a few natural slopes."""
    upper_slope, upper_offset = _best_line(facts, z, 1)
    lower_slope, lower_offset = _best_line(facts, z, -1)
    inside = defined_on(facts, z)
    if inside is not None:
        known = where_defined(inside, lower_offset, upper_offset)
        lower_offset, upper_offset = known.lower, known.upper
        upper_slope, lower_slope = (torch.where(inside, slope, 0.0) for slope in (upper_slope, lower_slope))
    return Relaxation((0,), (lower_slope,), lower_offset, (upper_slope,), upper_offset)


def parallel_lines(facts: CurveFacts, z: Interval) -> Relaxation:
    """Two lines of one slope around the curve: the closest among a few natural slopes."""
    middle = z.lower + (z.upper - z.lower) / 2
    chord = (facts.value(z.upper) - facts.value(z.lower)) / (z.upper - z.lower)
    slopes = torch.stack([chord, facts.slope(middle), torch.zeros_like(chord)])
    slopes = torch.where(slopes.isfinite(), slopes, 0.0)
    high, low = offset_above(facts, z, slopes, 1), -offset_above(facts, z, -slopes, -1)
    width = high - low
    best = torch.where(width.isnan(), torch.inf, width).argmin(0, keepdim=True)
    slope, low, high = (side.gather(0, best).squeeze(0) for side in (slopes, low, high))
    inside = defined_on(facts, z)
    known = where_defined(inside, low, high)
    slope = slope if inside is None else torch.where(inside, slope, 0.0)
    return Relaxation((0,), (slope,), known.lower, (slope,), known.upper)


def is_affine_on(facts: CurveFacts, z: Interval) -> Tensor:
    """Whether the curve is one affine function (single-valued) on each interval: then its relaxation is exact."""
    inside = torch.zeros_like(z.lower, dtype=torch.bool)
    for piece, a, b in facts.spans if facts.bend is None else ():
        if piece.curvature == 0:
            # A set-valued curve is not one function at its jump; a continuous one is.
            inside = inside | ((z.lower > a) & (z.upper < b) if facts.jumps else (z.lower >= a) & (z.upper <= b))
    return inside


def defined_on(facts: CurveFacts, z: Interval) -> Tensor | None:
    """Where the curve is defined on the whole interval; None where it always is."""
    inside = None
    if facts.domain[0] > -torch.inf:
        inside = (z.lower >= facts.domain[0]) if facts.closed else (z.lower > facts.domain[0])
    if facts.pole is not None:
        beside = (z.lower > facts.pole) | (z.upper < facts.pole)
        inside = beside if inside is None else inside & beside
    return inside


def where_defined(inside: Tensor | None, low: Tensor, high: Tensor) -> Interval:
    if inside is None:
        return Interval(low, high)
    return Interval(torch.where(inside, low, -torch.inf), torch.where(inside, high, torch.inf))


def _reaches(z: Interval, period: Period, place: float) -> Tensor:
    """Whether place + k · length may lie in the interval for some whole k; in doubt, and far from zero, it does."""
    first, last = ((end - place) / period.length for end in (z.lower, z.upper))
    slack = 1e-9  # far above the rounding of numbers below `_FAR`
    return ~_is_near(z) | ((last + slack).floor() >= (first - slack).ceil())


def _is_near(z: Interval) -> Tensor:
    return (z.lower.abs() < _FAR) & (z.upper.abs() < _FAR)


def _best_line(facts: CurveFacts, z: Interval, side: int) -> tuple[Tensor, Tensor]:
    """The line above (side = 1) or below (side = -1) the curve that is closest to it at the midpoint."""
    middle = z.lower + (z.upper - z.lower) / 2
    slopes = torch.stack(candidate_slopes(facts, z, middle, side))
    slopes = torch.where(slopes.isfinite(), slopes, 0.0)
    offsets = side * offset_above(facts, z, slopes * side, side)
    height = side * (slopes * middle + offsets)
    best = torch.where(height.isnan(), torch.inf, height).argmin(0, keepdim=True)
    return slopes.gather(0, best).squeeze(0), offsets.gather(0, best).squeeze(0)


def candidate_slopes(facts: CurveFacts, z: Interval, middle: Tensor, side: int) -> list[Tensor]:
    low, high = facts.value(z.lower), facts.value(z.upper)
    chord = (high - low) / (z.upper - z.lower)
    slopes = [chord, *(facts.slope(at) for at in (z.lower, z.upper, middle))]
    for corner in facts.corners:
        at = torch.full_like(middle, corner).clamp(z.lower, z.upper)
        slopes.extend((facts.value(at) - end) / (at - place) for place, end in ((z.lower, low), (z.upper, high)))
    if facts.curved:
        slopes.append(torch.zeros_like(chord))
        slopes.extend(_tangent_slopes(facts, z, side))
    return slopes


def _tangent_slopes(facts: CurveFacts, z: Interval, side: int) -> Tensor:
    """Slopes of the lines through each end of the curve that touch it: where f(t) − f(end) = f′(t)(t − end)."""
    near, far = torch.stack([z.lower, z.upper]), torch.stack([z.upper, z.lower])
    fixed, value = near, facts.value(near)
    for _ in range(_SLOPE_BISECTIONS):
        t = near + (far - near) / 2
        # How far the tangent at t passes above the fixed end; the sought t leaves no room.
        room = side * (facts.value(t) + facts.slope(t) * (fixed - t) - value)
        near, far = torch.where(room < 0, t, near), torch.where(room < 0, far, t)
    return facts.slope(near + (far - near) / 2)


def offset_above(facts: CurveFacts, z: Interval, slope: Tensor, side: int) -> Tensor:
    """Rigorous upper bound of sup over z of side·f(z) − slope·z; `slope` is (candidates, *shape of z)."""
    if facts.bend is not None:
        return _bent_peak(facts, facts.bend, z, slope, side)
    best = torch.full_like(slope, -torch.inf)
    for piece, a, b in facts.spans:
        low, high = z.lower.clamp(min=a), z.upper.clamp(max=b)
        value = piece.value or facts.value
        if side * piece.curvature < 0:
            functions = (value, piece.slope or facts.slope)
            at = tangent_point(functions[1], (low, high), slope, side)
            peak = _tangent_peak(facts, functions, (low, high), (slope, at), side)
        else:
            peak = torch.maximum(*(_gap(facts, value, at, slope, side) for at in (low, high)))
        best = torch.where(low <= high, torch.maximum(best, peak), best)
    return best


def _gap(facts: CurveFacts, value: Curve, at: Tensor, slope: Tensor, side: int) -> Tensor:
    """side·value(at) − slope·at, rounded upward."""
    low, high = _widened(facts, value(at), at)
    top = high if side > 0 else -low
    drop = slope * at
    return top - drop + 4 * _ULP * (top.abs() + drop.abs()) + _UNDERFLOW


def tangent_point(tilt: Curve, piece: tuple[Tensor, Tensor], slope: Tensor, side: int) -> Tensor:
    """About where side·f′ passes the slope, on a piece where side·f is concave: an end of it where it never does."""
    near, far = (torch.broadcast_to(end, slope.shape) for end in piece)
    for _ in range(_PEAK_BISECTIONS):
        t = near + (far - near) / 2
        rising = side * tilt(t) > slope
        near, far = torch.where(rising, t, near), torch.where(rising, far, t)
    return near + (far - near) / 2


def _tangent_peak(
    facts: CurveFacts,
    functions: tuple[Curve, Curve],
    piece: tuple[Tensor, Tensor],
    line: tuple[Tensor, Tensor],
    side: int,
) -> Tensor:
    """Bound of side·f − slope·z on a piece where side·f is concave, by the tangent at any t; `line` is (slope, t)."""
    (value, tilt), (low, high), (slope, t) = functions, piece, line
    steepness = side * tilt(t)
    start, end = _widened(facts, value(t), t)
    top = end if side > 0 else -start
    peak = None
    for at in (low, high):
        rise, drop = steepness * (at - t), slope * at
        error = (8 + 4 * facts.ulps) * _ULP * rise.abs() + 2 * (facts.absolute + _LOST_SLOPE) * (at - t).abs()
        total = top + rise - drop + error + 8 * _ULP * (top.abs() + drop.abs()) + _UNDERFLOW
        peak = total if peak is None else torch.maximum(peak, total)
    assert peak is not None
    return peak


def _bent_peak(facts: CurveFacts, bend: float, z: Interval, slope: Tensor, side: int) -> Tensor:
    """Bound of side·f − slope·z by Taylor's theorem around the midpoint, or by the range of f, whichever is less."""
    middle = z.lower + (z.upper - z.lower) / 2
    reach = next_up(torch.maximum(z.upper - middle, middle - z.lower))
    start, end = _widened(facts, facts.value(middle), middle)
    top, drop = (end if side > 0 else -start), slope * middle
    rise = (side * facts.slope(middle) - slope).abs() * reach
    spread = (8 + 4 * facts.ulps) * _ULP * (1 + slope.abs()) * reach  # |f′| ≤ 1 here: the slope's own error
    curl = bend * reach * reach / 2
    size = top.abs() + drop.abs() + rise + curl
    tangent = top - drop + rise + spread + curl + 8 * _ULP * size + _UNDERFLOW
    tangent = torch.where(_is_near(z), tangent, torch.inf)
    known = curve_interval(facts, z)
    level = known.upper if side > 0 else -known.lower
    fall = torch.minimum(slope * z.lower, slope * z.upper)
    flat = level - fall + 8 * _ULP * (level.abs() + fall.abs()) + _UNDERFLOW
    return torch.fmin(tangent, flat)


def _ends_of_value(facts: CurveFacts, z: Tensor) -> tuple[Tensor, Tensor]:
    """Floats below and above every value the curve takes at z."""
    if not facts.jumps:
        return _widened(facts, facts.value(z), z)
    low, high = torch.full_like(z, torch.inf), torch.full_like(z, -torch.inf)
    for piece, a, b in facts.spans:
        here = (z >= a) & (z <= b)
        start, end = _widened(facts, (piece.value or facts.value)(z), z)
        low = torch.where(here, torch.minimum(low, start), low)
        high = torch.where(here, torch.maximum(high, end), high)
    return low, high


def _widened(facts: CurveFacts, value: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Floats below and above the exact value, of which `value` is the computed one."""
    if facts.ulps == 0:
        return value, value
    # A value that underflowed to zero is not zero, unless z itself is.
    slack = torch.where(z == 0, 0.0, torch.full_like(z, _UNDERFLOW + facts.absolute))
    widen = 2 * facts.ulps * _ULP * value.abs()
    return value - widen - slack, value + widen + slack
