"""Whether what the engine claims of one row holds at one point, decided in exact arithmetic. No comparison has a tolerance.

Where no fraction can tell, numbers have 400 bits; what looks violated then is looked at again with eight times as many.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from mlflow_lipschitz.engine.ir.graph import Graph
from tests.soundness.exact import BeyondTheOracle, Toward, is_smooth, number, value_and_jacobian, values_at

_CONFIRMING_BITS = 3200
# What a 3200-bit number of a small network may be off by: far below any distance between a float64 and a number that differs.
_SLACK_BITS = 2600


@dataclass(frozen=True)
class Violation:
    """A claim of a row that does not hold at a point; `bound` and `truth` as text."""

    claim: str
    row: int
    point: tuple[float, ...]
    bound: str
    truth: str

    def __str__(self) -> str:
        return f"{self.claim}: claimed {self.bound}, but {self.truth} at {list(self.point)}"


@dataclass
class Claims:
    """What is claimed of one row; a claim that was not made is None.

    Attributes:
        row: the row's number.
        lipschitz: (objectives,) upper bounds, with the norm and the objectives (objectives, outputs).
        slopes: (inputs,) lower and upper bounds of the derivatives, with the output's index.
        values: lower and upper bounds of the outputs, (outputs,).
        margins: lower bounds of margins (margins,) with their rows (margins, outputs).
    """

    row: int
    lipschitz: tuple[np.ndarray, str, np.ndarray] | None = None
    slopes: tuple[np.ndarray, np.ndarray, int] | None = None
    values: tuple[np.ndarray, np.ndarray] | None = None
    margins: tuple[np.ndarray, np.ndarray] | None = None


@dataclass
class Tally:
    """What was checked, and whether a finite positive Lipschitz bound was met to 99.9 % (to 50 %) somewhere."""

    counts: Counter[str] = field(default_factory=Counter)
    met: bool = False
    half_met: bool = False

    def compare(self, size: Any, high: Any, power: int) -> None:
        self.met |= bool(size * 1000**power >= high * 999**power)
        self.half_met |= bool(size * 2**power >= high)


def violations(graph: Graph, claims: Claims, x: np.ndarray, rng: np.random.Generator, tally: Tally) -> list[Violation]:
    """The claims that do not hold at a point; at a kink, of its two sides along some directions."""
    found: list[Violation] = []
    direction = rng.integers(-(10**6), 10**6, x.size).astype(object) * 2 + 1
    for turn, way in enumerate((direction, -direction, rng.integers(-(10**6), 10**6, x.size).astype(object) * 2 + 1)):
        toward = Toward(way)
        try:
            found += _along(graph, claims, x, toward, tally)
        except BeyondTheOracle:
            tally.counts["points beyond the oracle"] += 1
            return found
        if turn == 0:
            tally.counts["points"] += 1
            tally.counts["points on a kink"] += toward.ties > 0
        if not toward.ties or claims.lipschitz is None:
            return found
    return found


def _along(graph: Graph, claims: Claims, x: np.ndarray, toward: Toward, tally: Tally) -> list[Violation]:
    found = list(_broken(graph, claims, x, toward, 0, tally))
    if not found or not is_smooth(graph):
        return found
    with mpmath.workprec(_CONFIRMING_BITS):
        slack = mpmath.mpf(2) ** -_SLACK_BITS
        tally.counts["points looked at again"] += 1
        return list(_broken(graph, claims, x, Toward(toward.direction), slack, None))


def _broken(
    graph: Graph, claims: Claims, x: np.ndarray, toward: Toward, slack: Any, tally: Tally | None
) -> Iterator[Violation]:
    exact = number(graph)
    if claims.lipschitz is None and claims.slopes is None:
        values, jacobian = values_at(graph, x), None
    else:
        values, jacobian = value_and_jacobian(graph, x, toward)
    undefined = [v != v for v in values]
    if tally is not None:
        tally.counts["points without a value"] += any(undefined)
    check = _Check(claims.row, tuple(x.reshape(-1).tolist()), exact, slack)
    yield from _values_outside(claims, values, check)
    if jacobian is None:
        return
    if claims.lipschitz is not None:
        yield from _lipschitz_exceeded(claims.lipschitz, undefined, jacobian, check, tally)
    if claims.slopes is not None:
        yield from _slopes_outside(claims.slopes, undefined, jacobian, check)


@dataclass(frozen=True)
class _Check:
    row: int
    point: tuple[float, ...]
    exact: Any
    slack: Any

    def above(self, claim: str, bound: float, truth: Any) -> Iterator[Violation]:
        """A violation unless truth ≤ bound."""
        if not (bound == np.inf or (bound > -np.inf and self._size(truth) <= self.exact(bound))):
            yield self.violation(claim, bound, truth)

    def below(self, claim: str, bound: float, truth: Any) -> Iterator[Violation]:
        """A violation unless truth ≥ bound."""
        yield from self.above(claim, -bound, -truth)

    def violation(self, claim: str, bound: float, truth: Any) -> Violation:
        return Violation(claim, self.row, self.point, repr(bound), shown(truth))

    def _size(self, truth: Any) -> Any:
        return truth - self.slack * (1 + abs(truth)) if self.slack else truth


def shown(number: Any) -> str:
    """A number's first digits."""
    if isinstance(number, float):
        return repr(number)
    return str(mpmath.nstr(_real(number), 25))


def _values_outside(claims: Claims, values: np.ndarray, check: _Check) -> Iterator[Violation]:
    """A range holds wherever there is a value; a margin says that there is one."""
    if claims.values is not None:
        for j, (low, high, value) in enumerate(zip(*claims.values, values, strict=True)):
            if value == value:
                yield from check.below(f"lower bound of output {j}", float(low), value)
                yield from check.above(f"upper bound of output {j}", float(high), value)
    if claims.margins is not None:
        for low, row in zip(*claims.margins, strict=True):
            margin = sum(check.exact(float(c)) * v for c, v in zip(row, values, strict=True) if c)
            if margin == margin:
                yield from check.below(f"lower bound of margin {row.tolist()}", float(low), margin)
            elif low > -np.inf:
                yield check.violation(f"margin {row.tolist()}, which has no value", float(low), math.nan)


def _lipschitz_exceeded(
    claim: tuple[np.ndarray, str, np.ndarray],
    undefined: list[bool],
    jacobian: np.ndarray,
    check: _Check,
    tally: Tally | None,
) -> Iterator[Violation]:
    for bound, row in zip(claim[0], claim[2], strict=True):
        name = f"Lipschitz constant ({claim[1]}) of {row.tolist()}"
        if any(bad for bad, c in zip(undefined, row, strict=True) if c):
            if bound != np.inf:
                yield check.violation(f"{name}, which has no value", float(bound), math.nan)
            continue
        gradient = sum(g * check.exact(float(c)) for g, c in zip(jacobian, row, strict=True) if c)
        if any(g != g for g in gradient):
            continue
        power, size = dual_size(gradient, claim[1])
        if np.isfinite(bound):
            high = check.exact(float(bound)) ** power
            if tally is not None and bound > 0:
                tally.compare(size, high, power)
            if check._size(size) > high:
                yield check.violation(name, float(bound), mpmath.sqrt(_real(size)) if power == 2 else size)


def _real(x: Any) -> Any:
    return mpmath.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def dual_size(gradient: np.ndarray, norm: str) -> tuple[int, Any]:
    """A power, and the gradient's dual norm to that power: no root is taken."""
    sizes = [abs(g) for g in gradient]
    if norm == "l2":
        return 2, sum(s * s for s in sizes)
    return 1, (sum(sizes) if norm == "linf" else max(sizes))


def _slopes_outside(
    claim: tuple[np.ndarray, np.ndarray, int], undefined: list[bool], jacobian: np.ndarray, check: _Check
) -> Iterator[Violation]:
    lower, upper, output = claim
    if undefined[output]:
        # By an entry that what is undefined does not need, the derivative may well be known.
        if (np.isfinite(lower) & np.isfinite(upper)).all():
            yield check.violation(f"derivatives of output {output}, which has no value", float(upper[0]), math.nan)
        return
    for i, (low, high, slope) in enumerate(zip(lower, upper, jacobian[output], strict=True)):
        if slope == slope:
            yield from check.below(f"lower bound of the derivative of output {output} by {i}", float(low), slope)
            yield from check.above(f"upper bound of the derivative of output {output} by {i}", float(high), slope)
