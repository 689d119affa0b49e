"""Sine and cosine: too many inflections to list, so they are enclosed by their tangents and |f″| ≤ 1."""

from __future__ import annotations

import math

import torch

from mlflow_lipschitz.engine.rules.curves.facts import UNDEFINED, Curve, CurveFacts, Name, Period, Piece


def sin() -> CurveFacts:
    return _wave(torch.sin, torch.cos, ("cos", ()), top=0.25)


def cos() -> CurveFacts:
    return _wave(torch.cos, _minus_sin, ("minus_sin", ()), top=0.0)


def minus_sin() -> CurveFacts:
    """The derivative of the cosine."""
    return _wave(_minus_sin, lambda z: -torch.cos(z), UNDEFINED, top=-0.25)


def _minus_sin(z: torch.Tensor) -> torch.Tensor:
    return -torch.sin(z)


def _wave(value: Curve, slope: Curve, derivative: Name, top: float) -> CurveFacts:
    turn = 2 * math.pi
    return CurveFacts(
        value=value,
        slope=slope,
        derivative=derivative,
        pieces=(Piece(0),),
        range=(-1.0, 1.0),
        ulps=8,
        bend=1.0,
        period=Period(turn, top * turn, (top + 0.5) * turn),
    )
