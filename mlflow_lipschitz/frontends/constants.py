"""Constant folding: a small NumPy evaluator for nodes whose inputs are all constants.

Floats are held in float64 whatever the model stores, so only a Cast the model itself asks for rounds them; integers and
booleans keep their meaning (division truncates toward zero). Exporters compute shapes this way, and some also weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from mlflow_lipschitz.frontends.batch_length import BatchRows, is_symbolic, settled, without_batch
from mlflow_lipschitz.frontends.lowering_context import BATCH_REMEDY, Call
from mlflow_lipschitz.frontends.slicing import resolved_slice, split_sizes

DEPENDS_ON_ROWS = "its result depends on how many rows the batch has"


def as_constant(array: np.ndarray) -> np.ndarray:
    """Floats of any width as float64 (exactly), everything else unchanged."""
    if array.dtype.kind in "iubSUO":  # O: holds the length of the batch
        return array
    return array.astype(np.float64)


def fold(call: Call) -> tuple[np.ndarray | BatchRows, ...] | None:
    """Outputs of a node whose inputs are all constants, or None when the operator has no row here."""
    if call.node.op_type == "Split":
        return _split(call)
    row = FOLDS.get(call.node.op_type)
    if row is None:
        return None
    values = [call.input(position) for position, value in enumerate(call.inputs) if value is not None]
    symbolic = any(is_symbolic(value) for value in values)
    if symbolic and call.node.op_type not in FOLDS_OF_LENGTHS:
        call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)
    try:
        with np.errstate(all="ignore"):
            result = row(call, *values)
    except (ValueError, IndexError, TypeError) as error:
        if symbolic:
            call.refuse(f"{DEPENDS_ON_ROWS} ({error})", BATCH_REMEDY)
        call.refuse(f"its constant inputs cannot be evaluated: {error}")
    constant = as_constant(settled(np.asarray(result)))
    if symbolic and call.node.op_type in ("ConstantOfShape", "Expand"):
        if constant.shape[0] != 1:
            call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)
        return (BatchRows(constant),)
    return (constant,)


def _constant(call: Call) -> np.ndarray:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        value = call.attribute(name)
        if value is not None:
            return np.asarray(value)
    call.refuse("constants of this kind (sparse, string) are not supported")


def _constant_of_shape(call: Call, *_: np.ndarray) -> np.ndarray:
    value = call.attribute("value")
    fill = np.zeros(1) if value is None else as_constant(np.asarray(value))
    return np.full(without_batch(call.lengths(0)), fill.reshape(-1)[0])


def _cast(call: Call, x: np.ndarray) -> np.ndarray:
    target = onnx.helper.tensor_dtype_to_np_dtype(call.attribute("to"))
    if is_symbolic(x):
        return x if target.kind in "iu" else call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)
    return x.astype(target)


def _divide(call: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if is_symbolic(a) or is_symbolic(b):
        return np.asarray(a // b)
    if a.dtype.kind in "iu":
        return np.asarray(np.trunc(a / b)).astype(a.dtype) if np.all(b != 0) else call.refuse("division by zero")
    return np.asarray(a / b)


def _mod(call: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.fmod(a, b) if call.attribute("fmod", 0) else np.mod(a, b))


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


def _reduce(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def reduce(call: Call, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
        axes = _axes(call, x.ndim)
        if not axes and call.attribute("noop_with_empty_axes", 0):
            return x
        return np.asarray(function(x, axis=axes or None, keepdims=bool(call.attribute("keepdims", 1))))

    return reduce


def _plain(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    return lambda call, *values: np.asarray(function(*values))


# What may be done with a batch length: moving it, and the arithmetic it has itself.
FOLDS_OF_LENGTHS = (
    "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Flatten", "Gather", "Identity", "Mul", "ReduceProd",
    "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip

FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "Cast": _cast,
    "Ceil": _plain(np.ceil),
    "Concat": lambda call, *values: np.concatenate(values, axis=call.attribute("axis", 0)),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": _plain(np.equal),
    "Exp": _plain(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _plain(np.floor),
    "Gather": _gather,
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Identity": _plain(np.asarray),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Log": _plain(np.log),
    "MatMul": _plain(np.matmul),
    "Max": lambda call, *values: np.max(np.stack(np.broadcast_arrays(*values)), axis=0),
    "Min": lambda call, *values: np.min(np.stack(np.broadcast_arrays(*values)), axis=0),
    "Mod": _mod,
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "Pow": _plain(np.power),
    "Range": _plain(np.arange),
    "Reciprocal": _plain(np.reciprocal),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Size": lambda call, x: np.asarray(x.size, dtype=np.int64),
    "Slice": _slice,
    "Sqrt": _plain(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(np.subtract),
    "Tile": lambda call, x, repeats: np.tile(x, tuple(int(n) for n in repeats)),
    "Transpose": lambda call, x: np.transpose(x, call.attribute("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(np.where),
}
