"""What a lowering function may ask of the node it lowers: its inputs and attributes, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.graph import GraphBuilder
from mlflow_lipschitz.frontends.values import Shape, Value, Variable, refusal


@dataclass(frozen=True)
class NodeInputs:
    """One ONNX node with its inputs as values (None for an optional input that is left out).

    `consumers` counts how many nodes and outputs of the model read each name; `opset` is the version of the default
    operator set; `floats` is the type of the model's input, in which it computes. `as_served`: nothing is joined that a served
    program computes step by step.
    """

    node: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    builder: GraphBuilder
    consumers: Mapping[str, int]
    opset: int
    floats: type = np.float32
    as_served: bool = False

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


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode() for item in value]
    return value
