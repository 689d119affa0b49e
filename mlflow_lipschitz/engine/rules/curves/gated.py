"""z times a gate between 0 and 1, softplus, and their derivatives. Inflections are roots found with 200 bits; tests check them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.rules.curves.facts import UNDEFINED, Curve, CurveFacts, Piece
from mlflow_lipschitz.engine.rules.curves.sigmoidal import ARGUMENT_ERROR, logistic_product

# Beyond this the gates are 0 or 1 and their derivatives 0, to far below 2⁻¹⁰⁰; products with z³ then cannot overflow.
_SATURATED = 60.0
_ERROR = 16 * ARGUMENT_ERROR


@dataclass(frozen=True)
class _Gate:
    """z · gate(z): where it is lowest, its two inflections, its least value; the same of its derivative, which has three."""

    value: Curve
    first: Curve
    second: Curve
    lowest: float
    least: float
    inflections: tuple[float, float]
    bends: tuple[float, float, float]
    slopes: tuple[float, float]

    def curve(self, derivative: str) -> CurveFacts:
        left, right = self.inflections
        return CurveFacts(
            value=self.value,
            slope=self.first,
            derivative=(derivative, ()),
            pieces=(Piece(-1, left), Piece(1, right), Piece(-1)),
            stationary=(self.lowest,),
            range=(math.nextafter(self.least, -1), math.inf),
            ulps=16,
            absolute=_ERROR,
        )

    def derivative(self) -> CurveFacts:
        first, second, third = self.bends
        smallest, largest = self.slopes
        return CurveFacts(
            value=self.first,
            slope=self.second,
            derivative=UNDEFINED,
            pieces=(Piece(-1, first), Piece(1, second), Piece(-1, third), Piece(1)),
            stationary=self.inflections,
            range=(math.nextafter(smallest, -1), math.nextafter(largest, 2)),
            ulps=16,
            absolute=_ERROR,
        )


def _dsilu(z: Tensor) -> Tensor:
    z = z.clamp(-_SATURATED, _SATURATED)
    return torch.sigmoid(z) + z * logistic_product(z)


def _ddsilu(z: Tensor) -> Tensor:
    z = z.clamp(-_SATURATED, _SATURATED)
    return logistic_product(z) * (2 - z * torch.tanh(z / 2))


def _normal_cdf(z: Tensor) -> Tensor:
    return torch.erfc(z * -math.sqrt(0.5)) / 2


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _dgelu(z: Tensor) -> Tensor:
    z = z.clamp(-_SATURATED, _SATURATED)
    return _normal_cdf(z) + z * _normal_density(z)


def _ddgelu(z: Tensor) -> Tensor:
    z = z.clamp(-_SATURATED, _SATURATED)
    return _normal_density(z) * (2 - z * z)


_A, _B = 2 * math.sqrt(2 / math.pi), 6 * 0.044715 * math.sqrt(2 / math.pi)  # g(z) = A z + B z³ / 3


def _logit(z: Tensor) -> Tensor:
    return z * (_A + _B / 3 * z * z)


def _dgelu_tanh(z: Tensor) -> Tensor:
    z = z.clamp(-_SATURATED, _SATURATED)
    g = _logit(z)
    return torch.sigmoid(g) + z * logistic_product(g) * (_A + _B * z * z)


def _ddgelu_tanh(z: Tensor) -> Tensor:
    z = z.clamp(-_SATURATED, _SATURATED)
    g, rate = _logit(z), _A + _B * z * z
    return logistic_product(g) * (2 * rate + 2 * _B * z * z - z * rate * rate * torch.tanh(g / 2))


def _squashed_softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    """t = tanh(log(1 + eᶻ)) and 1 − t², both from e^{−|z|}."""
    q = torch.exp(-z.abs())
    right = z > 0
    # Numerator and denominator times e^{−2z} where z > 0.
    above = torch.where(right, 1 + 2 * q, q * q + 2 * q)
    below = torch.where(right, 1 + 2 * q + 2 * q * q, q * q + 2 * q + 2)
    root = torch.where(right, 2 * (q + q * q), 2 * (1 + q)) / below
    return above / below, root * root


def _mish(z: Tensor) -> Tensor:
    return z * _squashed_softplus(z)[0]


def _dmish(z: Tensor) -> Tensor:
    z = z.clamp(-_SATURATED, _SATURATED)
    t, rest = _squashed_softplus(z)
    return t + z * rest * torch.sigmoid(z)


def _ddmish(z: Tensor) -> Tensor:
    z = z.clamp(-_SATURATED, _SATURATED)
    t, rest = _squashed_softplus(z)
    s = torch.sigmoid(z)
    return rest * (2 * s + z * (logistic_product(z) - 2 * t * s * s))


SILU = _Gate(
    value=lambda z: z * torch.sigmoid(z),
    first=_dsilu,
    second=_ddsilu,
    lowest=-1.278464542761073795109,
    least=-0.2784645427610737951094,
    inflections=(-2.399357280515467667833, 2.399357280515467667833),
    bends=(-3.435840993535110688952, 0.0, 3.435840993535110688952),
    slopes=(-0.09983932012886691695818, 1.099839320128866916958),
)

GELU = _Gate(
    value=lambda z: z * _normal_cdf(z),
    first=_dgelu,
    second=_ddgelu,
    lowest=-0.7517915246935644574579,
    least=-0.1699712074799036616939,
    inflections=(-math.sqrt(2), math.sqrt(2)),
    bends=(-2.0, 0.0, 2.0),
    slopes=(-0.1289041451851547863407, 1.128904145185154786341),
)

GELU_TANH = _Gate(
    value=lambda z: z * torch.sigmoid(_logit(z)),
    first=_dgelu_tanh,
    second=_ddgelu_tanh,
    lowest=-0.752461422071016258488,
    least=-0.1700407505712540506391,
    inflections=(-1.418504008790828355548, 1.418504008790828355548),
    bends=(-2.01348072462425792808, 0.0, 2.01348072462425792808),
    slopes=(-0.1289930686587717654559, 1.128993068658771765456),
)

MISH = _Gate(
    value=_mish,
    first=_dmish,
    second=_ddmish,
    lowest=-1.192431214515495212138,
    least=-0.3088434130172504066288,
    inflections=(-2.256376396360793120006, 1.490571179485428459294),
    bends=(-3.267337846520404576125, -0.08793443131491421132669, 2.114842563020877108593),
    slopes=(-0.1125261223894625564073, 1.088498161251727861228),
)


def softplus() -> CurveFacts:
    return CurveFacts(
        # torch's own softplus returns z itself above a threshold.
        value=lambda z: z.clamp(min=0) + torch.log1p(torch.exp(-z.abs())),
        slope=torch.sigmoid,
        derivative=("sigmoid", ()),
        pieces=(Piece(1),),
        range=(0.0, math.inf),
        ulps=8,
    )
