"""Constant folding: the value of a node whose inputs are all constants, as the served program computes it.

Exporters compute shapes this way, conditions, and some also weights. Constants keep the model's own types. What only moves
entries is exact in any of them and done here; all arithmetic is onnxruntime's own, so that a comparison, a rounding or an
integer division comes out as it does where the model is served. Weights that are not computed stay as they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from mlflow_lipschitz.frontends.batch_length import BatchRows, is_symbolic, settled, without_batch
from mlflow_lipschitz.frontends.lowering_context import BATCH_REMEDY, Call, refusal
from mlflow_lipschitz.frontends.referee import run_node
from mlflow_lipschitz.frontends.slicing import resolved_slice, split_sizes

_REMEDY = "export the model with its constants folded"
DEPENDS_ON_ROWS = "its result depends on how many rows the batch has"


def as_constant(array: np.ndarray) -> np.ndarray:
    """Floats of any width as float64 (exactly), everything else unchanged."""
    if array.dtype.kind in "iubSUO":  # O: holds the length of the batch
        return array
    return array.astype(np.float64)


def fold(call: Call) -> tuple[np.ndarray | BatchRows, ...] | None:
    """Outputs of a node whose inputs are all constants, in the model's types; None when the operator is not known here.

    Raises:
        UnsupportedOperator: the result depends on the number of rows, or onnxruntime cannot compute it.
    """
    if call.node.op_type == "Split":
        return _split(call)
    row = FOLDS.get(call.node.op_type)
    values = [call.input(position) for position, value in enumerate(call.inputs) if value is not None]
    symbolic = any(is_symbolic(value) for value in values)
    if row is None and call.node.op_type not in COMPUTED:
        return None
    if symbolic and call.node.op_type not in FOLDS_OF_LENGTHS:
        call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)
    if symbolic and call.node.op_type in ARITHMETIC_OF_LENGTHS:
        result = ARITHMETIC_OF_LENGTHS[call.node.op_type](call, *values)
    else:
        result = _computed(call) if row is None else row(call, *values)
    constant = settled(np.asarray(result))
    if symbolic and call.node.op_type in ("ConstantOfShape", "Expand"):
        if constant.shape[0] != 1:
            call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)
        return (BatchRows(constant),)
    return (constant,)


def _computed(call: Call) -> np.ndarray:
    try:
        result = run_node(call.node, [None if v is None else np.asarray(v) for v in call.inputs], call.opset)
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        reason = f"its constant inputs cannot be evaluated: {str(error).strip() or type(error).__name__}"
        raise refusal(call.node, reason, _REMEDY) from error
    if result.dtype.kind not in "fiub":
        call.refuse(f"it makes constants of type {result.dtype}", _REMEDY)
    return result


_ATTRIBUTE_TYPES = {
    "value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
}  # fmt: skip


def _constant(call: Call) -> np.ndarray:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        value = call.attribute(name)
        if value is not None:
            return np.asarray(value, dtype=_ATTRIBUTE_TYPES.get(name))
    call.refuse("constants of this kind (sparse, string) are not supported")


def _constant_of_shape(call: Call, *_: np.ndarray) -> np.ndarray:
    value = call.attribute("value")
    fill = np.zeros(1, dtype=np.float32) if value is None else np.asarray(value)
    return np.full(without_batch(call.lengths(0)), fill.reshape(-1)[0])


def _cast_of_lengths(call: Call, x: np.ndarray) -> np.ndarray:
    target = onnx.helper.tensor_dtype_to_np_dtype(call.attribute("to"))
    return x if target.kind in "iu" else call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)


def _quotient(a: Any, b: Any) -> Any:
    """ONNX rounds quotients of integers toward zero, Python downward; a batch length is divided only where that is exact."""
    if not isinstance(a, int) or not isinstance(b, int):
        return a // b
    size = abs(a) // abs(b)
    return size if (a < 0) == (b < 0) else -size


def _gather(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.asarray(np.take(x, indices, axis=call.attribute("axis", 0)))


def _slice(call: Call, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    return x[tuple(resolved_slice(call, x.shape))]


def _axes(call: Call, rank: int) -> tuple[int, ...] | None:
    axes = call.integers(1, "axes")
    return None if axes is None else tuple(a % rank for a in axes)


def _unsqueeze(call: Call, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, call.integers(1, "axes") or ())


def _squeeze(call: Call, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    return np.squeeze(x, _axes(call, x.ndim))


def _reshape(call: Call, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    shape = call.integers(1, "shape") or ()
    keep_zero = bool(call.attribute("allowzero", 0))
    return np.reshape(x, [x.shape[i] if n == 0 and not keep_zero else n for i, n in enumerate(shape)])


def _expand(call: Call, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    target = without_batch(call.lengths(1))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, target))


def _flatten(call: Call, x: np.ndarray) -> np.ndarray:
    axis = call.attribute("axis", 1)
    return x.reshape(int(np.prod(x.shape[: axis % (x.ndim + 1)], dtype=int)), -1)


def _split(call: Call) -> tuple[np.ndarray, ...]:
    x = call.constant(0, "the split value")
    axis = call.attribute("axis", 0)
    cuts = np.cumsum(split_sizes(call, x.shape[axis]))[:-1]
    return tuple(np.split(x, cuts, axis=axis))


# What may be done with a batch length: moving it, and the arithmetic it has itself.
FOLDS_OF_LENGTHS = (
    "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Flatten", "Gather", "Identity", "Mul", "ReduceProd",
    "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip

ARITHMETIC_OF_LENGTHS: dict[str, Callable[..., Any]] = {
    "Cast": _cast_of_lengths,
    "Div": lambda call, a, b: np.frompyfunc(_quotient, 2, 1)(a, b),
    "Equal": lambda call, a, b: np.equal(a, b),
    "Mul": lambda call, a, b: np.multiply(a, b),
    "ReduceProd": lambda call, x, *_: np.prod(
        x, axis=_axes(call, x.ndim), keepdims=bool(call.attribute("keepdims", 1))
    ),
    "Where": lambda call, *values: np.where(*values),
}

# What moves entries and does not compute with them.
FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "Concat": lambda call, *values: np.concatenate(values, axis=call.attribute("axis", 0)),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda call, x: x,
    "Reshape": _reshape,
    "Size": lambda call, x: np.asarray(x.size, dtype=np.int64),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": lambda call, x, repeats: np.tile(x, tuple(int(n) for n in repeats)),
    "Transpose": lambda call, x: np.transpose(x, call.attribute("perm")),
    "Unsqueeze": _unsqueeze,
}

# What onnxruntime computes.
COMPUTED = (
    "Abs", "Add", "And", "Cast", "Ceil", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Sqrt", "Sub", "Where",
)  # fmt: skip
