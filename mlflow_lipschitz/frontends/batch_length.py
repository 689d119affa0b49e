"""The length of a free batch axis, as shape computations see it: a multiple of an unknown positive integer.

Exporters compute shapes from it. What may be done with it is what has one answer for every length; anything else raises
TypeError, so a model whose function depends on how many rows a batch has is refused, not lowered for one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np


@dataclass(frozen=True, eq=False)
class BatchLength:
    """`multiple` times the number of rows."""

    multiple: int = 1

    def __mul__(self, other: Any) -> BatchLength:
        if isinstance(other, int) and other > 0:
            return BatchLength(self.multiple * other)
        raise TypeError(f"the batch length times {other}")

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> BatchLength:
        if isinstance(other, int) and other > 0 and self.multiple % other == 0:
            return BatchLength(self.multiple // other)
        raise TypeError(f"the batch length divided by {other}")

    def __eq__(self, other: object) -> bool:
        """Exporters ask whether a length is -1 or 0; with any positive number the answer would depend on the rows."""
        if isinstance(other, BatchLength):
            return self.multiple == other.multiple
        if isinstance(other, int) and other <= 0:
            return False
        raise TypeError(f"whether the batch length is {other}")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class BatchRows:
    """A constant that is the same for every row of the batch. `row` has axis 0 of length 1 in place of the batch.

    It may only meet variables, entry by entry or joined on another axis: summing or measuring it would count the rows.
    """

    row: np.ndarray


Length: TypeAlias = "int | BatchLength"


def is_symbolic(value: object) -> bool:
    """Whether a constant holds a batch length."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "O"


def shape_constant(lengths: list[Length]) -> np.ndarray:
    """A vector of lengths: int64, or objects where one is a batch length."""
    if any(isinstance(length, BatchLength) for length in lengths):
        vector = np.empty(len(lengths), dtype=object)
        vector[:] = lengths
        return vector
    return np.asarray(lengths, dtype=np.int64)


def settled(value: np.ndarray) -> np.ndarray:
    """The constant in int64 where no batch length is left in it."""
    if is_symbolic(value) and not any(isinstance(entry, BatchLength) for entry in value.reshape(-1)):
        return value.astype(np.int64)
    return value


def without_batch(lengths: tuple[Length, ...]) -> tuple[int, ...]:
    """A shape of equal rows with one row instead of a batch of them. Raises TypeError unless the batch is axis 0."""
    first, *rest = lengths
    if isinstance(first, BatchLength) and first.multiple == 1:
        first = 1
    if any(isinstance(length, BatchLength) for length in (first, *rest)):
        raise TypeError("the batch length is not alone on axis 0")
    return (int(first), *(int(length) for length in rest))  # type: ignore[arg-type]
