"""What a lowering function sees of the node it lowers, and how it answers: values, the batch axis, refusals.

A value of the ONNX graph is either a constant (a NumPy array, floats in float64) or a `Variable` (a node of the
engine's graph). A variable's ONNX shape is `(batch, *sample shape)`: axis 0 is the batch, is never touched, and the
engine's graph does not have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeAlias

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.graph import GraphBuilder
from mlflow_lipschitz.engine.ir.ops import Conv, Expand, Linear, Op, Reshape, ScaleShift
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.batch_length import BatchLength, BatchRows, Length
from mlflow_lipschitz.frontends.origins import node_origin

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Variable:
    """A value that depends on the model's input. `shape` is the sample shape, without the batch axis."""

    index: int
    shape: Shape


@dataclass(frozen=True)
class Pieces(Variable):
    """A variable that was split into a sequence. ONNX itself lets only sequence operators read one."""

    items: tuple[Variable, ...] = ()


Value: TypeAlias = "np.ndarray | Variable"


@dataclass(frozen=True)
class Call:
    """One ONNX node with its inputs as values (None for an optional input that is left out).

    `consumers` counts how many nodes and outputs of the model read each name; `batch` is the length of the batch axis,
    free or fixed; `opset` is the version of the default operator set.
    """

    node: onnx.NodeProto
    inputs: tuple[Value | BatchRows | None, ...]
    builder: GraphBuilder
    consumers: Mapping[str, int]
    batch: Length
    opset: int

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
        value = self.inputs[position] if position < len(self.inputs) else None
        assert not isinstance(value, BatchRows)  # lower_node has made plain constants of them, or has refused
        return value

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

    def lengths(self, position: int) -> tuple[Length, ...]:
        """A shape given as an input, in which the length of the batch may occur."""
        return tuple(n if isinstance(n, BatchLength) else int(n) for n in self.constant(position, "the shape"))

    def is_batch(self, length: Length) -> bool:
        """Whether an axis of this length is as long as the batch."""
        if isinstance(length, BatchLength) or isinstance(self.batch, BatchLength):
            return isinstance(length, BatchLength) and isinstance(self.batch, BatchLength) and length == self.batch
        return length == self.batch

    def variable(self, position: int = 0) -> Variable:
        value = self.input(position)
        if not isinstance(value, Variable):
            self.refuse(f"input {position} is expected to depend on the model's input, and is a constant")
        return value

    def sample_axis(self, axis: int, rank: int) -> int:
        """ONNX axis of a tensor of `rank` axes (batch included) as an axis of the sample. Refuses the batch axis."""
        if not -rank <= axis < rank:
            self.refuse(f"axis {axis} does not exist in a tensor of {rank} axes")
        if axis % rank == 0:
            self.refuse("it works along axis 0, which is the batch axis", BATCH_REMEDY)
        return axis % rank - 1

    def emit(self, op: Op, *variables: Variable) -> Variable:
        """Append an op to the engine's graph. Refuses non-finite constants and shapes that do not fit."""
        for field in fields(op):
            value = getattr(op, field.name)
            if isinstance(value, (np.ndarray, float)) and not np.all(np.isfinite(value)):
                self.refuse("its constants hold NaN or infinity", "a model with such weights cannot be certified")
        try:
            index = self.builder.add(op, *(v.index for v in variables), name=self.node.name or self.node.output[0])
        except ValueError as error:
            self.refuse(f"its shapes do not fit: {error}")
        return Variable(index, self.builder.shape(index))

    def reshape(self, x: Variable, shape: Shape) -> Variable:
        return x if x.shape == shape else self.emit(Reshape(shape), x)

    def expand(self, x: Variable, shape: Shape) -> Variable:
        return x if x.shape == shape else self.emit(Expand(shape), x)

    def broadcast(self, *shapes: Shape) -> Shape:
        try:
            return tuple(np.broadcast_shapes(*shapes))
        except ValueError:
            self.refuse(f"shapes {shapes} do not broadcast")

    def per_sample(self, constant: np.ndarray, rank: int) -> np.ndarray:
        """The constant as every sample of a variable with `rank` ONNX axes sees it: without a batch axis.

        Refuses a constant that differs from row to row of the batch, or that would move the batch axis.
        """
        if constant.ndim < rank:
            return constant
        if constant.ndim > rank:
            self.refuse(f"a constant of {constant.ndim} axes moves the batch axis of {rank} axes", BATCH_REMEDY)
        same = constant.shape[0] == 1 or self.is_batch(constant.shape[0])
        if not same or not np.array_equal(constant, np.broadcast_to(constant[:1], constant.shape)):
            self.refuse(f"a constant of shape {constant.shape} differs along axis 0, the batch axis", BATCH_REMEDY)
        return np.asarray(constant[0])

    def read_only_here(self, position: int = 0) -> bool:
        """Whether no other node and no output of the model reads this input."""
        return self.consumers.get(self.node.input[position], 0) == 1

    def scale_shift(self, x: Variable, scale: np.ndarray | None, shift: np.ndarray | None) -> Variable:
        """`scale * x + shift` with per-sample constants, growing x where they are larger.

        A shift goes into the bias of a Linear or Conv that only this node reads: that is exact, and one node less.
        """
        full = self.broadcast(x.shape, *(c.shape for c in (scale, shift) if c is not None))
        if scale is None and shift is not None and full == x.shape and (merged := self._into_bias(x, shift)):
            return merged
        return self.emit(ScaleShift(_floats(scale), _floats(shift)), self.expand(x, full))

    def _into_bias(self, x: Variable, shift: np.ndarray) -> Variable | None:
        producer = self.builder.node(x.index)
        op = producer.op
        position = next(i for i, value in enumerate(self.inputs) if isinstance(value, Variable))
        if not isinstance(op, (Linear, Conv)) or op.bias is not None or not self.read_only_here(position):
            return None
        channel = len(x.shape) - 1 if isinstance(op, Linear) else 0
        axes = (1,) * (len(x.shape) - shift.ndim) + shift.shape
        if math.prod(axes) != axes[channel]:
            return None
        bias = np.broadcast_to(_floats(shift).reshape(-1), (x.shape[channel],)).copy()
        rebuilt = _with_bias(op, bias)
        return self.emit(rebuilt, *(Variable(i, self.builder.shape(i)) for i in producer.inputs))


def _with_bias(op: Linear | Conv, bias: np.ndarray) -> Op:
    if isinstance(op, Linear):
        return Linear(op.weight, bias)
    return Conv(op.weight, bias, op.stride, op.padding, op.dilation, op.groups)


def _floats(constant: np.ndarray | None) -> Any:
    return None if constant is None else np.asarray(constant, dtype=np.float64)


BATCH_REMEDY = (
    "every row of a batch must be computed by itself, with the batch as axis 0; export the model so, or with a batch "
    "of fixed length 1"
)


def refusal(node: onnx.NodeProto, reason: str, remedy: str = "") -> UnsupportedOperator:
    """The UnsupportedOperator error for `node`, with where it came from in the user's model."""
    name = node.name or (node.output[0] if node.output else "")
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    return UnsupportedOperator(operator, name, origin=node_origin(node), reason=reason, remedy=remedy)


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode() for item in value]
    return value
