"""Curves that saturate, and their bell-shaped derivatives. Inflections are roots found with 200 bits; tests check them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlflow_lipschitz.engine.rules.curves.facts import UNDEFINED, CurveFacts, Piece

# What is off because z² or a scaled z was rounded before it was raised: |z|² e^{−z²} is below 1/e.
ARGUMENT_ERROR = 2.0**-49


def logistic_product(z: Tensor) -> Tensor:
    """σ(z)(1 − σ(z)) as e^{−|z|} / (1 + e^{−|z|})², without the cancellation of 1 − σ."""
    q = torch.exp(-z.abs())
    return q / ((1 + q) * (1 + q))


def _dtanh(z: Tensor) -> Tensor:
    return 4 * logistic_product(2 * z)  # sech²(z); 1 − tanh² would cancel


_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)


def _derf(z: Tensor) -> Tensor:
    return _TWO_OVER_ROOT_PI * torch.exp(-z * z)


def _datan(z: Tensor) -> Tensor:
    return 1 / (1 + z * z)


def _dsoftsign(z: Tensor) -> Tensor:
    shrunk = 1 / (1 + z.abs())
    return shrunk * shrunk


def _rising_then_flat() -> tuple[Piece, Piece]:
    return Piece(1, 0.0), Piece(-1)


def _bell(inflection: float) -> tuple[Piece, Piece, Piece]:
    # The inflections are off by less than 1 ulp, where f″ vanishes: the error in the bound is of third order, far below `ulps`.
    return Piece(1, -inflection), Piece(-1, inflection), Piece(1)


def tanh() -> CurveFacts:
    return CurveFacts(torch.tanh, _dtanh, ("dtanh", ()), _rising_then_flat(), range=(-1.0, 1.0), ulps=8)


def dtanh() -> CurveFacts:
    return CurveFacts(
        value=_dtanh,
        slope=lambda z: -2 * torch.tanh(z) * _dtanh(z),
        derivative=UNDEFINED,
        pieces=_bell(math.atanh(1 / math.sqrt(3))),
        stationary=(0.0,),
        range=(0.0, 1.0),
        ulps=16,
    )


def sigmoid() -> CurveFacts:
    return CurveFacts(torch.sigmoid, logistic_product, ("dsigmoid", ()), _rising_then_flat(), range=(0.0, 1.0), ulps=8)


def dsigmoid() -> CurveFacts:
    return CurveFacts(
        value=logistic_product,
        slope=lambda z: -torch.tanh(z / 2) * logistic_product(z),
        derivative=UNDEFINED,
        pieces=_bell(math.log(2 + math.sqrt(3))),
        stationary=(0.0,),
        range=(0.0, 0.25),
        ulps=16,
    )


def erf() -> CurveFacts:
    return CurveFacts(
        torch.erf, _derf, ("derf", ()), _rising_then_flat(), range=(-1.0, 1.0), ulps=8, absolute=ARGUMENT_ERROR
    )


def derf() -> CurveFacts:
    return CurveFacts(
        value=_derf,
        slope=lambda z: -2 * z.clamp(-40, 40) * _derf(z),
        derivative=UNDEFINED,
        pieces=_bell(math.sqrt(0.5)),
        stationary=(0.0,),
        range=(0.0, math.nextafter(_TWO_OVER_ROOT_PI, 2)),
        ulps=16,
        absolute=ARGUMENT_ERROR,
    )


def atan() -> CurveFacts:
    half_turn = math.nextafter(math.pi / 2, 2)
    return CurveFacts(torch.atan, _datan, ("datan", ()), _rising_then_flat(), range=(-half_turn, half_turn), ulps=8)


def datan() -> CurveFacts:
    return CurveFacts(
        value=_datan,
        slope=lambda z: -2 * z * _datan(z) * _datan(z),
        derivative=UNDEFINED,
        pieces=_bell(math.sqrt(1 / 3)),
        stationary=(0.0,),
        range=(0.0, 1.0),
        ulps=16,
    )


def softsign() -> CurveFacts:
    return CurveFacts(
        value=lambda z: z / (1 + z.abs()),
        slope=_dsoftsign,
        derivative=("dsoftsign", ()),
        pieces=_rising_then_flat(),
        range=(-1.0, 1.0),
        ulps=8,
    )


def dsoftsign() -> CurveFacts:
    """1 / (1 + |z|)²: convex on both sides of a cusp."""
    return CurveFacts(
        value=_dsoftsign,
        slope=lambda z: -2 * torch.sign(z) * _dsoftsign(z) / (1 + z.abs()),
        derivative=UNDEFINED,
        pieces=(
            Piece(1, 0.0, slope=lambda z: 2 * _dsoftsign(z) / (1 + z.abs())),
            Piece(1, slope=lambda z: -2 * _dsoftsign(z) / (1 + z.abs())),
        ),
        stationary=(0.0,),
        range=(0.0, 1.0),
        ulps=16,
    )
