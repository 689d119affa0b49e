"""Exponential, logarithm and constant powers, with their domains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlflow_lipschitz.engine.rules.curves.facts import UNDEFINED, CurveFacts, Name, Piece, constant, zero

# From here on an exponent less one is rounded to the next even number: odd and even powers cannot be told apart.
_WHOLE = 2.0**53


def exp() -> CurveFacts:
    return CurveFacts(torch.exp, torch.exp, ("exp", ()), (Piece(1),), range=(0.0, math.inf), ulps=4)


def log() -> CurveFacts:
    return CurveFacts(torch.log, torch.reciprocal, ("dlog", ()), (Piece(-1),), ulps=4, domain=(0.0, math.inf))


def dlog() -> CurveFacts:
    """1 / z where the logarithm is defined."""
    return CurveFacts(
        value=torch.reciprocal,
        slope=lambda z: -1 / (z * z),
        derivative=UNDEFINED,
        pieces=(Piece(1),),
        range=(0.0, math.inf),
        ulps=4,
        domain=(0.0, math.inf),
    )


def sqrt() -> CurveFacts:
    return CurveFacts(
        value=torch.sqrt,
        slope=lambda z: 0.5 / torch.sqrt(z),
        derivative=("power", (0.5, -0.5)),
        pieces=(Piece(-1),),
        range=(0.0, math.inf),
        ulps=2,
        domain=(0.0, math.inf),
        closed=True,
    )


def reciprocal() -> CurveFacts:
    return power(1.0, -1.0)


def square() -> CurveFacts:
    return CurveFacts(
        value=lambda z: z * z,
        slope=lambda z: 2 * z,
        derivative=("power", (2.0, 1.0)),
        pieces=(Piece(1),),
        stationary=(0.0,),
        range=(0.0, math.inf),
        ulps=1,
    )


def power(coefficient: float, exponent: float) -> CurveFacts:
    """coefficient · z ** exponent: for a whole exponent on all z (but 0 below zero), for others on z > 0.

    An exponent that is no multiple of 1/2 may be rounded by 1 ulp, and so may the coefficient.
    """
    derivative = _derivative(coefficient, exponent)
    if exponent == 0 or coefficient == 0:
        value = constant(coefficient if exponent == 0 else 0.0)
        return CurveFacts(value, zero, derivative, (Piece(0),), ulps=1)
    if exponent == 1:
        return CurveFacts(lambda z: coefficient * z, constant(coefficient), derivative, (Piece(0),), ulps=2)
    rest = exponent - 1
    # Other exponents may be another row's less one, rounded: z ** (1e-16) differs from 1 by less than 2⁻⁵⁴ · 745 for any z, and so
    # does z ** δ for a rounding δ of an exponent that leaves z ** exponent finite.
    sharp = (2 * exponent).is_integer()
    return CurveFacts(
        value=lambda z: coefficient * _raised(z, exponent),
        slope=lambda z: coefficient * exponent * _raised(z, rest),
        derivative=derivative,
        pieces=_pieces(coefficient, exponent),
        stationary=(0.0,) if exponent > 0 else (),
        range=_range(coefficient, exponent),
        ulps=8 if sharp else 512,
        # What a power that underflows loses, the coefficient multiplies.
        absolute=abs(coefficient) * max(1.0, abs(exponent)) * 2.0**-1015,
        domain=(-math.inf, math.inf) if exponent.is_integer() else (0.0, math.inf),
        closed=exponent > 0,
        pole=0.0 if exponent.is_integer() and exponent < 0 else None,
    )


def _raised(z: Tensor, exponent: float) -> Tensor:
    return torch.reciprocal(z) if exponent == -1 else torch.pow(z, exponent)


def _derivative(coefficient: float, exponent: float) -> Name:
    if abs(exponent) >= _WHOLE:
        return UNDEFINED
    if exponent in (0, 1):
        return "power", (coefficient * exponent, 0.0)
    return "power", (coefficient * exponent, exponent - 1)


def _pieces(coefficient: float, exponent: float) -> tuple[Piece, ...]:
    sign = 1 if coefficient > 0 else -1
    if not exponent.is_integer():
        return (Piece(sign if exponent > 1 or exponent < 0 else -sign),)
    if exponent % 2 == 0:
        return (Piece(sign, 0.0), Piece(sign)) if exponent < 0 else (Piece(sign),)
    return Piece(-sign, 0.0), Piece(sign)


def _range(coefficient: float, exponent: float) -> tuple[float, float]:
    if exponent.is_integer() and exponent % 2:
        return -math.inf, math.inf
    return (0.0, math.inf) if coefficient > 0 else (-math.inf, 0.0)
