"""Rationals to floats, rounded in the direction that is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from mlflow_lipschitz.errors import PropertyError


def floats_below(values: Iterable[Fraction], kind: type = np.float64) -> np.ndarray:
    """The largest floats that do not exceed the values.

    Raises:
        PropertyError: a value beyond the range of the type.
    """
    return np.array([_rounded(value, kind, -np.inf) for value in values], dtype=kind)


def floats_above(values: Iterable[Fraction], kind: type = np.float64) -> np.ndarray:
    """The smallest floats that the values do not exceed. Raises as `floats_below`."""
    return np.array([_rounded(value, kind, np.inf) for value in values], dtype=kind)


def _rounded(value: Fraction, kind: type, towards: float) -> float:
    try:
        with np.errstate(over="ignore"):
            nearest = kind(float(value))
    except OverflowError:
        nearest = kind(np.inf)
    if not np.isfinite(nearest):
        raise PropertyError(f"a number is beyond the range of {kind.__name__}")
    exact = Fraction(float(nearest))
    if (exact > value and towards < 0) or (exact < value and towards > 0):
        return float(np.nextafter(nearest, kind(towards)))
    return float(nearest)
