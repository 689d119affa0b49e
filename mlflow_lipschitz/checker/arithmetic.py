"""Two ways to calculate: float64 with every rounding error bounded, and exact rationals for small graphs.

In float64 a sum of n products is off by at most γ_n Σ |wᵢ||xᵢ|, in any order, with or without fused operations (Higham, Accuracy
and Stability of Numerical Algorithms, §3.1), and by 2⁻¹⁰⁷⁴ for each product that underflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Range = tuple[np.ndarray, np.ndarray]  # lower and upper ends

# Errors are themselves sums of nonnegative float64 numbers; this covers their rounding.
SLACK = 1.0 + 2.0**-20
# Fewer than 2⁶⁰ products that underflow lose less than this together.
UNDERFLOW = 2.0**-1000


@dataclass(frozen=True)
class Arithmetic:
    """`exact`: arrays of `Fraction`, no error at all; else float64."""

    exact: bool = False

    def gamma(self, terms: int) -> float | int:
        """Relative error of a sum of so many products, rounded up."""
        return 0 if self.exact else (terms + 2) * 2.0**-53 / (1 - (terms + 2) * 2.0**-53) * SLACK

    @property
    def underflow(self) -> float | int:
        return 0 if self.exact else UNDERFLOW

    def array(self, values: Any) -> np.ndarray:
        """The numbers as they are: of a float64 there is exactly one rational."""
        floats = np.asarray(values, dtype=np.float64) if not _is_exact(values) else values
        if not self.exact or _is_exact(floats):
            return floats
        rationals = [Fraction(x) if np.isfinite(x) else x for x in floats.ravel().tolist()]
        return np.array([*rationals, None], dtype=object)[:-1].reshape(floats.shape)

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, Fraction(0), dtype=object) if self.exact else np.zeros(shape)


FLOATS = Arithmetic()


def floats_down(values: np.ndarray) -> np.ndarray:
    """Float64 numbers not above the values."""
    return -floats_up(-values)


def floats_up(values: np.ndarray) -> np.ndarray:
    """Float64 numbers not below the values."""
    if not _is_exact(values):
        return values
    near = np.array([_float(x) for x in values.ravel()], dtype=np.float64).reshape(values.shape)
    return np.where(np.asarray(near < values, dtype=bool), np.nextafter(near, np.inf), near)


def dot(c: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(batch, rows) coefficients (batch or 1, rows, *shape) times values (batch or 1, *shape)."""
    return (c.reshape(*c.shape[:2], -1) @ values.reshape(len(values), -1, 1))[..., 0]


def known(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two ends of a range, of which one that is not a number (∞ − ∞, 0 · ∞) says nothing."""
    return np.where(lower != lower, -np.inf, lower), np.where(upper != upper, np.inf, upper)


def _is_exact(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == object


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else -float("inf")
