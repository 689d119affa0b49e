"""How far two programs may be apart and still be the same function: per row and per output, never by the largest number.

A bound says by how much an output varies, so the served program must follow the graph closely compared with that
variation. An offset shared by all rows, a large output beside a small one, or one extreme row must not hide a difference:

- An output may differ by `relative` times its spread (the middle half of the rows), or times the row's own distance from
  the median where that is larger. Where offsets are large, roundings are; a few of them are allowed, up to
  `LARGEST_SHARE` of the spread.
- Where a decision is judged, the leads of the largest output over each other one are compared as well, relative to the
  typical lead, and the decision itself must be the same on every row. Outputs too close to tell which is the largest are
  no excuse: such a row is refused if the two programs decide it differently.
- A quantized model rounds between its layers, and where a value lies halfway another arithmetic rounds it the other way. Every row
  must then stay in the band that bounds allow for at that very point, and the typical row must follow the graph closely.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.errors import FidelityError

# A result is a sum of rounded terms: some roundings of its own size are no sign of another function.
ROUNDINGS = 16
LARGEST_SHARE = 0.01
# Of what an output varies by: how far the typical row of a model that rounds between its layers may be off.
TYPICAL_SHARE = 0.02

NOT_THE_SAME = "What would be certified is not the model that is served"


@dataclass(frozen=True)
class Precision:
    """`relative`: allowed difference per variation; `unit`: relative error of one rounding in the model's own type."""

    relative: float
    unit: float


@dataclass(frozen=True)
class Comparison:
    """What was compared; per row and number, both (rows, numbers), how far apart they are and may be."""

    what: str
    differences: np.ndarray
    allowed: np.ndarray

    def require_small(self) -> None:
        """Raise FidelityError, naming the row whose difference exceeds what is allowed by the largest factor."""
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.nan_to_num(self.differences / self.allowed, nan=np.inf, posinf=np.inf)
        # "not <=" instead of ">": a NaN difference is a mismatch.
        bad = ~(self.differences <= self.allowed)
        if bad.any():
            row, number = np.unravel_index(int(np.where(bad, excess, -1.0).argmax()), bad.shape)
            raise FidelityError(
                f"{self.what}: {int(bad.any(axis=1).sum())} of {len(bad)} rows differ; worst is row {row} with a "
                f"difference of {self.differences[row, number]:.6g} in output {number}, allowed is "
                f"{self.allowed[row, number]:.3g}. {NOT_THE_SAME}, or one is too imprecise for a bound to hold of the other"
            )


class Agreement:
    """What the graph's outputs, (rows, outputs), make of differences: computed once from all rows that are known.

    With `decides`, the largest output, or the sign of a single one, is a decision that must be the same. `band`, (rows, outputs),
    is how far rounding between layers can move each output at that very row.
    """

    def __init__(
        self, own: np.ndarray, precision: Precision, *, decides: bool = False, band: np.ndarray | None = None
    ) -> None:
        self.decides = decides
        self._band = np.zeros((1, own.shape[1])) if band is None else band
        self.precision = precision
        self._center = np.median(own, axis=0)
        self._spread = np.array([_spread(column) for column in own.T])
        self._lead = _typical_lead(own) if decides else 1.0

    def of_rows(self, rows: slice) -> Agreement:
        """The same for some of the rows."""
        part = copy(self)
        part._band = self._band if len(self._band) == 1 else self._band[rows]
        return part

    def compare(self, what: str, own: np.ndarray, other: np.ndarray) -> Comparison:
        """Outputs against those of another program, both (rows, outputs). Raises FidelityError unless they agree."""
        if own.shape != other.shape:
            raise FidelityError(f"{what}: {other.shape[1]} outputs per row against {own.shape[1]} of the graph")
        size = np.maximum(self._spread, np.abs(own - self._center))
        closely = self._allowed(size, np.abs(own))
        comparison = Comparison(what, np.abs(own - other), np.maximum(closely, self._band))
        comparison.require_small()
        if np.any(self._band > 0):
            typical = np.median(comparison.differences, axis=0, keepdims=True)
            allowed = np.maximum(np.median(closely, axis=0), TYPICAL_SHARE * self._spread)[None]
            Comparison(f"{what}, the typical row", typical, allowed).require_small()
        if self.decides:
            self._compare_leads(what, own, other).require_small()
            require_same_decision(what, own, decisions(other))
        return comparison

    def _compare_leads(self, what: str, own: np.ndarray, other: np.ndarray) -> Comparison:
        top = decisions(own)
        leads = _leads(own, top)
        size = np.maximum(self._lead, leads)
        magnitude = np.maximum(np.abs(_scores(own)), np.abs(own).max(axis=1, keepdims=True))
        allowed = self._allowed(size, magnitude)
        allowed = np.maximum(allowed, 2 * self._band.max(axis=1, keepdims=True))
        return Comparison(f"{what}, leads of the largest", np.abs(leads - _leads(other, top)), allowed)

    def _allowed(self, size: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
        roundings = np.minimum(ROUNDINGS * self.precision.unit * magnitude, LARGEST_SHARE * size)
        return np.maximum(self.precision.relative * size, roundings)


def decisions(outputs: np.ndarray) -> np.ndarray:
    """(rows,) position of the largest output; of a single output the sign decides: 1 where it is positive."""
    return np.asarray(_scores(outputs).argmax(axis=1))


def require_same_decision(what: str, own: np.ndarray, decided: np.ndarray) -> None:
    """Raise FidelityError unless `decided`, (rows,) positions, is what the graph's outputs decide on every row."""
    top = decisions(own)
    wrong = np.flatnonzero(top != decided)
    if wrong.size:
        row = int(wrong[0])
        known = 0 <= decided[row] < _scores(own).shape[1]
        lead = _leads(own[row : row + 1], top[row : row + 1])[0, decided[row]] if known else np.nan
        raise FidelityError(
            f"{what}: {wrong.size} of {len(top)} rows are decided differently; the first is row {row}, where the graph's "
            f"largest output is {top[row]}, {lead:.3g} ahead of the one decided for. {NOT_THE_SAME}"
        )


def _scores(outputs: np.ndarray) -> np.ndarray:
    """Scores whose largest decides: the outputs, or 0 against a single one."""
    return np.concatenate([np.zeros_like(outputs), outputs], axis=1) if outputs.shape[1] == 1 else outputs


def _leads(outputs: np.ndarray, top: np.ndarray) -> np.ndarray:
    """(rows, scores) how far the score `top`, one per row, is ahead of each."""
    scores = _scores(outputs)
    return np.asarray(scores[np.arange(len(scores)), top][:, None] - scores)


def _typical_lead(own: np.ndarray) -> float:
    """Median over the rows of the lead over the second largest; of those that are not ties where most are."""
    scores = np.sort(_scores(own), axis=1)
    leads = scores[:, -1] - scores[:, -2]
    return float(np.median(leads)) or _of_those_that_differ(leads, float(np.abs(own).max(initial=0.0)))


def _spread(column: np.ndarray) -> float:
    """Length of the middle half of the values; a few extreme rows do not change it."""
    low, center, high = np.quantile(column, (0.25, 0.5, 0.75))
    return float(high - low) or _of_those_that_differ(np.abs(column - center), float(abs(center)))


def _of_those_that_differ(distances: np.ndarray, size: float) -> float:
    """Where most rows are equal: the median of the distances that are not 0. Of a constant its size, or 1 of zero."""
    positive = distances[distances > 0]
    return float(np.median(positive)) if positive.size else size or 1.0
