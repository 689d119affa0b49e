"""Constant folding: the value of a node whose inputs are all constants, as the served program computes it.

Exporters compute shapes this way, conditions, and some also weights. Constants keep the model's own types. What only moves
entries is exact in any of them and done here; all arithmetic is onnxruntime's own, so that a comparison, a rounding or an
integer division comes out as it does where the model is served. Weights that are not computed stay as they are stored, and
quantized weights are what their integers stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mlflow_lipschitz.frontends.lowering_context import Call, refusal
from mlflow_lipschitz.frontends.quantization import dequantized
from mlflow_lipschitz.frontends.referee import run_node
from mlflow_lipschitz.frontends.slicing import resolved_slice, sequence_sizes, split_sizes

_REMEDY = "export the model with its constants folded"


def as_constant(array: np.ndarray) -> np.ndarray:
    """Floats of any width as float64 (exactly), everything else unchanged."""
    if array.dtype.kind in "iubSUO":
        return array
    return array.astype(np.float64)


def fold(call: Call) -> tuple[np.ndarray | None, ...] | None:
    """Outputs of a node whose inputs are all constants, in the model's types; None where its operator is no function.

    Raises:
        UnsupportedOperator: onnxruntime cannot compute it.
    """
    if call.node.op_type == "Split":
        return _split(call)
    row = FOLDS.get(call.node.op_type)
    if row is None:
        return None if call.node.op_type in NOT_FOLDED else _computed(call)
    values = [call.input(position) for position, value in enumerate(call.inputs) if value is not None]
    return (np.asarray(row(call, *values)),)


def _computed(call: Call) -> tuple[np.ndarray | None, ...]:
    try:
        results = run_node(call.node, [None if v is None else np.asarray(v) for v in call.inputs], call.opset)
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        reason = f"its constant inputs cannot be evaluated: {str(error).strip() or type(error).__name__}"
        raise refusal(call.node, reason, _REMEDY) from error
    for result in results:
        if result is not None and np.asarray(result).dtype.kind not in "fiub":
            call.refuse(f"it makes constants of type {np.asarray(result).dtype}", _REMEDY)
    return tuple(results)


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
    return np.full(call.integers(0, "the shape") or (), fill.reshape(-1)[0])


def _shape(call: Call, x: np.ndarray) -> np.ndarray:
    return np.asarray(x.shape[call.attribute("start", 0) : call.attribute("end")], dtype=np.int64)


def _dropout(call: Call, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    """Of constants too, Dropout does nothing at inference."""
    if call.input(2) is not None and np.any(call.constant(2, "the mode")):
        call.refuse("it is in training mode", "put the model in evaluation mode (model.eval()) before exporting it")
    return x


def _dequantized(call: Call, *_: np.ndarray) -> np.ndarray:
    """Without the rounding to the model's floats, except where these hold the result exactly."""
    exact = np.asarray(dequantized(call, 0, int(call.attribute("axis", 1))))
    rounded = exact.astype(call.constant(1, "the scale").dtype)
    return rounded if np.array_equal(rounded.astype(np.float64), exact) else exact


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
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, call.integers(1, "the shape") or ()))


def _flatten(call: Call, x: np.ndarray) -> np.ndarray:
    axis = call.attribute("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        call.refuse(f"axis {axis} does not exist in a tensor of {x.ndim} axes")
    rows = math.prod(x.shape[: axis + x.ndim if axis < 0 else axis])
    return x.reshape(rows, x.size // rows if rows else 0)


def _split(call: Call) -> tuple[np.ndarray, ...]:
    x = call.constant(0, "the split value")
    axis = call.attribute("axis", 0)
    cuts = np.cumsum(split_sizes(call, x.shape[axis]))[:-1]
    return tuple(np.split(x, cuts, axis=axis))


def _split_to_sequence(call: Call, x: np.ndarray, *_: np.ndarray) -> np.ndarray:
    """The pieces as an array of arrays, which only SequenceAt reads."""
    axis = call.axis(call.attribute("axis", 0), x.ndim)
    pieces = np.split(x, np.cumsum(sequence_sizes(call, x.shape[axis]))[:-1], axis=axis)
    if call.input(1) is None and not call.attribute("keepdims", 1):
        pieces = [np.squeeze(piece, axis) for piece in pieces]
    sequence = np.empty(len(pieces), dtype=object)
    for i, piece in enumerate(pieces):
        sequence[i] = piece
    return sequence


def _sequence_at(call: Call, pieces: np.ndarray, position: np.ndarray) -> np.ndarray:
    return np.asarray(pieces[int(position.reshape(-1)[0])])


# What moves entries and does not compute with them.
FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "Concat": lambda call, *values: np.concatenate(values, axis=call.attribute("axis", 0)),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": _dequantized,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda call, x: x,
    "Reshape": _reshape,
    "SequenceAt": _sequence_at,
    "Shape": _shape,
    "Size": lambda call, x: np.asarray(x.size, dtype=np.int64),
    "Slice": _slice,
    "SplitToSequence": _split_to_sequence,
    "Squeeze": _squeeze,
    "Tile": lambda call, x, repeats: np.tile(x, tuple(int(n) for n in repeats)),
    "Transpose": lambda call, x: np.transpose(x, call.attribute("perm")),
    "Unsqueeze": _unsqueeze,
}

# What is no function of its inputs, or makes no tensor. Everything else onnxruntime computes.
NOT_FOLDED = (
    "Bernoulli", "If", "Loop", "Multinomial", "Optional", "OptionalGetElement", "OptionalHasElement",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Scan", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence",
    "ConcatFromSequence",
)  # fmt: skip
