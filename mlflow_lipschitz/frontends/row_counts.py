"""Constants that depend on how many rows the batch has: what may be done with them and still hold for every length.

A model with a free batch is lowered for one row and for several. A constant that differs between the two was computed from
the number of rows n. As long as such numbers are only moved, multiplied and divided without remainder, each is c·nᵏ, and two
lengths tell all; comparing or rounding one could give another answer for a length that nobody tried, so that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx

from mlflow_lipschitz.frontends.values import BATCH_REMEDY, Value, Variable, refusal

DEPENDS_ON_ROWS = "its result depends on how many rows the batch has"

# How a constant differs between one row and several: not at all; c·nᵏ in its entries; as many equal rows; in another way.
Difference = Literal["none", "numbers", "rows", "other"]

# Operators that may read numbers c·nᵏ: those that move them, and those that make such numbers of them.
_MOVE_NUMBERS = (
    "Cast", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "ReduceProd", "Reshape",
    "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where", "Mul", "Div", "Equal",
)  # fmt: skip
# Operators that keep equal rows equal, however many there are: entry by entry, or entries in the same order.
_KEEP_ROWS = (
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Cos", "Div", "Equal", "Erf", "Exp", "Expand", "Flatten",
    "Floor", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min",
    "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Reshape", "Round", "Shape", "Sigmoid", "Sign", "Sin", "Size",
    "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze", "Where", "Xor",
)  # fmt: skip
# Of n equal rows each of these is what it is of one row, or grows with n: a result that does not grow from 1 to several never does.
_SUM_ROWS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum",
    "ReduceSumSquare",
)  # fmt: skip
# Operators that take the shape of their result as an input.
_SHAPED = ("Expand", "Reshape", "Resize")
# Inputs of moving operators that say which entries are moved: no number of rows belongs there.
_WIDE = ("BOOL", "INT32", "INT64", "UINT32", "UINT64", "FLOAT", "DOUBLE")  # types that hold any number of rows
_CHOOSING = {"Gather": (1,), "Slice": (1, 2, 3, 4), "Where": (0,)}


def require_the_same_for_every_length(
    nodes: Sequence[onnx.NodeProto], single: Mapping[str, Value], several: Mapping[str, Value]
) -> None:
    """Refuse the first node whose result could depend on the number of rows.

    Args:
        nodes: the model's nodes in order.
        single, several: what each name stands for in a batch of one row, and of several.

    Raises:
        UnsupportedOperator: naming the node.
    """
    for node in nodes:
        differences = [_difference(single.get(name), several.get(name)) for name in node.input]
        if not any(difference != "none" for difference in differences):
            continue
        reads_variable = any(isinstance(single.get(name), Variable) for name in node.input)
        for position, difference in enumerate(differences):
            allowed = _allowed(node, position, difference, reads_variable=reads_variable)
            if not allowed and not (difference == "rows" and _beside_the_rows(node, position, single, several)):
                raise refusal(node, DEPENDS_ON_ROWS, BATCH_REMEDY)
        if node.op_type in _SUM_ROWS and not reads_variable and _grows(node, single, several):
            raise refusal(node, DEPENDS_ON_ROWS, BATCH_REMEDY)
        if node.op_type == "Cast" and "numbers" in differences and not reads_variable:
            _require_whole(node, *(np.asarray(values[node.input[0]]) for values in (single, several)))
        if node.op_type in ("Div", "Equal") and "numbers" in differences and not reads_variable:
            _require_settled(node, *([np.asarray(values[name]) for name in node.input] for values in (single, several)))


def _beside_the_rows(
    node: onnx.NodeProto, position: int, single: Mapping[str, Value], several: Mapping[str, Value]
) -> bool:
    """Whether a Slice or a matrix product of constants leaves the axes alone along which there are equal rows."""
    one, many = single[node.input[position]].shape, several[node.input[position]].shape
    varying = [axis for axis, (a, b) in enumerate(zip(one, many, strict=True)) if a != b]
    if node.op_type == "MatMul":
        return len(one) > 1 and (len(one) - 1 if position == 0 else len(one) - 2) not in varying
    if node.op_type == "Gemm" and position < 2:
        turned = any(attribute.name == ("transA", "transB")[position] and attribute.i for attribute in node.attribute)
        return (position + turned + 1) % 2 not in varying
    if node.op_type == "Gemm":
        return True
    if (node.op_type, position) != ("Slice", 0):
        return False
    left_one, left_many = (values[node.output[0]].shape for values in (single, several))
    return all((left_one[axis], left_many[axis]) == (one[axis], many[axis]) for axis in varying)


def _grows(node: onnx.NodeProto, single: Mapping[str, Value], several: Mapping[str, Value]) -> bool:
    return _difference(single[node.output[0]], several[node.output[0]]) not in ("none", "rows")


def _difference(one: Value | None, many: Value | None) -> Difference:
    if not isinstance(one, np.ndarray) or not isinstance(many, np.ndarray):
        return "none"
    if one.dtype == object or many.dtype == object:  # sequences of arrays
        same = len(one) == len(many) and all(map(_equal, one, many))
        return "none" if same else "other"
    if one.shape == many.shape:
        return "none" if _equal(one, many) else "numbers"
    if one.ndim == many.ndim and all(a in (1, b) for a, b in zip(one.shape, many.shape, strict=True)):
        return "rows" if _equal(np.broadcast_to(one, many.shape), many) else "other"
    uniform = one.size > 0 and _equal(np.broadcast_to(one.reshape(-1)[0], many.shape), many)
    return "rows" if uniform and _equal(np.broadcast_to(one.reshape(-1)[0], one.shape), one) else "other"


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _allowed(node: onnx.NodeProto, position: int, difference: Difference, *, reads_variable: bool) -> bool:
    if difference == "none":
        return True
    if reads_variable:  # equal rows meet the rows of the variable: that they stay apart is proved on the graph
        return difference == "rows" or (difference == "numbers" and node.op_type in _SHAPED and position > 0)
    if difference == "rows":
        return node.op_type in (*_KEEP_ROWS, *_SUM_ROWS)
    moved = node.op_type in _MOVE_NUMBERS and position not in _CHOOSING.get(node.op_type, ())
    return difference == "numbers" and moved and _holds_any_number(node)


def _holds_any_number(node: onnx.NodeProto) -> bool:
    """Whether the type that a Cast makes holds every number of rows exactly."""
    target = next((attribute.i for attribute in node.attribute if attribute.name == "to"), onnx.TensorProto.INT64)
    return node.op_type != "Cast" or onnx.TensorProto.DataType.Name(target) in _WIDE


def _require_whole(node: onnx.NodeProto, one: np.ndarray, many: np.ndarray) -> None:
    """A cast of floats to integers cuts off what is behind the point: c·nᵏ must have nothing there for any n."""
    target = next(attribute.i for attribute in node.attribute if attribute.name == "to")
    if one.dtype.kind != "f" or target in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return
    # c is the value for one row; where it is whole and k is not negative, so is c·nᵏ.
    whole = (one == np.floor(one)) & (many == np.floor(many)) & (np.abs(many) >= np.abs(one))
    if not np.all(whole | (one == many)):
        raise refusal(node, DEPENDS_ON_ROWS, BATCH_REMEDY)


def _require_settled(node: onnx.NodeProto, one: list[np.ndarray], many: list[np.ndarray]) -> None:
    """Quotients without remainder, and comparisons that come out the same for every number of rows."""
    (a1, b1), (a7, b7) = (np.broadcast_arrays(*pair) for pair in (one, many))
    depends = (a1 != a7) | (b1 != b7)
    if node.op_type == "Equal":
        # c·nᵏ keeps its sign; two of them that are equal for two numbers of rows are one and the same.
        settled = (np.sign(a1) != np.sign(b1)) | ((a1 == b1) & (a7 == b7))
    elif a1.dtype.kind == "f":
        settled = np.ones_like(depends)
    else:
        settled = (b1 == b7) & (b1 != 0) & (np.remainder(a1, np.where(b1 == 0, 1, b1)) == 0)
    if not np.all(settled | ~depends):
        raise refusal(node, DEPENDS_ON_ROWS, BATCH_REMEDY)
