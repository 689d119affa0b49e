"""Lowering of operators that move entries and do not compute with them."""

from __future__ import annotations

import math

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Concat, Pad, ScaleShift, Select
from mlflow_lipschitz.frontends.lowering_context import Call, Pieces, Shape, Value, Variable
from mlflow_lipschitz.frontends.slicing import resolved_slice, sequence_sizes, split_sizes


def lower_shape(call: Call) -> np.ndarray:
    shape = call.variable().shape
    return np.asarray(shape[call.attribute("start", 0) : call.attribute("end")], dtype=np.int64)


def lower_size(call: Call) -> np.ndarray:
    return np.asarray(math.prod(call.variable().shape), dtype=np.int64)


def lower_reshape(call: Call) -> Variable:
    x = call.variable()
    wanted = call.integers(1, "shape")
    if wanted is None:
        call.refuse("the shape is missing")
    return call.reshape(x, resolved_shape(call, x.shape, wanted))


def resolved_shape(call: Call, shape: Shape, wanted: Shape) -> Shape:
    """The shape an ONNX Reshape asks for: 0 copies a length, -1 is inferred."""
    if wanted.count(-1) > 1:
        call.refuse(f"it leaves two axes of {wanted} to be inferred")
    copies = not call.attribute("allowzero", 0)
    lengths = [shape[i] if n == 0 and copies else n for i, n in enumerate(wanted)]
    known, size = math.prod(n for n in lengths if n != -1), math.prod(shape)
    if -1 in lengths and known:
        lengths[lengths.index(-1)] = size // known
    if math.prod(lengths) != size or any(n < 0 for n in lengths):
        call.refuse(f"a tensor of shape {shape} cannot become {wanted}")
    return tuple(lengths)


def lower_flatten(call: Call) -> Variable:
    x = call.variable()
    axis = call.attribute("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    if not 0 <= axis <= len(x.shape):
        call.refuse(f"axis {axis} does not exist in a tensor of {len(x.shape)} axes")
    return call.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def lower_squeeze(call: Call) -> Variable:
    x = call.variable()
    axes = call.integers(1, "axes")
    dropped = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else call.axes(axes, len(x.shape))
    if any(x.shape[i] != 1 for i in dropped):
        call.refuse(f"it squeezes an axis of a tensor of shape {x.shape} that is not of length 1")
    return call.reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in dropped))


def lower_unsqueeze(call: Call) -> Variable:
    x = call.variable()
    axes = call.integers(1, "axes") or ()
    rank = len(x.shape) + len(axes)
    added = call.axes(axes, rank)
    entries = iter(x.shape)
    return call.reshape(x, tuple(1 if i in added else next(entries) for i in range(rank)))


def lower_transpose(call: Call) -> Variable:
    x = call.variable()
    permutation = tuple(call.attribute("perm", tuple(reversed(range(len(x.shape))))))
    return call.transpose(x, permutation)


def lower_expand(call: Call) -> Variable:
    x = call.variable()
    return call.expand(x, call.broadcast(x.shape, call.integers(1, "shape") or ()))


def lower_slice(call: Call) -> Value:
    x = call.variable()
    full = x.shape
    for axis, part in enumerate(resolved_slice(call, full)):
        chosen = range(*part.indices(full[axis]))
        if not chosen:
            return _nothing(
                tuple(len(range(*p.indices(n))) for p, n in zip(resolved_slice(call, full), full, strict=True))
            )
        x = call.select(x, axis, chosen)
    return x


def lower_split(call: Call) -> tuple[Value, ...]:
    x = call.variable()
    axis = call.axis(call.attribute("axis", 0), len(x.shape))
    pieces: list[Value] = []
    start = 0
    for size in split_sizes(call, x.shape[axis]):
        empty = (*x.shape[:axis], 0, *x.shape[axis + 1 :])
        pieces.append(call.select(x, axis, range(start, start + size)) if size else _nothing(empty))
        start += size
    return tuple(pieces)


def _nothing(shape: Shape) -> np.ndarray:
    """A tensor without entries, which depends on nothing. Definitions of operators split such pieces off."""
    return np.zeros(shape, dtype=np.float32)


def lower_split_to_sequence(call: Call) -> Pieces:
    x = call.variable()
    axis = call.axis(call.attribute("axis", 0), len(x.shape))
    pieces, start = [], 0
    for size in sequence_sizes(call, x.shape[axis]):
        piece = call.select(x, axis, range(start, start + size))
        if call.input(1) is None and not call.attribute("keepdims", 1):
            piece = call.reshape(piece, (*x.shape[:axis], *x.shape[axis + 1 :]))
        pieces.append(piece)
        start += size
    return Pieces(x.index, x.shape, items=tuple(pieces))


def lower_sequence_at(call: Call) -> Variable:
    pieces = call.variable()
    position = int(call.constant(1, "the position").reshape(-1)[0])
    if not isinstance(pieces, Pieces) or not -len(pieces.items) <= position < len(pieces.items):
        call.refuse(f"the sequence has no entry {position}")
    return pieces.items[position]


def lower_sequence_construct(call: Call) -> Pieces:
    pieces = tuple(call.variable(position) for position in range(len(call.inputs)))
    return Pieces(pieces[0].index, pieces[0].shape, items=pieces)


def lower_concat_from_sequence(call: Call) -> Variable:
    """The pieces side by side along an axis, or along a new one."""
    pieces = call.variable()
    if not isinstance(pieces, Pieces):
        call.refuse("it reads something that is not a sequence")
    items, new = list(pieces.items), bool(call.attribute("new_axis", 0))
    axis = call.axis(call.attribute("axis"), len(items[0].shape) + new)
    if new:
        items = [call.reshape(item, (*item.shape[:axis], 1, *item.shape[axis:])) for item in items]
    return items[0] if len(items) == 1 else call.emit(Concat(axis), *items)


def lower_concat(call: Call) -> Variable:
    given = [call.input(position) for position in range(len(call.inputs))]
    rank = next(len(v.shape) for v in given if isinstance(v, Variable))
    axis = call.axis(call.attribute("axis", 0), rank)
    values: list[Value] = [v for v in given if v is not None and (isinstance(v, Variable) or v.size)]
    variables = [v for v in values if isinstance(v, Variable)]
    joined = variables[0] if len(variables) == 1 else call.emit(Concat(axis), *variables)
    if len(variables) == len(values):
        return joined
    return _with_constants(call, joined, values, axis)


def _with_constants(call: Call, joined: Variable, values: list[Value], axis: int) -> Variable:
    """`joined` (the variables alone) with the constants put between them: a zero entry picked there, and a shift."""
    length = joined.shape[axis]
    positions: list[int] = []
    blocks: list[np.ndarray] = []
    used = 0
    for value in values:
        if isinstance(value, Variable):
            blocks.append(np.zeros(value.shape))
            positions.extend(range(used, used + value.shape[axis]))
            used += value.shape[axis]
        else:
            if value.ndim != len(joined.shape):
                call.refuse(f"a constant of shape {value.shape} does not fit a tensor of shape {joined.shape}")
            blocks.append(value)
            positions.extend([length] * value.shape[axis])
    padding = tuple((0, 1) if i == axis else (0, 0) for i in range(len(joined.shape)))
    spread = call.emit(Select(axis, tuple(positions)), call.emit(Pad(padding), joined))
    return call.emit(ScaleShift(None, np.concatenate(blocks, axis=axis)), spread)


ROWS = {
    "Shape": lower_shape,
    "Size": lower_size,
    "Reshape": lower_reshape,
    "Flatten": lower_flatten,
    "Squeeze": lower_squeeze,
    "Unsqueeze": lower_unsqueeze,
    "Transpose": lower_transpose,
    "Expand": lower_expand,
    "Slice": lower_slice,
    "Split": lower_split,
    "SplitToSequence": lower_split_to_sequence,
    "SequenceAt": lower_sequence_at,
    "SequenceConstruct": lower_sequence_construct,
    "ConcatFromSequence": lower_concat_from_sequence,
    "Concat": lower_concat,
}
