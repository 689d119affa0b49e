"""What every elementwise curve means, in exact arithmetic: value and derivative, written down apart from the engine's rows.

Numbers are `Fraction` (where the curve is rational) or 400-bit `mpmath`. At a kink, `side` chooses the one-sided derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mpf

mpmath.mp.prec = 400

Meaning = Callable[..., tuple[Any, Any]]


def _kink(left: Any, right: Any) -> Meaning:
    def curve(z: Any, exact: Callable[[Any], Any], side: int, *parameters: float) -> tuple[Any, Any]:
        low = exact(left if left is not None else parameters[0])
        slope = exact(right) if z > 0 or (z == 0 and side) else low
        return z * slope, slope

    return curve


def _beyond(z: Any, place: Any, side: int) -> bool:
    return bool(z > place or (z == place and side))


def _clip(z: Any, exact: Callable[[Any], Any], side: int, low: float, high: float) -> tuple[Any, Any]:
    inside = _beyond(z, exact(low), side) and not _beyond(z, exact(high), side)
    return min(max(z, exact(low)), exact(high)), exact(1 if inside else 0)


def _hard_swish(z: Any, exact: Callable[[Any], Any], side: int) -> tuple[Any, Any]:
    if not _beyond(z, -3, side):
        return exact(0), exact(0)
    return (z, exact(1)) if _beyond(z, 3, side) else (z * (z + 3) / 6, (2 * z + 3) / 6)


def _elu(z: Any, exact: Callable[[Any], Any], side: int, alpha: float, gamma: float) -> tuple[Any, Any]:
    if _beyond(z, 0, side):
        return gamma * z, exact(gamma)
    return mpf(gamma) * alpha * mpmath.expm1(z), mpf(gamma) * alpha * mpmath.exp(z)


def _celu(z: Any, exact: Callable[[Any], Any], side: int, alpha: float) -> tuple[Any, Any]:
    if z > 0:
        return z, exact(1)
    return alpha * mpmath.expm1(z / alpha), mpmath.exp(z / alpha)


def _smooth(value: Callable[..., Any], slope: Callable[..., Any] | None = None) -> Meaning:
    tangent = slope or (lambda z, *parameters: mpmath.diff(lambda t: value(t, *parameters), z))
    return lambda z, exact, side, *parameters: (value(z, *parameters), tangent(z, *parameters))


def _slope_of(name: str) -> Meaning:
    return lambda z, exact, side, *parameters: (CURVES[name](z, exact, side, *parameters)[1], exact(0))


def _sigma(z: Any) -> Any:
    return 1 / (1 + mpmath.exp(-z))


def _dsigma(z: Any) -> Any:
    # 1 − σ(z) would cancel even at 400 bits.
    return mpmath.exp(-z) / (1 + mpmath.exp(-z)) ** 2


def _cdf(z: Any) -> Any:
    return mpmath.erfc(-z / mpmath.sqrt(2)) / 2


def _density(z: Any) -> Any:
    return mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi)


def _rate() -> Any:
    return 2 * mpmath.sqrt(2 / mpmath.pi)


def _logit(z: Any) -> Any:
    return _rate() * (z + mpf("0.044715") * z**3)


def _mish_gate(z: Any) -> Any:
    return mpmath.tanh(mpmath.log1p(mpmath.exp(z)))


def _dmish(z: Any) -> Any:
    return _mish_gate(z) + z * mpmath.sech(mpmath.log1p(mpmath.exp(z))) ** 2 * _sigma(z)


def _power(z: Any, exact: Callable[[Any], Any], side: int, coefficient: float, exponent: float) -> tuple[Any, Any]:
    c, p = exact(coefficient), Fraction(exponent)
    if p.denominator == 1:
        return c * z ** int(p), c * int(p) * z ** int(p - 1) if p else exact(0)
    q = mpf(p.numerator) / p.denominator
    return c * z**q, mpf("inf") * c * q if z == 0 and q < 1 else c * q * z ** (q - 1)


CURVES: dict[str, Meaning] = {
    "relu": _kink(0, 1),
    "leaky_relu": _kink(None, 1),
    "abs": _kink(-1, 1),
    "step": lambda z, exact, side, left, right: (exact(right if _beyond(z, 0, side) else left), exact(0)),
    "clip": _clip,
    "window": _slope_of("clip"),
    "hard_swish": _hard_swish,
    "dhard_swish": _slope_of("hard_swish"),
    "elu": _elu,
    "delu": _slope_of("elu"),
    "celu": _celu,
    "dcelu": _slope_of("celu"),
    "tanh": _smooth(mpmath.tanh, lambda z: mpmath.sech(z) ** 2),
    "dtanh": _slope_of("tanh"),
    "sigmoid": _smooth(_sigma, _dsigma),
    "dsigmoid": _slope_of("sigmoid"),
    "erf": _smooth(mpmath.erf, lambda z: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-z * z)),
    "derf": _slope_of("erf"),
    "atan": _smooth(mpmath.atan, lambda z: 1 / (1 + z * z)),
    "datan": _slope_of("atan"),
    "softsign": lambda z, exact, side: (z / (1 + abs(z)), 1 / (1 + abs(z)) ** 2),
    "dsoftsign": _slope_of("softsign"),
    "softplus": _smooth(lambda z: mpmath.log1p(mpmath.exp(z)) if z < 0 else z + mpmath.log1p(mpmath.exp(-z)), _sigma),
    "silu": _smooth(lambda z: z * _sigma(z), lambda z: _sigma(z) + z * _dsigma(z)),
    "dsilu": _slope_of("silu"),
    "gelu": _smooth(lambda z: z * _cdf(z), lambda z: _cdf(z) + z * _density(z)),
    "dgelu": _slope_of("gelu"),
    "gelu_tanh": _smooth(
        lambda z: z * _sigma(_logit(z)),
        lambda z: _sigma(_logit(z)) + z * _dsigma(_logit(z)) * _rate() * (1 + 3 * mpf("0.044715") * z * z),
    ),
    "dgelu_tanh": _slope_of("gelu_tanh"),
    "mish": _smooth(lambda z: z * _mish_gate(z), _dmish),
    "dmish": _slope_of("mish"),
    "exp": _smooth(mpmath.exp, mpmath.exp),
    "log": _smooth(mpmath.log, lambda z: 1 / z),
    "dlog": _slope_of("log"),
    "sqrt": _smooth(mpmath.sqrt, lambda z: 1 / (2 * mpmath.sqrt(z)) if z else mpf("inf")),
    "reciprocal": lambda z, exact, side: (1 / z, -1 / z**2),
    "square": lambda z, *_: (z * z, 2 * z),
    "power": _power,
    "sin": _smooth(mpmath.sin, mpmath.cos),
    "cos": _smooth(mpmath.cos, lambda z: -mpmath.sin(z)),
    "minus_sin": _slope_of("cos"),
}

# Curves of models whose one-sided derivatives differ somewhere.
KINKED = ("relu", "leaky_relu", "abs", "clip", "hard_swish", "elu")

_RATIONAL = ("relu", "leaky_relu", "abs", "step", "clip", "window", "hard_swish", "softsign", "reciprocal", "square")


def is_rational(curve: str, parameters: tuple[float, ...]) -> bool:
    """Whether the curve takes fractions to fractions."""
    return curve in _RATIONAL or (curve == "power" and float(parameters[1]).is_integer())
