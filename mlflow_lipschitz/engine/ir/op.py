"""What all ops have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Op:
    """Base of all ops."""

    def output_shape(self, *shapes: Shape) -> Shape:
        """The shape of the op's value, without batch axes. Raises ValueError when the inputs' shapes do not fit."""
        raise NotImplementedError(type(self).__name__)


def frozen_array(values: object, dtype: type = np.float64) -> np.ndarray:
    """A read-only contiguous copy; ops hold nothing that anyone can change afterwards."""
    array: np.ndarray = np.array(values, dtype=dtype, order="C", copy=True)
    array.setflags(write=False)
    return array


def require(condition: bool, message: str) -> None:
    """Raises ValueError unless the condition holds."""
    if not condition:
        raise ValueError(message)
