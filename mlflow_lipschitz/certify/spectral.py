"""Verified upper bounds of spectral norms. (Power iteration gives lower ones.)

For M = a b the claim μ ≥ ‖M‖² is that μI − MᵀM has no negative eigenvalue. A Cholesky factorization that runs to its end proves it
up to rounding: RᵀR = A + Δ with ‖Δ‖ ≤ γ_{n+1} ‖R‖_F² (Higham, Accuracy and Stability of Numerical Algorithms, §10.1).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from mlflow_lipschitz.engine.domains.rounding import gamma

# What is tried above the largest computed eigenvalue, relative to it.
_MARGINS = (1e-12, 1e-9, 1e-6, 1e-3, 1.0)
# More roundings than any order of evaluation makes (blocked factorizations, reciprocals of the diagonal).
_ORDERS = 8
# Any sum of fewer than 2⁶⁰ products of numbers up to 1 of which some underflow is off by less than this.
_UNDERFLOW = 2.0**-960


def product_norm(a: np.ndarray, b: np.ndarray) -> Fraction:
    """Upper bound of the spectral norm of a @ b, for finite a (m, k) and b (k, n)."""
    if not (np.any(a) and np.any(b)):
        return Fraction(0)
    (a, left), (b, right) = _scaled(a), _scaled(b)
    product = a @ b
    rows, columns = product.shape
    terms = a.shape[1] + 4
    error = gamma(terms) * _frobenius(a) * _frobenius(b) + rows * columns * _UNDERFLOW
    norm = _up(_norm(product if rows >= columns else product.T) + error)
    return Fraction(norm) * Fraction(2) ** (left + right)


def _norm(matrix: np.ndarray) -> float:
    """Upper bound of the spectral norm of a matrix with entries of moderate size, at least as high as wide."""
    height, width = matrix.shape
    gram = matrix.T @ matrix
    size = _frobenius(matrix) ** 2
    largest = max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)
    for margin in _MARGINS:
        square = _up(largest + margin * size)
        rest = square * np.eye(width) - gram
        if _has_a_root(rest):
            trace = float(np.trace(rest))
            doubt = gamma(_ORDERS * (width + 2)) * trace + gamma(height + 4) * size + gamma(2) * width * square
            return _up(math.sqrt(_up(square + doubt * (1 + 1e-6) + width * height * _UNDERFLOW)))
    return _up(math.sqrt(_up(size)))


def _has_a_root(matrix: np.ndarray) -> bool:
    try:
        return bool(np.isfinite(np.linalg.cholesky(matrix)).all())
    except np.linalg.LinAlgError:
        return False


def _scaled(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """The matrix over a power of two that brings its largest entry near 1, and the exponent.

    What underflows on the way is far below the 2⁻⁹⁶⁰ that `product_norm` adds per entry.
    """
    array = np.asarray(matrix, dtype=np.float64)
    exponent = math.frexp(float(np.abs(array).max(initial=0.0)))[1]
    return np.ldexp(array, -exponent), exponent


def _frobenius(matrix: np.ndarray) -> float:
    """Upper bound of the Frobenius norm of a matrix with entries of moderate size."""
    total = float((matrix * matrix).sum())
    return _up(math.sqrt(_up(total * (1 + gamma(matrix.size + 4)) + matrix.size * _UNDERFLOW)))


def _up(value: float) -> float:
    """A little above: more than the few roundings behind a value of nonnegative terms."""
    return math.nextafter(value * (1 + 2.0**-46), math.inf)
