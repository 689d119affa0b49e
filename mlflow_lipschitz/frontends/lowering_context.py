"""What a lowering function sees of the node it lowers, and how it answers: inputs, attributes, new nodes, refusals.

Tensors are lowered whole: a variable's shape is the ONNX shape, axis 0 included, and ONNX axes are used as they are. That
the rows of a batch do not influence each other is proved afterwards, for the model as a whole (row_independence.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mlflow_lipschitz.engine.ir import building
from mlflow_lipschitz.engine.ir.ops import (
    Add,
    Conv,
    Elementwise,
    Expand,
    Linear,
    Multiply,
    Op,
    Reshape,
    ScaleShift,
    Select,
    Sum,
    Transpose,
)
from mlflow_lipschitz.frontends.fusions import fused_product
from mlflow_lipschitz.frontends.node_inputs import NodeInputs
from mlflow_lipschitz.frontends.served_steps import JOINED
from mlflow_lipschitz.frontends.values import (
    BATCH_REMEDY,
    MASK_REMEDY,
    MASKED_BELOW,
    Pieces,
    Shape,
    Value,
    Variable,
    mask_after,
    node_name,
    refusal,
)

__all__ = [
    "BATCH_REMEDY",
    "MASKED_BELOW",
    "MASK_REMEDY",
    "Call",
    "Pieces",
    "Shape",
    "Value",
    "Variable",
    "node_name",
    "refusal",
]


@dataclass(frozen=True)
class Call(NodeInputs):
    """A node and its inputs, and the nodes of the engine's graph that a lowering function appends for it."""

    def emit(self, op: Op, *variables: Variable) -> Variable:
        """Append an op to the engine's graph. Refuses non-finite constants, shapes that do not fit, and masked inputs.

        Ops that copy entries carry a mask along; any other op of a masked value is refused.
        """
        for field in fields(op):
            value = getattr(op, field.name)
            if isinstance(value, (np.ndarray, float)) and not np.all(np.isfinite(value)):
                self.refuse("its constants hold NaN or infinity", "a model with such weights cannot be certified")
        try:
            index = self.builder.add(op, *(v.index for v in variables), name=node_name(self.node))
            masked = mask_after(op, [v.masked for v in variables], [v.shape for v in variables])
        except ValueError as error:
            self.refuse(f"its shapes do not fit: {error}")
        except TypeError:
            self.refuse("it computes with a mask of minus infinity", MASK_REMEDY)
        return Variable(index, self.builder.shape(index), masked, sunk=min((v.sunk for v in variables), default=1.0))

    def mask(self, x: Variable, mask: np.ndarray | None) -> Variable:
        """x with minus infinity where `mask`, which broadcasts to its shape, is True; as it is where `mask` is None."""
        if mask is None:
            return x
        masked = np.broadcast_to(mask, x.shape)
        return replace(x, masked=masked if x.masked is None else masked | x.masked)

    def reshape(self, x: Variable, shape: Shape) -> Variable:
        """The entries of x in another shape. A reshape of a reshape is one; a reshape back is none."""
        producer = self.builder.node(x.index)
        if isinstance(producer.op, Reshape) and x.masked is None:
            (source,) = producer.inputs
            x = Variable(source, self.builder.shape(source))
        return x if x.shape == shape else self.emit(Reshape(shape), x)

    def transpose(self, x: Variable, axes: Sequence[int]) -> Variable:
        return x if list(axes) == list(range(len(x.shape))) else self.emit(Transpose(tuple(axes)), x)

    def expand(self, x: Variable, shape: Shape) -> Variable:
        return x if x.shape == shape else self.emit(Expand(shape), x)

    def select(self, x: Variable, axis: int, indices: Sequence[int]) -> Variable:
        """Entries `indices` (not negative) along `axis`, in that order. Refuses to leave nothing."""
        if not indices:
            self.refuse(f"nothing is left of axis {axis}")
        same = len(indices) == x.shape[axis] and all(i == n for n, i in enumerate(indices))
        return x if same else self.emit(Select(axis, tuple(int(i) for i in indices)), x)

    def sum(self, x: Variable, axes: Sequence[int], *, keepdims: bool = True) -> Variable:
        y = self.emit(Sum(tuple(axes)), x) if axes else x
        return y if keepdims else self.reshape(y, tuple(n for i, n in enumerate(x.shape) if i not in axes))

    def curve(self, name: str, x: Variable, *parameters: float) -> Variable:
        """A scalar curve of the engine, applied to every entry."""
        if not all(math.isfinite(parameter) for parameter in parameters):
            self.refuse(f"its parameters {parameters} are not finite")
        return self.emit(Elementwise(name, tuple(float(parameter) for parameter in parameters)), x)

    def add(self, a: Variable, b: Variable) -> Variable:
        """Sum of two variables, broadcast."""
        return self.emit(Add(), *self._alike(a, b))

    def subtract(self, a: Variable, b: Variable) -> Variable:
        """Difference of two variables, broadcast; of a value and itself it is exactly 0."""
        if _same(a, b):
            return self.scale_shift(a, np.array(0.0), None)
        return self.add(a, self.scale_shift(b, np.array(-1.0), None))

    def multiply(self, a: Variable, b: Variable) -> Variable:
        """Product of two variables, broadcast; of a value by itself it is the square, by a gate of itself that curve."""
        if _same(a, b):
            return self.curve("square", a)
        a, b = self._alike(a, b)
        bare = a.masked is b.masked is None and not self.as_served
        fused = fused_product(self.builder, a.index, b.index) if bare else None
        if fused is None:
            return self.emit(Multiply(), a, b)
        x = a if fused.x == a.index else b
        curve = self.joined(self.curve(fused.curve, self._scaled(x, fused.inner), *fused.parameters))
        return self._scaled(curve, fused.outer)

    def joined(self, x: Variable) -> Variable:
        """x, marked as what a served program computes in several steps."""
        return self.unserved(x, JOINED)

    def unserved(self, x: Variable, reason: str) -> Variable:
        """x, marked as what a served program may compute in other steps, with the reason."""
        self.builder.mark_unserved([x.index], reason)
        return x

    def _scaled(self, x: Variable, factor: float) -> Variable:
        return x if factor == 1 else self.scale_shift(x, np.array(factor), None)

    def maximum(self, a: Variable, b: Variable) -> Variable:
        """The larger of two variables, broadcast, entry by entry."""
        return self._built(building.maximum, *self._alike(a, b))

    def minimum(self, a: Variable, b: Variable) -> Variable:
        return self._built(building.minimum, *self._alike(a, b))

    def maximum_over(self, x: Variable, axis: int) -> Variable:
        """The largest entry along `axis`, which is kept with length 1."""
        return self._built(building.maximum_over, x, axis)

    def minimum_over(self, x: Variable, axis: int) -> Variable:
        return self._built(building.minimum_over, x, axis)

    def _alike(self, a: Variable, b: Variable) -> tuple[Variable, Variable]:
        full = self.broadcast(a.shape, b.shape)
        return self.expand(a, full), self.expand(b, full)

    def _built(self, build: Callable[..., int], *operands: Variable | int) -> Variable:
        """What a function of engine/ir/building.py makes of these operands."""
        if any(isinstance(x, Variable) and x.masked is not None for x in operands):
            self.refuse("it computes with a mask of minus infinity", MASK_REMEDY)
        indices = (x.index if isinstance(x, Variable) else x for x in operands)
        index = build(self.builder, *indices, name=node_name(self.node))
        return Variable(index, self.builder.shape(index))

    def scale_shift(self, x: Variable, scale: np.ndarray | None, shift: np.ndarray | None) -> Variable:
        """`scale * x + shift` with constants (None: 1 and 0), growing x where they are larger.

        A shift goes into the bias of a Linear or Conv that only this node reads: that is exact, and one node less.
        """
        full = self.broadcast(x.shape, *(c.shape for c in (scale, shift) if c is not None))
        if scale is None and shift is not None and full == x.shape and (merged := self._into_bias(x, shift)):
            return merged
        return self.emit(ScaleShift(_floats(scale), _floats(shift)), self.expand(x, full))

    def _into_bias(self, x: Variable, shift: np.ndarray) -> Variable | None:
        op = self.builder.node(x.index).op
        position = next((i for i, value in enumerate(self.inputs) if value is x), None)
        if not isinstance(op, (Linear, Conv)) or op.bias is not None or position is None:
            return None
        channel = len(x.shape) - 1 if isinstance(op, Linear) else len(x.shape) - op.weight.ndim + 1
        axes = (1,) * (len(x.shape) - shift.ndim) + shift.shape
        if math.prod(axes) != axes[channel] or not self.read_only_here(position):
            return None
        bias = np.broadcast_to(_floats(shift).reshape(-1), (x.shape[channel],)).copy()
        product = self.builder.node(x.index)
        sources = [Variable(i, self.builder.shape(i)) for i in product.inputs]
        return self.unserved(self.emit(replace(op, bias=bias), *sources), product.unserved)


def _same(a: Variable, b: Variable) -> bool:
    return a.index == b.index and a.masked is None and b.masked is None


def _floats(constant: np.ndarray | None) -> Any:
    return None if constant is None else np.asarray(constant, dtype=np.float64)
