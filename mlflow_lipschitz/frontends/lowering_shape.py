"""Lowering of operators that move entries and do not compute with them. Axis 0, the batch, always stays where it is."""

from __future__ import annotations

import math

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Concat, Pad, ScaleShift, Select, Transpose
from mlflow_lipschitz.frontends.batch_length import BatchLength
from mlflow_lipschitz.frontends.lowering_context import BATCH_REMEDY, Call, Pieces, Value, Variable
from mlflow_lipschitz.frontends.slicing import resolved_slice, split_sizes

LONGEST_BATCH = 2**31 - 1  # INT32_MAX, which some exporters write for "to the end"


def lower_reshape(call: Call) -> Variable:
    x = call.variable()
    wanted = call.lengths(1)
    copies = not call.attribute("allowzero", 0)
    sample = []
    for i, n in enumerate(wanted[1:]):
        if isinstance(n, BatchLength) or (n == 0 and (not copies or i >= len(x.shape))):
            call.refuse(f"samples of shape {x.shape} cannot become {wanted[1:]}", BATCH_REMEDY)
        sample.append(x.shape[i] if n == 0 else n)
    if [n for n in wanted if not isinstance(n, BatchLength)].count(-1) > 1:
        call.refuse(f"it leaves two axes of {wanted} to be inferred")
    known, size = math.prod(n for n in sample if n != -1), math.prod(x.shape)
    if -1 in sample and known:
        sample[sample.index(-1)] = size // known
    # Entries stay in order, so the rows stay apart if and only if axis 0 stays; -1 is then inferred to be its length.
    first = wanted[0] if wanted else 0
    kept = call.is_batch(first) or (isinstance(first, int) and (first == -1 or (first == 0 and copies)))
    if not wanted or not kept or math.prod(sample) != size:
        call.refuse(f"it does not keep axis 0 (samples of shape {x.shape} become a tensor {wanted})", BATCH_REMEDY)
    return call.reshape(x, tuple(sample))


def lower_flatten(call: Call) -> Variable:
    x = call.variable()
    axis = call.attribute("axis", 1)
    axis = axis + len(x.shape) + 1 if axis < 0 else axis
    first = x.shape[: max(axis - 1, 0)]
    if math.prod(first) != 1 or (axis == 0 and not call.is_batch(1)):
        call.refuse(f"it does not keep axis 0 (samples of shape {x.shape}, axis {axis})", BATCH_REMEDY)
    return call.reshape(x, (math.prod(x.shape),))


def lower_squeeze(call: Call) -> Variable:
    x = call.variable()
    rank = len(x.shape) + 1
    axes = call.integers(1, "axes")
    if axes is None:
        if call.is_batch(1):
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
    if len(added) < len(axes):
        call.refuse(f"its axes {axes} name one axis twice")
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
    wanted = call.lengths(1)
    full = len(wanted) == len(x.shape) + 1
    sample = wanted[1:] if full else wanted
    lengths = tuple(n for n in sample if isinstance(n, int))
    if len(wanted) > len(x.shape) + 1 or len(lengths) < len(sample):
        call.refuse(f"it adds axes before the batch axis (shape {wanted})", BATCH_REMEDY)
    if full and not (call.is_batch(wanted[0]) or (isinstance(wanted[0], int) and wanted[0] == 1)):
        call.refuse(f"it repeats the batch (shape {wanted})", BATCH_REMEDY)
    return call.expand(x, call.broadcast(x.shape, lengths))


def lower_slice(call: Call) -> Variable:
    x = call.variable()
    # No batch is this long: a slice that keeps every row of it keeps every row of any batch.
    full = (call.batch if isinstance(call.batch, int) else LONGEST_BATCH, *x.shape)
    for axis, part in enumerate(resolved_slice(call, full)):
        positions = range(*part.indices(full[axis]))
        if positions != range(full[axis]):
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
    given = [call.input(position) for position in range(len(call.inputs))]
    values: list[Value] = [value for value in given if value is not None]
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
    if any(not -rank <= axis < rank for axis in axes) or len(pads) != 2 * len(axes):
        call.refuse(f"padding {pads} of the axes {axes} does not fit a tensor of {rank} axes")
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
