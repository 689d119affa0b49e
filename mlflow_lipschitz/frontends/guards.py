"""Choices that only guard a computation against overflow: torch's softplus is x itself where x is above a threshold of 20.

There log(1 + eˣ) and x are the same float, so the choice is none of the function's: it is softplus. As written it would jump, by
less than any float can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

from mlflow_lipschitz.frontends.onnx_types import element_types

# From here on log(1 + eˣ) − x = log(1 + e⁻ˣ) is below half a unit in the last place of x.
SAME_FROM = {onnx.TensorProto.FLOAT: 17.0, onnx.TensorProto.DOUBLE: 37.0}


def without_guards(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every `a > threshold ? x : softplus(a) / b`, where a = b x, replaced by `softplus(a) / b`."""
    if not any(node.op_type == "Softplus" for node in model.graph.node):
        return model
    walk = _Walk.over(model)
    kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
    same_from = max((SAME_FROM.get(kind, 0.0) for kind in kinds), default=0.0)
    guarded = {node.output[0] for node in model.graph.node if same_from and walk.guards_softplus(node, same_from)}
    if not guarded:
        return model
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    nodes = [_unguarded(node) if node.output and node.output[0] in guarded else node for node in plain.graph.node]
    read = {name for node in nodes for name in node.input} | {value.name for value in plain.graph.output}
    kept = [node for node in nodes if node.op_type not in ("Greater", "GreaterOrEqual") or node.output[0] in read]
    del plain.graph.node[:]
    plain.graph.node.extend(kept)
    return plain


def _unguarded(choice: onnx.NodeProto) -> onnx.NodeProto:
    plain = helper.make_node("Identity", [choice.input[2]], list(choice.output), name=choice.name)
    plain.metadata_props.extend(choice.metadata_props)
    return plain


@dataclass(frozen=True)
class _Walk:
    """Which node makes each name, which names are given numbers, and of which type names are, where ONNX can tell."""

    makers: dict[str, onnx.NodeProto]
    given: dict[str, onnx.TensorProto]
    types: Mapping[str, int]

    @classmethod
    def over(cls, model: onnx.ModelProto) -> _Walk:
        makers = {name: node for node in model.graph.node for name in node.output}
        return cls(makers, {tensor.name: tensor for tensor in model.graph.initializer}, element_types(model))

    def guards_softplus(self, choice: onnx.NodeProto, same_from: float) -> bool:
        if choice.op_type != "Where":
            return False
        condition, x, other = choice.input
        comparison = self.makers.get(condition)
        if comparison is None or comparison.op_type not in ("Greater", "GreaterOrEqual"):
            return False
        softplus, divisor = self._quotient(other)
        maker = self.makers.get(softplus)
        threshold, argument = self._number(comparison.input[1]), comparison.input[0]
        if maker is None or maker.op_type != "Softplus" or maker.input[0] != argument:
            return False
        if threshold is None or threshold < same_from or divisor is None or divisor <= 0:
            return False
        return (argument == x and divisor == 1) or self._is_multiple(argument, x, divisor)

    def _quotient(self, name: str) -> tuple[str, float | None]:
        """What is divided, and by which number."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Div":
            return name, 1.0
        return maker.input[0], self._number(maker.input[1])

    def _is_multiple(self, name: str, x: str, factor: float) -> bool:
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Mul" or x not in maker.input:
            return False
        (other,) = [part for part in maker.input if part != x] or [x]
        return self._number(other) == factor

    def _number(self, name: str) -> float | None:
        """The one number that a name stands for, if it is given. Casts to anything but real numbers may change it."""
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in ("Cast", "CastLike", "Identity"):
            if self.types.get(name) not in SAME_FROM:
                return None
            name = maker.input[0]
            maker = self.makers.get(name)
        tensor = self.given.get(name)
        if maker is not None and maker.op_type == "Constant":
            values = {attribute.name: helper.get_attribute_value(attribute) for attribute in maker.attribute}
            if isinstance(values.get("value_float"), float):
                return float(values["value_float"])
            tensor = values.get("value")
        if tensor is None or tuple(tensor.dims) not in ((), (1,)):
            return None
        return float(numpy_helper.to_array(tensor).reshape(()))
