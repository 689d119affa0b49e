"""What a lowering function sees of the node it lowers, and how it answers: inputs, attributes, new nodes, refusals.

Tensors are lowered whole: a variable's shape is the ONNX shape, axis 0 included, and ONNX axes are used as they are. That
the rows of a batch do not influence each other is proved afterwards, for the model as a whole (row_independence.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir import building
from mlflow_lipschitz.engine.ir.graph import GraphBuilder
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
class _NodeInputs:
    """One ONNX node with its inputs as values (None for an optional input that is left out).

    `consumers` counts how many nodes and outputs of the model read each name; `opset` is the version of the default
    operator set; `floats` is the type of the model's input, in which it computes.
    """

    node: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    builder: GraphBuilder
    consumers: Mapping[str, int]
    opset: int
    floats: type = np.float32

    def refuse(self, reason: str, remedy: str = "") -> NoReturn:
        """Raise UnsupportedOperator for this node."""
        raise refusal(self.node, reason, remedy)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of a node attribute: int, float, str, list or NumPy array; `default` when the node does not have it."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return _attribute_value(attribute)
        return default

    def real(self, name: str, default: float) -> float:
        """A float attribute. ONNX holds attributes and their defaults in float32, so the default is rounded to it."""
        return float(self.attribute(name, np.float32(default)))

    def input(self, position: int) -> Value | None:
        return self.inputs[position] if position < len(self.inputs) else None

    def constant(self, position: int, what: str) -> np.ndarray:
        """The constant at `position`; refuses a value that depends on the model's input."""
        value = self.input(position)
        if isinstance(value, Variable):
            self.refuse(f"{what} depends on the model's input, and only constants are supported there")
        if value is None:
            self.refuse(f"{what} is missing")
        return value

    def integers(self, position: int, attribute: str) -> tuple[int, ...] | None:
        """A list of integers that newer opsets pass as an input and older ones as an attribute; None when absent."""
        if self.input(position) is not None:
            return tuple(int(n) for n in np.atleast_1d(self.constant(position, attribute)))
        value = self.attribute(attribute)
        return None if value is None else tuple(int(n) for n in value)

    def variable(self, position: int = 0) -> Variable:
        """The value at `position` that depends on the model's input; refuses a constant."""
        value = self.input(position)
        if not isinstance(value, Variable):
            self.refuse(f"input {position} is expected to depend on the model's input, and is a constant")
        return value

    def axis(self, axis: int, rank: int) -> int:
        """`axis` counted from the front in a tensor of `rank` axes. Refuses an axis that does not exist."""
        if not -rank <= axis < rank:
            self.refuse(f"axis {axis} does not exist in a tensor of {rank} axes")
        return axis % rank

    def axes(self, axes: Sequence[int], rank: int) -> tuple[int, ...]:
        """Several axes, sorted and counted from the front. Refuses an axis that is named twice or does not exist."""
        found = sorted({self.axis(int(axis), rank) for axis in axes})
        if len(found) < len(axes):
            self.refuse(f"its axes {tuple(axes)} name one axis twice")
        return tuple(found)

    def broadcast(self, *shapes: Shape) -> Shape:
        """The shape that `shapes` broadcast to. Refuses shapes that do not."""
        try:
            return tuple(np.broadcast_shapes(*shapes))
        except ValueError:
            self.refuse(f"shapes {shapes} do not broadcast")

    def read_only_here(self, position: int = 0) -> bool:
        """Whether no other node and no output of the model reads this input."""
        return self.consumers.get(self.node.input[position], 0) == 1


@dataclass(frozen=True)
class Call(_NodeInputs):
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
        fused = fused_product(self.builder, a.index, b.index) if a.masked is b.masked is None else None
        if fused is None:
            return self.emit(Multiply(), a, b)
        x = a if fused.x == a.index else b
        return self._scaled(self.curve(fused.curve, self._scaled(x, fused.inner), *fused.parameters), fused.outer)

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
        sources = [Variable(i, self.builder.shape(i)) for i in self.builder.node(x.index).inputs]
        return self.emit(replace(op, bias=bias), *sources)


def _same(a: Variable, b: Variable) -> bool:
    return a.index == b.index and a.masked is None and b.masked is None


def _floats(constant: np.ndarray | None) -> Any:
    return None if constant is None else np.asarray(constant, dtype=np.float64)


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode() for item in value]
    return value
