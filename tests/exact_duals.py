"""Numbers of the exact evaluator: dual numbers, and which side of a kink is meant.

A side is a boolean, a `Side` or a `Toward`. With the first two what has no value raises ZeroDivisionError; a `Toward` makes it NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
from gmpy2 import mpq

from mlflow_lipschitz.engine.ir import ops
from tests.exact_curves import CURVES, KINKED

mpmath.mp.prec = 400

# Of a larger argument a transcendental function is not computed: reducing it would take as many bits as its exponent says.
_LARGEST = mpmath.mpf(2) ** 1100


class BeyondTheOracle(OverflowError):
    """A number too large for this evaluator; nothing is said of the engine."""


@dataclass(frozen=True, eq=False)
class Dual:
    """A number and its gradient by the input's entries."""

    value: Any
    gradient: np.ndarray

    def __add__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value + other.value, self.gradient + other.gradient)
        return Dual(self.value + other, self.gradient)

    def __mul__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value * other.value, self.gradient * other.value + other.gradient * self.value)
        return Dual(self.value * other, self.gradient * other)

    __radd__, __rmul__ = __add__, __mul__

    def through(self, value: Any, slope: Any) -> Dual:
        """What a function of this value and slope there makes of it."""
        return Dual(value, self.gradient * slope)

    def nothing(self) -> Dual:
        """No number."""
        return Dual(math.nan, np.full(self.gradient.shape, math.nan, dtype=object))


def rational(value: Any) -> Any:
    """The fraction that a float64 is."""
    return mpq(float(value))


class Side:
    """A side of every kink; remembers whether anything lay on one."""

    def __init__(self, right: bool) -> None:
        self.right, self.met = right, False

    def __bool__(self) -> bool:
        self.met = True
        return self.right


@dataclass
class Toward:
    """Decides every kink by where its argument goes along a direction: the derivative is then one that occurs next to the point.

    Sides chosen kink by kink need not go together; those along one direction do, so that even bounds that use how values
    depend on each other must hold for them. What has no value (a logarithm below zero) is NaN, and so is all that needs it.

    Attributes:
        direction: one whole number per entry of the input, in general position.
        ties: how many kinks were met so far.
    """

    direction: np.ndarray
    ties: int = 0

    def side(self, left: Any, right: Any, gradient: np.ndarray) -> bool:
        """True for the right derivative."""
        if left == right:
            return True
        self.ties += 1
        return bool(gradient @ self.direction >= 0)


def larger(a: Dual, b: Dual, side: Any) -> Dual:
    """The larger of two numbers; of a NaN, the maximum is one."""
    if a.value != b.value:
        return a if a.value > b.value or a.value != a.value else b
    if not isinstance(side, Toward):
        return a if side else b
    tied = bool((a.gradient != b.gradient).any())
    return a if side.side(0, int(tied), a.gradient - b.gradient) else b


def inverse_root(d: Dual, factor: Any, epsilon: Any, side: Any) -> Dual:
    """1 / √(factor · d + epsilon)"""
    size = factor * d.value + epsilon
    if size == 0 and isinstance(side, Toward):
        return d.nothing()
    root = mpmath.sqrt(size)
    return d.through(1 / root, -factor / (2 * size * root))


def power_of_e(d: Dual) -> Dual:
    """exp(d)"""
    if abs(d.value) > _LARGEST:
        raise BeyondTheOracle(f"the exponential of a number of {mpmath.mag(d.value)} bits")
    power = mpmath.exp(d.value)
    return d.through(power, power)


def logarithm(d: Dual) -> Dual:
    """log(d) of a positive number."""
    return d.through(mpmath.log(d.value), 1 / d.value)


def rounded(d: Dual, step: Any) -> Dual:
    """The nearest multiple of a step, ties to even."""
    ratio = d.value / step
    if ratio != ratio:
        return d.nothing()
    nearest = mpmath.nint(ratio) if isinstance(ratio, mpmath.mpf) else mpq(round(ratio))
    return Dual(nearest * step, d.gradient * 0)


def curve(op: ops.Elementwise, d: Dual, exact: Callable[[Any], Any], side: Any) -> Dual:
    """The op's curve, with its derivative on a side."""
    if exact is mpmath.mpf and abs(d.value) > _LARGEST:
        raise BeyondTheOracle(f"{op.curve} of a number of {mpmath.mag(d.value)} bits")
    meaning = CURVES[op.curve]
    if not isinstance(side, Toward):
        return d.through(*meaning(d.value, exact, side, *op.parameters))
    if d.value != d.value:
        return d
    try:
        value, right = meaning(d.value, exact, True, *op.parameters)
        kinked = op.curve in KINKED and d.gradient.size > 0
        left = meaning(d.value, exact, False, *op.parameters)[1] if kinked else right
    except ZeroDivisionError:
        return d.nothing()
    if isinstance(value, mpmath.mpc) or (isinstance(value, mpmath.mpf) and not mpmath.isfinite(value)):
        return d.nothing()
    return d.through(value, right if side.side(left, right, d.gradient) else left)
