"""Ops whose value other nodes have computed already; building.py wires them up.

What they add is what a composition of small steps does not show: the range of the whole, and a derivative in terms of the value.
Bounds follow the composition, which is among the inputs; the value is what the op itself says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.engine.ir.op import Op, Shape, require


@dataclass(frozen=True, eq=False)
class Maximum(Op):
    """max(a, b) of inputs a, b and relu(a − b), all of one shape."""

    def output_shape(self, *shapes: Shape) -> Shape:
        require(len(shapes) == 3 and len(set(shapes)) == 1, f"Maximum of {shapes}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Remainder(Op):
    """(1 − s) · g of inputs s · g, s ∈ [0, 1] and g: what of a cotangent g does not go to the first operand of a `Maximum`.

    Only differentiation makes these.
    """

    def output_shape(self, *shapes: Shape) -> Shape:
        require(len(shapes) == 3 and len(set(shapes)) == 1, f"Remainder of {shapes}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class LogSoftmax(Op):
    """x − log Σ exp(x) along the last axis, of inputs x and that very difference.

    `kept` broadcasts to x and is 1 for the entries that are summed, 0 for those left out; None keeps all.
    """

    kept: np.ndarray | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        require(len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) > 0, f"LogSoftmax of {shapes}")
        if self.kept is not None:
            require(np.broadcast_shapes(self.kept.shape, shapes[0]) == shapes[0], f"{self.kept.shape} on {shapes[0]}")
            require(bool(np.isin(self.kept, (0.0, 1.0)).all()), "an entry is kept, 1, or left out, 0")
            full = np.broadcast_to(self.kept, shapes[0])
            require(bool(full.any(axis=-1).all()), "a row of which no entry is kept has no softmax")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Normalized(Op):
    """x · r with r = (factor · Σ x² + epsilon)^(−1/2), the sum over `axes`, of inputs x, r (of x's shape) and their product."""

    axes: tuple[int, ...]
    factor: float
    epsilon: float

    def output_shape(self, *shapes: Shape) -> Shape:
        require(len(shapes) == 3 and len(set(shapes)) == 1, f"Normalized of {shapes}")
        require(all(0 <= a < len(shapes[0]) for a in self.axes), f"Normalized over {self.axes} of {shapes[0]}")
        require(self.factor > 0 and self.epsilon >= 0, f"Normalized by {self.factor} · Σ x² + {self.epsilon}")
        return shapes[0]
