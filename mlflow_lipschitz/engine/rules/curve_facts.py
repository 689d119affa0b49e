"""One row of facts per elementwise curve; everything else about it is derived (rules/curve_enclosure.py, rules/elementwise.py).

To add a curve: add its row here, its derivative's row if it is new, and its case in tests/cases.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Curve = Callable[..., Tensor]
Parameters = tuple[float, ...]


@dataclass(frozen=True)
class CurveFacts:
    """What is known of a curve f: R → R, possibly set-valued at finitely many points (a Clarke derivative at a kink).

    Attributes:
        value: f(z, *parameters), with relative error at most `ulps` · 2⁻⁵².
        slope: f′ where it exists, with relative error at most 2 · `ulps` · 2⁻⁵²; any value at a kink.
        derivative: parameters → (curve, parameters) of the Clarke derivative.
        breakpoints: ends of the pieces on which f is convex (+1), concave (−1) or affine (0), as `curvature` says.
        stationary: where f may turn between rising and falling.
        range: values f never leaves; catches underflow and rounding.
        lowest, highest: the ends of f's set at a point, for set-valued curves.
    """

    value: Curve
    slope: Curve
    derivative: Callable[[Parameters], tuple[str, Parameters]]
    curvature: tuple[int, ...]
    breakpoints: tuple[float, ...] = ()
    stationary: tuple[float, ...] = ()
    range: tuple[float, float] = (-math.inf, math.inf)
    ulps: int = 0
    lowest: Curve | None = None
    highest: Curve | None = None

    @property
    def curved(self) -> bool:
        return any(self.curvature)


def _choose(z: Tensor, below: float, at_zero: float, above: float) -> Tensor:
    # Of two Python numbers torch.where makes float32; of tensors of z's type it does not.
    return torch.where(z > 0, torch.full_like(z, above), torch.where(z < 0, torch.full_like(z, below), at_zero))


def _step(z: Tensor, left: float, right: float) -> Tensor:
    return _choose(z, left, (left + right) / 2, right)


def _logistic_product(z: Tensor) -> Tensor:
    # e^{-|z|} / (1 + e^{-|z|})² = σ(z)(1 − σ(z)) without the cancellation of 1 − σ.
    q = torch.exp(-z.abs())
    return q / ((1 + q) * (1 + q))


def _dtanh(z: Tensor) -> Tensor:
    return 4 * _logistic_product(2 * z)  # sech²(z); 1 − tanh² would cancel


_ATANH_INV_SQRT3 = math.atanh(1 / math.sqrt(3))  # inflections of sech²
_LOG_2_SQRT3 = math.log(2 + math.sqrt(3))  # inflections of σ′

CURVES: dict[str, CurveFacts] = {
    "relu": CurveFacts(
        value=lambda z: z.clamp(min=0),
        slope=lambda z: (z > 0).to(z.dtype),
        derivative=lambda _: ("step", (0.0, 1.0)),
        breakpoints=(0.0,),
        curvature=(0, 0),
    ),
    "leaky_relu": CurveFacts(
        value=lambda z, a: torch.where(z > 0, z, a * z),
        slope=lambda z, a: _choose(z, a, a, 1.0),
        derivative=lambda parameters: ("step", (parameters[0], 1.0)),
        breakpoints=(0.0,),
        curvature=(0, 0),
        stationary=(0.0,),
        ulps=1,
    ),
    "abs": CurveFacts(
        value=lambda z: z.abs(),
        slope=lambda z: torch.sign(z),
        derivative=lambda _: ("step", (-1.0, 1.0)),
        breakpoints=(0.0,),
        curvature=(0, 0),
        stationary=(0.0,),
    ),
    "step": CurveFacts(  # the Clarke derivative of a kink: `left` below zero, `right` above, everything between at zero
        value=_step,
        slope=lambda z, left, right: torch.zeros_like(z),
        derivative=lambda _: ("undefined", ()),
        breakpoints=(0.0,),
        curvature=(0, 0),
        stationary=(0.0,),
        lowest=lambda z, left, right: _choose(z, left, min(left, right), right),
        highest=lambda z, left, right: _choose(z, left, max(left, right), right),
    ),
    "tanh": CurveFacts(
        value=torch.tanh,
        slope=_dtanh,
        derivative=lambda _: ("dtanh", ()),
        breakpoints=(0.0,),
        curvature=(1, -1),
        range=(-1.0, 1.0),
        ulps=8,
    ),
    "sigmoid": CurveFacts(
        value=torch.sigmoid,
        slope=_logistic_product,
        derivative=lambda _: ("dsigmoid", ()),
        breakpoints=(0.0,),
        curvature=(1, -1),
        range=(0.0, 1.0),
        ulps=8,
    ),
    "dtanh": CurveFacts(
        value=_dtanh,
        slope=lambda z: -2 * torch.tanh(z) * _dtanh(z),
        derivative=lambda _: ("undefined", ()),
        # Off by less than 1 ulp, where f″ vanishes: the error in the bound is of third order, far below `ulps`.
        breakpoints=(-_ATANH_INV_SQRT3, _ATANH_INV_SQRT3),
        curvature=(1, -1, 1),
        stationary=(0.0,),
        range=(0.0, 1.0),
        ulps=16,
    ),
    "dsigmoid": CurveFacts(
        value=_logistic_product,
        slope=lambda z: -torch.tanh(z / 2) * _logistic_product(z),
        derivative=lambda _: ("undefined", ()),
        breakpoints=(-_LOG_2_SQRT3, _LOG_2_SQRT3),
        curvature=(1, -1, 1),
        stationary=(0.0,),
        range=(0.0, 0.25),
        ulps=16,
    ),
    "square": CurveFacts(
        value=lambda z: z * z,
        slope=lambda z: 2 * z,
        derivative=lambda _: ("undefined", ()),
        curvature=(1,),
        stationary=(0.0,),
        range=(0.0, math.inf),
        ulps=1,
    ),
}
