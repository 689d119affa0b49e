"""Curves made of affine or exponential pieces: rectifiers, and the steps that are their Clarke derivatives."""

from __future__ import annotations

import torch

from mlflow_lipschitz.engine.rules.curves.facts import UNDEFINED, CurveFacts, Piece, choose, constant, zero


def _one(z: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(z)


def relu() -> CurveFacts:
    return CurveFacts(
        value=lambda z: z.clamp(min=0),
        slope=lambda z: (z > 0).to(z.dtype),
        derivative=("step", (0.0, 1.0)),
        pieces=(Piece(0, 0.0), Piece(0)),
    )


def leaky_relu(a: float) -> CurveFacts:
    return CurveFacts(
        value=lambda z: torch.where(z > 0, z, a * z),
        slope=lambda z: choose(z, 0.0, torch.full_like(z, a), _one(z)),
        derivative=("step", (a, 1.0)),
        pieces=(Piece(0, 0.0), Piece(0)),
        stationary=(0.0,),
        ulps=1,
    )


def absolute() -> CurveFacts:
    return CurveFacts(
        value=torch.abs,
        slope=torch.sign,
        derivative=("step", (-1.0, 1.0)),
        pieces=(Piece(0, 0.0), Piece(0)),
        stationary=(0.0,),
    )


def step(left: float, right: float) -> CurveFacts:
    """The Clarke derivative of a kink: `left` below zero, `right` above, everything between at zero."""
    return CurveFacts(
        value=lambda z: choose(z, 0.0, torch.full_like(z, left), torch.full_like(z, right)),
        slope=zero,
        derivative=UNDEFINED,
        pieces=(Piece(0, 0.0, constant(left), zero), Piece(0, value=constant(right), slope=zero)),
        jumps=((0.0, right - left),),
    )


def clip(low: float, high: float) -> CurveFacts:
    return CurveFacts(
        value=lambda z: z.clamp(low, high),
        slope=lambda z: ((z > low) & (z < high)).to(z.dtype),
        derivative=("window", (low, high)),
        pieces=(Piece(0, low), Piece(0, high), Piece(0)),
        range=(low, high),
    )


def window(low: float, high: float) -> CurveFacts:
    """1 between `low` and `high`, 0 outside, everything between at the two places: the Clarke derivative of `clip`."""
    return CurveFacts(
        value=lambda z: ((z >= low) & (z <= high)).to(z.dtype),
        slope=zero,
        derivative=UNDEFINED,
        pieces=(
            Piece(0, low, constant(0.0), zero),
            Piece(0, high, constant(1.0), zero),
            Piece(0, value=constant(0.0), slope=zero),
        ),
        jumps=((low, 1.0), (high, -1.0)),
    )


def hard_swish() -> CurveFacts:
    """z · clip(z / 6 + 1 / 2, 0, 1)."""
    return CurveFacts(
        value=lambda z: z * (z + 3).clamp(0, 6) / 6,
        slope=lambda z: torch.where(z < -3, torch.zeros_like(z), torch.where(z > 3, _one(z), (2 * z + 3) / 6)),
        derivative=("dhard_swish", ()),
        pieces=(
            Piece(0, -3.0, zero, zero),
            Piece(1, 3.0, slope=lambda z: (2 * z + 3) / 6),
            Piece(0, value=lambda z: z, slope=_one),
        ),
        stationary=(-1.5,),
        ulps=4,
    )


def dhard_swish() -> CurveFacts:
    ramp = (lambda z: (2 * z + 3) / 6, lambda z: torch.full_like(z, 1 / 3))
    return CurveFacts(
        value=lambda z: torch.where(z < -3, torch.zeros_like(z), torch.where(z > 3, _one(z), (2 * z + 3) / 6)),
        slope=lambda z: torch.where((z < -3) | (z > 3), 0.0, torch.full_like(z, 1 / 3)),
        derivative=UNDEFINED,
        pieces=(Piece(0, -3.0, zero, zero), Piece(0, 3.0, *ramp), Piece(0, value=_one, slope=zero)),
        jumps=((-3.0, -0.5), (3.0, -0.5)),
        ulps=4,
        absolute=2.0**-50,  # 2z + 3 cancels
    )


def elu(alpha: float, gamma: float) -> CurveFacts:
    """γ·z above zero, γ·α·(eᶻ − 1) below (Clevert et al. 2016; with both constants Klambauer et al. 2017)."""
    steep = gamma * alpha
    return CurveFacts(
        value=lambda z: torch.where(z > 0, gamma * z, steep * torch.expm1(z.clamp(max=0))),
        slope=lambda z: torch.where(z > 0, torch.full_like(z, gamma), steep * torch.exp(z.clamp(max=0))),
        derivative=("delu", (alpha, gamma)),
        pieces=(
            Piece(_sign(steep), 0.0, slope=lambda z: steep * torch.exp(z.clamp(max=0))),
            Piece(0, slope=constant(gamma)),
        ),
        stationary=(0.0,),
        ulps=8,
    )


def delu(alpha: float, gamma: float) -> CurveFacts:
    steep = gamma * alpha
    tail = lambda z: steep * torch.exp(z.clamp(max=0))  # noqa: E731 — value and slope are one function
    return CurveFacts(
        value=lambda z: torch.where(z > 0, torch.full_like(z, gamma), tail(z)),
        slope=lambda z: torch.where(z > 0, 0.0, tail(z)),
        derivative=UNDEFINED,
        pieces=(Piece(_sign(steep), 0.0, tail, tail), Piece(0, value=constant(gamma), slope=zero)),
        jumps=((0.0, gamma - steep),),
        ulps=8,
    )


def celu(alpha: float) -> CurveFacts:
    """z above zero, α·(e^{z/α} − 1) below, for α > 0 (Barron 2017): differentiable at zero."""
    return CurveFacts(
        value=lambda z: torch.where(z > 0, z, alpha * torch.expm1(z.clamp(max=0) / alpha)),
        slope=lambda z: torch.exp(z.clamp(max=0) / alpha),
        derivative=("dcelu", (alpha,)),
        pieces=(Piece(1, 0.0), Piece(0)),
        ulps=8,
        absolute=abs(alpha) * 2.0**-49,  # z / α is rounded before it is raised
    )


def dcelu(alpha: float) -> CurveFacts:
    return CurveFacts(
        value=lambda z: torch.exp(z.clamp(max=0) / alpha),
        slope=lambda z: torch.where(z > 0, 0.0, torch.exp(z.clamp(max=0) / alpha) / alpha),
        derivative=UNDEFINED,
        pieces=(Piece(1, 0.0, slope=lambda z: torch.exp(z.clamp(max=0) / alpha) / alpha), Piece(0, slope=zero)),
        range=(0.0, 1.0),
        ulps=8,
        absolute=2.0**-49,
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
