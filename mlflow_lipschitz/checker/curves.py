"""Bounds of elementwise curves that are proved here: ranges over intervals, and lines above and below.

Of any slope s, the supremum of f(z) − s·z is bounded on small segments: where the enclosed derivatives say that it lies at an
end, by its ends; elsewhere by the second-order Taylor polynomial around the likely place of the maximum. A range is what
slope 0 gives. A guessed slope costs tightness only.

Intervals and slopes are arrays that broadcast, entries are independent. Curves made of lines also take arrays of
`fractions.Fraction`, and are then computed without rounding.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflow_lipschitz.checker.curve_table import Name, Parameters, Piece, Row, row_of
from mlflow_lipschitz.checker.jets import ULP, UNDERFLOW, Array, Jet, Range, exactly, limited, plus, variable

# Into how many segments an interval is divided; more only where the first leave too much room.
_SEGMENTS, _LOOSE, _ROUNDING = (4, 16, 64), 1e-3, 1e-12
# How many segments are looked at together: a bound on memory.
_CHUNK = 2**16
_SAMPLES = 20
_TANGENT_STEPS = 6

# Lower and upper end, slope, and side: 1 for the curve itself, −1 for its opposite.
Entries = tuple[Array, Array, Array, Array]
_SIDES = np.array([1.0, -1.0])


def value_range(curve: str, parameters: Parameters, lower: Any, upper: Any) -> tuple[Any, Any]:
    """The range over [lower, upper], rounded outward; all of R where the interval leaves the curve's domain."""
    row = row_of(curve, parameters)
    lower, upper = np.broadcast_arrays(lower, upper)
    high, low = offset_above(curve, parameters, lower, upper, 0, _SIDES.reshape(2, *(1,) * lower.ndim))
    low, known = 0 - low, _known(row, lower, upper)
    return np.where(known, np.maximum(low, row.low), low), np.where(known, np.minimum(high, row.high), high)


def offsets(curve: str, parameters: Parameters, lower: Any, upper: Any, above: Any, below: Any) -> tuple[Any, Any]:
    """Of the lines of two slopes above and below the curve."""
    slopes = np.stack([above, 0 - below])
    top, bottom = offset_above(curve, parameters, lower, upper, slopes, _SIDES.reshape(2, *(1,) * (slopes.ndim - 1)))
    return top, -bottom


def offset_above(curve: str, parameters: Parameters, lower: Any, upper: Any, slope: Any, side: Any) -> Any:
    """Upper bound of the supremum of side · f(z) − slope · z over [lower, upper], side 1 or −1; +inf where nothing is known."""
    row = row_of(curve, parameters)
    lower, upper, slope, side = np.broadcast_arrays(lower, upper, slope, side)
    exact = object in (lower.dtype, upper.dtype)
    kind: Any = np.frompyfunc(Fraction, 1, 1) if exact else np.float64
    dtype = object if exact else np.float64
    lower, upper, slope, side = (np.asarray(kind(x), dtype=dtype) for x in (lower, upper, slope, side))
    best = np.full(lower.shape, -np.inf, dtype=lower.dtype)
    with np.errstate(all="ignore"):
        for piece, *ends in _spans(row):
            # Where the interval's ends are fractions, so are the places between two pieces.
            start, end = (np.asarray(kind(x)) if math.isfinite(x) else x for x in ends)
            low, high = np.maximum(lower, start), np.minimum(upper, end)
            here = low <= high
            peak = np.full_like(best, np.inf)
            entries = (low[here], high[here], slope[here], side[here])
            peak[here] = _line_peak(piece.line, entries) if piece.line else _smooth_peak(row, piece, entries)
            best = np.where(here, np.maximum(best, peak), best)
    return np.where(_known(row, lower, upper), best, np.inf)


def default_slopes(curve: str, parameters: Parameters, lower: Any, upper: Any) -> tuple[Array, Array]:
    """Slopes of a line above and of one below: of a few natural ones those closest to the curve at the midpoint."""
    row = row_of(curve, parameters)
    ends = np.broadcast_arrays(np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64))
    low, high = (end.ravel() for end in ends)
    with np.errstate(all="ignore"):
        places = [low, high, *(np.clip(end, low, high) for _, _, end in _spans(row)[:-1])]
        if any(piece.jet for piece in row.pieces):
            places.extend(low + (high - low) * (k / _SAMPLES) for k in range(1, _SAMPLES))
        z = np.stack(places)
        samples, _ = _at(row, z)
        slopes = []
        for side in (1, -1):
            candidates = np.stack(_candidates(row, low, high, side))
            candidates = np.where(np.isfinite(candidates), candidates, 0.0)
            values = samples.high if side > 0 else samples.low
            # Not rounded outward: only a guess hangs on it.
            room = [np.fmax.reduce(side * (values - s * z)) + side * s * (low + (high - low) / 2) for s in candidates]
            best = np.where(np.isnan(room), np.inf, room).argmin(0)
            slopes.append(np.take_along_axis(candidates, best[None], 0).reshape(ends[0].shape))
    return slopes[0], slopes[1]


def derivative(curve: str, parameters: Parameters) -> Name:
    """The curve that is the Clarke derivative, and its constants.

    Raises:
        ValueError: no curve is it.
    """
    name = row_of(curve, parameters).derivative
    if name is None:
        raise ValueError(f"no curve is the derivative of {curve!r}: a certificate differentiates a model once")
    return name


def is_line_on(curve: str, parameters: Parameters, lower: Any, upper: Any) -> NDArray[np.bool_]:
    """Whether the curve is one affine function on each interval: where it jumps, strictly inside one piece."""
    row = row_of(curve, parameters)
    lower, upper = np.broadcast_arrays(lower, upper)
    inside = np.zeros(lower.shape, dtype=bool)
    for piece, start, end in _spans(row):
        if piece.line or piece.affine:
            inside |= ((lower > start) & (upper < end) if row.jumps else (lower >= start) & (upper <= end)).astype(bool)
    return inside


def jumps(curve: str, parameters: Parameters) -> bool:
    """Whether the curve has a set of values somewhere, as the Clarke derivative of a kink."""
    return row_of(curve, parameters).jumps


def is_flat(curve: str, parameters: Parameters) -> bool:
    """Whether the curve is constant on every piece."""
    return all(piece.line is not None and piece.line[0] == 0 for piece in row_of(curve, parameters).pieces)


def _known(row: Row, lower: Any, upper: Any) -> NDArray[np.bool_]:
    known = (lower <= upper) & ((lower >= row.start) if row.closed else (lower > row.start) | (row.start == -math.inf))
    return np.asarray(known & ((lower > 0) | (upper < 0)) if row.pole else known, dtype=bool)


def _spans(row: Row) -> list[tuple[Piece, float, float]]:
    ends = [piece.end for piece in row.pieces]
    return list(zip(row.pieces, [-math.inf, *ends[:-1]], ends, strict=True))


def _line_peak(line: tuple[float, float], entries: tuple[Any, Any, Any, Any]) -> Any:
    """Of side · (tilt · z + height) − slope · z: at an end of the interval."""
    low, high, slope, side = entries
    exact = low.dtype == object
    tilt, height = (side * (Fraction(x) if exact else x) for x in line)
    steep = tilt - slope
    peaks = []
    for at in (low, high):
        rise = np.where((steep == 0) | (at == 0), 0, steep * at)
        value = rise + height
        if not exact:
            nothing = (steep == 0) | (at == 0)
            sure = nothing | ((np.abs(steep) == 1) & ((slope == 0) | (tilt == 0)))
            error = np.where(nothing | (height == 0), 0.0, 2 * ULP * np.abs(value))
            value = value + np.where(sure, 0.0, 2 * ULP * np.abs(rise) + UNDERFLOW) + error
            value = np.where(np.isnan(value), np.inf, value)
        peaks.append(value)
    return np.maximum(*peaks)


def _enclosed(row: Row, piece: Piece, low: Array, high: Array, order: int) -> Jet:
    """The jet of a smooth piece over an interval, to the full order."""
    assert piece.jet is not None
    jet = piece.jet(variable(low, high), order)
    return [limited(jet[0], row.low, row.high), *jet[1:], *[exactly(0.0)] * (order + 1 - len(jet))]


def _points(row: Row, low: Array, high: Array, count: int) -> Array:
    """Rising places from each interval's start to its end, closer to each other near 0, where curves bend."""
    ends = np.abs(low), np.abs(high)
    # Where powers have no value, or no derivative, what counts is how far 0 is.
    close = np.clip(np.maximum(np.minimum(*ends), 1e-9 * np.maximum(*ends)), 1e-300, 1.0)
    unit = close if row.pole or row.start == 0 else 1.0
    first, last = (np.arcsinh(np.clip(end, -1e6, 1e6) / unit) for end in (low, high))
    steps = np.arange(count + 1)[:, None] / count
    points = np.clip(np.sinh(first + (last - first) * steps) * unit, low, high)
    points[0], points[-1] = low, high
    return np.maximum.accumulate(points)


def _smooth_peak(row: Row, piece: Piece, entries: Entries) -> Array:
    peak, unsettled = _ends_peak(row, piece, entries)
    for count in _SEGMENTS:
        places = np.flatnonzero(unsettled)
        for first in range(0, places.size, _CHUNK // count):
            chunk = places[first : first + _CHUNK // count]
            low, high, slope, side = (x[chunk] for x in entries)
            peak[chunk], unsettled[chunk] = _divided_peak(row, piece, (low, high, slope, side), count)
    return peak


def _divided_peak(row: Row, piece: Piece, entries: Entries, count: int) -> tuple[Array, NDArray[np.bool_]]:
    """The largest bound of the segments, and where it is far above every value seen."""
    low, high, slope, side = entries
    points = _points(row, low, high, count)
    segments = points[:-1].ravel(), points[1:].ravel(), np.tile(slope, count), np.tile(side, count)
    peak, inside = _ends_peak(row, piece, segments)
    seen, least = peak.copy(), peak.reshape(count, -1).min(0)
    start, end, slope, side = (x[inside] for x in segments)
    peak[inside], value = _inner_peak(row, piece, (start, end, slope, side))
    seen[inside] = np.maximum(seen[inside], value)
    bound, seen = (x.reshape(count, -1).max(0) for x in (peak, seen))
    return bound, bound - seen > _LOOSE * (seen - least) + _ROUNDING * np.abs(seen)


def _ends_peak(row: Row, piece: Piece, entries: Entries) -> tuple[Array, NDArray[np.bool_]]:
    """The larger value at the two ends, and where a larger one in between is not excluded."""
    low, high, slope, side = entries
    _, tilt, curl = (_turned(a, side) for a in _enclosed(row, piece, low, high, 2))
    ends = (_turned(_enclosed(row, piece, at, at, 0)[0], side) for at in (low, high))
    peak = np.maximum(*(_lifted(end.high, slope, at) for end, at in zip(ends, (low, high), strict=True)))
    return peak, ~((low == high) | (tilt.low >= slope) | (tilt.high <= slope) | (curl.low >= 0))


def _inner_peak(row: Row, piece: Piece, entries: Entries) -> tuple[Array, Array]:
    """By Taylor's theorem around about where the slope is reached, or by the range, whichever is less; and the value there."""
    low, high, slope, side = entries
    t = np.clip(np.nan_to_num(low + (high - low) / 2), low, high)
    for _ in range(2):
        _, tilt, bend = (_middle_of(_turned(a, side)) for a in _enclosed(row, piece, t, t, 2))
        t = np.clip(t + np.nan_to_num(np.where(bend < 0, (slope - tilt) / (2 * bend), 0.0)), low, high)
    value, _, curl, twist = (_turned(a, side) for a in _enclosed(row, piece, low, high, 3))
    top, start, bend_at = (_turned(a, side) for a in _enclosed(row, piece, t, t, 2))
    excess = plus(start, Range(-slope, -slope))
    rises = []
    for tilt_at, turn, reach in ((excess.high, twist.high, high - t), (-excess.low, -twist.low, t - low)):
        reach = reach * (1 + 2 * ULP) + UNDERFLOW
        third = np.maximum(turn, 0.0) * reach
        bent = bend_at.high + third + 4 * ULP * (np.abs(bend_at.high) + third) + UNDERFLOW
        rises.append(_rise(np.maximum(tilt_at, 0.0), np.fmin(bent, curl.high), reach))
    rise = np.maximum(*rises)
    taylor = _lifted(top.high + rise + 2 * ULP * (np.abs(top.high) + rise), slope, t)
    level = np.maximum(_lifted(value.high, slope, low), _lifted(value.high, slope, high))
    return np.fmin(taylor, level), _lifted(top.high, slope, t)


def _rise(tilt: Array, curl: Array, reach: Array) -> Array:
    """Upper bound of the maximum of tilt · x + curl · x² for x from 0 to `reach`, for tilt ≥ 0."""
    rise, bow = tilt * reach, curl * reach * reach
    inner = (curl < 0) & (tilt < -2 * curl * reach)
    peak = np.where(inner, tilt * (tilt / -curl) / 4, rise + bow)
    return np.maximum(peak, 0.0) + 8 * ULP * np.where(inner, peak, rise + np.abs(bow)) + UNDERFLOW


def _lifted(top: Array, slope: Array, at: Array) -> Array:
    """top − slope · at, rounded upward; +inf for what is no number."""
    drop = np.where((slope == 0) | (at == 0), 0.0, slope * at)
    guard = np.where((slope == 0) | (at == 0), 0.0, 2 * ULP * (np.abs(top) + np.abs(drop)) + UNDERFLOW)
    return np.fmin(np.where(np.isnan(top), np.inf, top) - drop + guard, np.inf)


def _at(row: Row, z: Array) -> tuple[Range, Array]:
    """About the least and the largest value at each place, and the slope: at a kink the mean of both."""
    low, high = np.full_like(z, np.inf), np.full_like(z, -np.inf)
    slope, count = np.zeros_like(z), np.zeros_like(z)
    for piece, start, end in _spans(row):
        here = (z >= start) & (z <= end)
        if piece.line:
            tilt = np.full_like(z, piece.line[0])
            value = np.where(tilt == 0, 0.0, tilt * z) + piece.line[1]
        else:
            value, tilt = (_middle_of(a) for a in _enclosed(row, piece, z, z, 1))
        low, high = np.where(here, np.minimum(low, value), low), np.where(here, np.maximum(high, value), high)
        slope, count = slope + np.where(here, tilt, 0.0), count + here
    return Range(low, high), slope / count


def _candidates(row: Row, lower: Array, upper: Array, side: int) -> list[Array]:
    """The chord and three tangents; of a curve with corners, lines through them; of a smooth one, lines that touch it."""
    places = (lower, upper, lower + (upper - lower) / 2)
    values, tangents = zip(*((_middle_of(v), s) for v, s in (_at(row, z) for z in places)), strict=True)
    slopes = [(values[1] - values[0]) / (upper - lower), *tangents]
    for _, _, corner in _spans(row)[:-1] if len(row.pieces) > 2 else ():
        at = np.clip(corner, lower, upper)
        top = _turned(_at(row, at)[0], side).high * side
        slopes.extend((top - value) / (at - place) for place, value in zip((lower, upper), values, strict=False))
    if any(piece.jet for piece in row.pieces):
        fixed, value = np.stack([lower, upper]), np.stack(values[:2])
        near, far = fixed, fixed[::-1]
        for _ in range(_TANGENT_STEPS):
            t = near + (far - near) / 2
            height, tilt = _at(row, t)
            # How far the tangent at t passes above the fixed end; the sought t leaves no room.
            beyond = side * (_middle_of(height) + tilt * (fixed - t) - value) < 0
            near, far = np.where(beyond, t, near), np.where(beyond, far, t)
        slopes.extend([np.zeros_like(lower), *_at(row, near + (far - near) / 2)[1]])
    return slopes


def _middle_of(a: Range) -> Array:
    return a.low + (a.high - a.low) / 2


def _turned(a: Range, side: Any) -> Range:
    return Range(np.where(side > 0, a.low, -a.high), np.where(side > 0, a.high, -a.low))
