"""Lowering of operators that move entries and do not compute with them. Axis 0, the batch, always stays where it is."""

from __future__ import annotations

import math

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Concat, Pad, ScaleShift, Select, Transpose
from mlflow_lipschitz.frontends.lowering_context import BATCH_REMEDY, Call, Pieces, Shape, Value, Variable
from mlflow_lipschitz.frontends.slicing import resolved_slice, split_sizes


def lower_reshape(call: Call) -> Variable:
    x = call.variable()
    full = (call.batch, *x.shape)
    wanted = call.integers(1, "shape")
    if wanted is None:
        call.refuse("the new shape is missing")
    keep_zero = bool(call.attribute("allowzero", 0))
    if not keep_zero and any(n == 0 and i >= len(full) for i, n in enumerate(wanted)):
        call.refuse(f"shape {wanted} copies an axis that {full} does not have")
    shape = [full[i] if n == 0 and not keep_zero else n for i, n in enumerate(wanted)]
    known = math.prod(n for n in shape if n != -1)
    if -1 in shape and known:
        shape[shape.index(-1)] = math.prod(full) // known
    return _with_full_shape(call, x, tuple(shape))


def _with_full_shape(call: Call, x: Variable, shape: Shape) -> Variable:
    """x as an ONNX tensor of `shape`. Entries stay in order, so rows stay apart if and only if axis 0 stays."""
    if not shape or shape[0] != call.batch or math.prod(shape) != call.batch * math.prod(x.shape):
        call.refuse(f"it does not keep axis 0 (samples of shape {x.shape} become a tensor {shape})", BATCH_REMEDY)
    return call.reshape(x, shape[1:])


def lower_flatten(call: Call) -> Variable:
    x = call.variable()
    axis = call.attribute("axis", 1)
    rank = len(x.shape) + 1
    axis = axis + rank if axis < 0 else axis
    full = (call.batch, *x.shape)
    return _with_full_shape(call, x, (math.prod(full[:axis]), math.prod(full[axis:])))


def lower_squeeze(call: Call) -> Variable:
    x = call.variable()
    rank = len(x.shape) + 1
    axes = call.integers(1, "axes")
    if axes is None:
        if call.batch == 1:
            call.refuse("it drops the batch axis of length 1", "name the axes to squeeze")
        dropped = {i for i, n in enumerate(x.shape) if n == 1}
    else:
        dropped = {call.sample_axis(axis, rank) for axis in axes}
    if any(x.shape[i] != 1 for i in dropped):
        call.refuse(f"it squeezes an axis of samples of shape {x.shape} that is not of length 1")
    return call.reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in dropped))


def lower_unsqueeze(call: Call) -> Variable:
    x = call.variable()
    axes = call.integers(1, "axes") or ()
    rank = len(x.shape) + 1 + len(axes)
    added = {call.sample_axis(axis, rank) for axis in axes}
    entries = iter(x.shape)
    return call.reshape(x, tuple(1 if i in added else next(entries) for i in range(rank - 1)))


def lower_transpose(call: Call) -> Variable:
    x = call.variable()
    permutation = tuple(call.attribute("perm", tuple(reversed(range(len(x.shape) + 1)))))
    if permutation[0] != 0:
        call.refuse("it moves the batch axis", BATCH_REMEDY)
    axes = tuple(axis - 1 for axis in permutation[1:])
    return x if axes == tuple(range(len(axes))) else call.emit(Transpose(axes), x)


def lower_expand(call: Call) -> Variable:
    x = call.variable()
    wanted = call.integers(1, "shape") or ()
    if len(wanted) > len(x.shape) + 1 or (len(wanted) == len(x.shape) + 1 and wanted[0] not in (1, call.batch)):
        call.refuse(f"it adds axes before the batch axis or repeats the batch (shape {wanted})", BATCH_REMEDY)
    sample = wanted[1:] if len(wanted) == len(x.shape) + 1 else wanted
    return call.expand(x, call.broadcast(x.shape, tuple(sample)))


def lower_slice(call: Call) -> Variable:
    x = call.variable()
    full = (call.batch, *x.shape)
    for axis, part in enumerate(resolved_slice(call, full)):
        positions = range(*part.indices(full[axis]))
        if positions == range(full[axis]):
            continue
        x = _select(call, x, call.sample_axis(axis, len(full)), tuple(positions))
    return x


def lower_split(call: Call) -> tuple[Variable, ...]:
    x = call.variable()
    axis = call.sample_axis(call.attribute("axis", 0), len(x.shape) + 1)
    pieces, start = [], 0
    for size in split_sizes(call, x.shape[axis]):
        pieces.append(_select(call, x, axis, tuple(range(start, start + size))))
        start += size
    return tuple(pieces)


def lower_split_to_sequence(call: Call) -> Pieces:
    x = call.variable()
    axis = call.sample_axis(call.attribute("axis", 0), len(x.shape) + 1)
    length = x.shape[axis]
    split = np.ones((), dtype=int) if call.input(1) is None else call.constant(1, "the split")
    step = max(int(split.reshape(-1)[0]), 1)
    sizes = [int(n) for n in split] if split.ndim else [min(step, length - i) for i in range(0, length, step)]
    pieces, start = [], 0
    for size in sizes:
        piece = _select(call, x, axis, tuple(range(start, start + size)))
        if call.input(1) is None and not call.attribute("keepdims", 1):
            piece = call.reshape(piece, (*x.shape[:axis], *x.shape[axis + 1 :]))
        pieces.append(piece)
        start += size
    return Pieces(x.index, x.shape, tuple(pieces))


def lower_sequence_at(call: Call) -> Variable:
    pieces = call.variable()
    position = int(call.constant(1, "the position").reshape(-1)[0])
    if not isinstance(pieces, Pieces) or not -len(pieces.items) <= position < len(pieces.items):
        call.refuse(f"the sequence has no entry {position}")
    return pieces.items[position]


def lower_gather(call: Call) -> Variable:
    x = call.variable()
    indices = call.constant(1, "the indices")
    axis = call.sample_axis(call.attribute("axis", 0), len(x.shape) + 1)
    length = x.shape[axis]
    if np.any(indices < -length) or np.any(indices >= length):
        call.refuse(f"an index is outside the axis of length {length}")
    picked = _select(call, x, axis, tuple(int(i) % length for i in indices.reshape(-1)))
    return call.reshape(picked, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _select(call: Call, x: Variable, axis: int, indices: tuple[int, ...]) -> Variable:
    if not indices:
        call.refuse(f"nothing is left of axis {axis + 1}")
    return call.emit(Select(axis, indices), x)


def lower_concat(call: Call) -> Variable:
    values: list[Value] = [value for value in call.inputs if value is not None]
    rank = next(len(v.shape) for v in values if isinstance(v, Variable)) + 1
    axis = call.sample_axis(call.attribute("axis", 0), rank)
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
            block = call.per_sample(value, len(joined.shape) + 1)
            if block.ndim != len(joined.shape):
                call.refuse(f"a constant of shape {value.shape} does not fit samples of shape {joined.shape}")
            blocks.append(block)
            positions.extend([length] * block.shape[axis])
    padding = tuple((0, 1) if i == axis else (0, 0) for i in range(len(joined.shape)))
    spread = call.emit(Select(axis, tuple(positions)), call.emit(Pad(padding), joined))
    return call.emit(ScaleShift(None, np.concatenate(blocks, axis=axis)), spread)


def lower_pad(call: Call) -> Variable:
    x = call.variable()
    if call.attribute("mode", "constant") != "constant":
        call.refuse(f"padding mode {call.attribute('mode')!r}", "pad with a constant")
    rank = len(x.shape) + 1
    pads = call.integers(1, "pads")
    if pads is None:
        call.refuse("the padding is missing")
    axes = call.integers(3, "axes") or tuple(range(rank))
    pairs = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pairs[axis % rank] = (int(pads[i]), int(pads[i + len(axes)]))
    if pairs[0] != (0, 0):
        call.refuse("it pads the batch axis", BATCH_REMEDY)
    value = call.input(2)
    fill = float(call.attribute("value", 0.0)) if value is None else float(call.constant(2, "the fill").reshape(-1)[0])
    for axis, (before, after) in enumerate(pairs[1:]):
        if before < 0 or after < 0:  # ONNX crops with negative padding
            kept = range(max(-before, 0), x.shape[axis] - max(-after, 0))
            x = _select(call, x, axis, tuple(kept))
    grown = tuple((max(before, 0), max(after, 0)) for before, after in pairs[1:])
    return x if not any(a or b for a, b in grown) else call.emit(Pad(grown, fill), x)


ROWS = {
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
    "Gather": lower_gather,
    "Concat": lower_concat,
    "Pad": lower_pad,
}
