"""Taylor coefficients of a function over an interval, as intervals rounded outward: what the checker's curves are made of.

A `Jet` lists ranges of f, f′, f″/2, f‴/6, … over an interval; those left out are zero. Interval Taylor arithmetic as in
Moore, Kearfott and Cloud, Introduction to Interval Analysis, 2009, chapter 9. NumPy's elementary functions are trusted to
8 units in the last place. A range holds no NaN: of what is unknown it is all of R.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

ULP = 2.0**-52
UNDERFLOW = 2.0**-960
_MAX = np.float64(np.finfo(np.float64).max)
_FUNCTION_ULPS = 16.0
# Beyond this a float64 says too little about where in its period it is.
_FAR = 2.0**20
# From here on the next whole number below is rounded: odd and even cannot be told apart.
WHOLE = 2.0**53


class Range(NamedTuple):
    """Everything between two numbers, entry by entry."""

    low: Array
    high: Array


Jet = list[Range]


def widened(low: Array, high: Array, ulps: float = 1.0, guard: float = 0.0) -> Range:
    """The range outward by the rounding of its ends, which may be NaN; `guard`: what an underflow may have lost."""
    return Range(_below(low, ulps, guard), -_below(-high, ulps, guard))


def _below(value: Array, ulps: float, guard: float | Array) -> Array:
    value = np.minimum(value, _MAX)  # NaN stays NaN, and becomes −∞ below
    return np.fmax(value - (ulps * ULP * np.abs(value) + guard), -np.inf)


def near(value: float, ulps: float = 2.0) -> Range:
    return widened(np.array([value]), np.array([value]), ulps)


def exactly(value: float) -> Range:
    return Range(np.array([value]), np.array([value]))


ZERO, ONE = exactly(0.0), exactly(1.0)
UNKNOWN = Range(np.array([-np.inf]), np.array([np.inf]))


def minus(a: Range) -> Range:
    return Range(-a.high, -a.low)


def plus(a: Range, b: Range) -> Range:
    low, high = np.nextafter(a.low + b.low, -np.inf), np.nextafter(a.high + b.high, np.inf)
    return Range(np.fmax(low, -np.inf), np.fmin(high, np.inf))


def times(a: Range, b: Range) -> Range:
    """Rounded by one unit in the last place; a sign survives underflow, and 0 · ∞ is 0: the numbers themselves are finite."""
    if a is ONE or b is ONE:
        return a if b is ONE else b
    if not (a.low >= 0).all():
        a, b = b, a
    if (a.low >= 0).all():
        return Range(_least(a, b.low), -_least(a, -b.high))
    ends = [np.where((x == 0) | (y == 0), 0.0, x * y) for x in a for y in b]
    zero = ((a.low == 0) & (a.high == 0)) | ((b.low == 0) & (b.high == 0))
    low, high = (np.nextafter(end(ends), to) for end, to in ((np.minimum.reduce, -np.inf), (np.maximum.reduce, np.inf)))
    return Range(np.where(zero, 0.0, low), np.where(zero, 0.0, high))


def _least(factor: Range, low: Array) -> Array:
    """At most the products of a factor ≥ 0 and a number `low`."""
    rises = low >= 0
    end = np.where(rises, factor.low, factor.high)
    return np.where((end == 0) | (low == 0), 0.0, np.nextafter(end * low, np.where(rises, 0.0, -np.inf)))


def rising(function: Function, u: Range, ulps: float = _FUNCTION_ULPS) -> Range:
    """A function that rises, and that is not lost to underflow at 0."""
    guards = (np.where(x == 0, 0.0, UNDERFLOW) for x in u)
    return Range(_below(function(u.low), ulps, next(guards)), -_below(-function(u.high), ulps, next(guards)))


def falling(function: Function, u: Range, ulps: float = _FUNCTION_ULPS) -> Range:
    return rising(lambda x: function(-x), minus(u), ulps)


def limited(a: Range, low: float, high: float) -> Range:
    """The part of a range between two numbers that its function never leaves."""
    return Range(np.clip(a.low, low, high), np.clip(a.high, low, high))


def sizes(a: Range) -> Range:
    """The absolute values of a range."""
    ends = np.abs(a.low), np.abs(a.high)
    return Range(np.where((a.low <= 0) & (a.high >= 0), 0.0, np.minimum(*ends)), np.maximum(*ends))


def variable(low: Array, high: Array) -> Jet:
    # −0 would have another reciprocal than 0.
    return [Range(np.fmax(np.minimum(low, _MAX), -np.inf) + 0.0, np.fmin(np.maximum(high, -_MAX), np.inf) + 0.0), ONE]


def total(u: Jet, v: Jet) -> Jet:
    return [plus(a, b) for a, b in zip_longest(u, v, fillvalue=ZERO)]


def opposite(u: Jet) -> Jet:
    return [minus(a) for a in u]


def scaled(factor: Range, u: Jet) -> Jet:
    return [times(factor, a) for a in u]


def _coefficient(u: Jet, v: Jet, k: int) -> Range:
    """The k-th coefficient of the product, from as many terms as there are."""
    result: Range | None = None
    for j in range(max(0, k - len(v) + 1), min(k, len(u) - 1) + 1):
        term = times(u[j], v[k - j])
        result = term if result is None else plus(result, term)
    return ZERO if result is None else result


def product(u: Jet, v: Jet, order: int) -> Jet:
    return [_coefficient(u, v, k) for k in range(min(order, len(u) + len(v) - 2) + 1)]


def derivative_of(u: Jet) -> Jet:
    return [u[1], *(times(exactly(float(k)), u[k]) for k in range(2, len(u)))]


def integral(value: Range, slope: Jet, order: int) -> Jet:
    """The jet of a function of which the value and the derivative's jet are known."""
    return [value, *(times(near(1 / (k + 1)), a) if k else a for k, a in enumerate(slope[:order]))]


def reciprocal(u: Jet, order: int) -> Jet:
    """1 / u, for u > 0."""
    result = [falling(np.reciprocal, u[0])]
    for _ in range(order):
        result.append(minus(times(result[0], _coefficient(u, result, len(result)))))
    return result


def exponential(u: Jet, order: int) -> Jet:
    value = rising(np.exp, u[0])
    result = [Range(np.maximum(value.low, 0.0), value.high)]
    rate = derivative_of(u)
    for k in range(order):
        result.append(times(near(1 / (k + 1)), _coefficient(rate, result, k)))
    return result


def tanh_and_bell(u: Jet, order: int) -> tuple[Jet, Jet]:
    """tanh(u) and its derivative sech²(u), of which the derivative is −2 tanh · sech²: signs survive, 1 − tanh² would cancel."""
    value, bell = [limited(rising(np.tanh, u[0]), -1.0, 1.0)], [limited(falling(_sech2, sizes(u[0])), 0.0, 1.0)]
    rate, slope = derivative_of(u) if order else [], []
    for k in range(order):
        slope.append(_coefficient(bell, rate, k))
        value.append(times(near(1 / (k + 1)), slope[k]))
        bell.append(minus(times(near(2 / (k + 1)), _coefficient(value, slope, k))))
    return value, bell


def _sech2(x: Array) -> Array:
    decay = np.exp(-2 * np.abs(x))
    return 4 * decay / ((1 + decay) * (1 + decay))


def logistic(u: Jet, order: int) -> tuple[Jet, Jet]:
    """σ(u) = (1 + tanh(u / 2)) / 2 and σ(−u), without the cancellation of 1 − σ."""
    gate = limited(rising(lambda x: 1 / (1 + np.exp(-x)), u[0]), 0.0, 1.0)
    rest = limited(falling(lambda x: 1 / (1 + np.exp(x)), u[0]), 0.0, 1.0)
    value, _ = tanh_and_bell(scaled(exactly(0.5), u), order)
    slopes = scaled(exactly(0.5), value[1:])
    return [gate, *slopes], [rest, *opposite(slopes)]


def power(z: Range, factor: Range, exponent: float, order: int) -> Jet:
    """factor · z ** exponent around z: whole exponents for all z but 0 below zero, others for z > 0."""
    result = []
    for k in range(order + 1):
        lost = k > 0 and abs(exponent) >= WHOLE
        result.append(UNKNOWN if lost else times(factor, _raised(z, exponent - k)))
        if exponent == k:
            break
        doubt = 0.0 if (2 * exponent).is_integer() else 4 * ULP * (abs(exponent) + k)
        left = widened(np.array([exponent - k]), np.array([exponent - k]), 1.0, doubt)
        factor = times(times(factor, left), near(1 / (k + 1)))
    return result


def _raised(z: Range, exponent: float) -> Range:
    if exponent == 0:
        return ONE
    whole = exponent.is_integer()
    # The exponent may have been rounded, as of a power's derivative: z ** δ is 1 up to 745 · 2⁻⁵³ where z ** exponent is finite.
    ulps = _FUNCTION_ULPS if (2 * exponent).is_integer() else 2.0**10
    if whole and exponent % 2 == 0:
        z = sizes(z)
    raised = (rising if exponent > 0 else falling)(
        lambda x: np.power(np.abs(x) if exponent % 2 == 0 else x, exponent), z, ulps
    )
    return raised if whole and exponent % 2 else Range(np.maximum(raised.low, 0.0), raised.high)


def wave(z: Range, quarter: int) -> Range:
    """The cosine, the sine, the cosine's and the sine's opposite: cos(z − quarter · π / 2)."""
    function, sign = (np.cos, np.sin)[quarter % 2], 1 - 2 * (quarter // 2 % 2)
    ends = [sign * function(x) for x in z]
    guards = [np.where(x == 0, 0.0, 2.0**-56) for x in z]
    low = np.minimum(*(_below(v, _FUNCTION_ULPS, g) for v, g in zip(ends, guards, strict=True)))
    high = -np.minimum(*(_below(-v, _FUNCTION_ULPS, g) for v, g in zip(ends, guards, strict=True)))
    far = ~((np.abs(z.low) < _FAR) & (np.abs(z.high) < _FAR))
    for half in (0, 1):
        # Whether quarter · π / 2 + half · π + 2 k π lies in the range for a whole k; in doubt it does.
        first, last = (x / (2 * math.pi) - quarter / 4 - half / 2 for x in z)
        reached = far | (np.floor(last + 1e-9) >= np.ceil(first - 1e-9))
        low, high = (low, np.where(reached, 1.0, high)) if half == 0 else (np.where(reached, -1.0, low), high)
    return limited(Range(low, high), -1.0, 1.0)
