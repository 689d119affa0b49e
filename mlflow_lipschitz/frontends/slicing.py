"""Slice and Split arguments of every opset version, resolved against a known shape."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.frontends.lowering_context import Call, Shape

# Exporters write these for "to the end"; onnxruntime takes them so in both directions, also where they are no more than
# a large number by the standard.
TO_THE_END = (2**31 - 1, 2**63 - 1)


def resolved_slice(call: Call, shape: Shape) -> list[slice]:
    """One Python slice per axis of `shape` for an ONNX `Slice` node."""
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None:
        call.refuse("it has no starts or no ends")
    axes = call.integers(3, "axes") or tuple(range(len(starts)))
    steps = call.integers(4, "steps") or (1,) * len(starts)
    if any(not -len(shape) <= axis < len(shape) for axis in axes) or len({axis % len(shape) for axis in axes}) < len(
        axes
    ):
        call.refuse(f"its axes {axes} do not name different axes of a tensor of {len(shape)} axes")
    slices = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        length = shape[axis % len(shape)]
        # ONNX counts a negative end from the back once and then clamps; Python needs None to run past the first entry.
        first = start + length if start < 0 else start
        last = end + length if end < 0 else end
        if step > 0:
            slices[axis % len(shape)] = slice(max(first, 0), max(last, 0), step)
        else:
            slices[axis % len(shape)] = slice(max(first, 0), None if last < 0 or end in TO_THE_END else last, step)
    return slices


def sequence_sizes(call: Call, length: int) -> list[int]:
    """Lengths of the pieces of an ONNX `SplitToSequence` node along an axis of `length` entries."""
    split = np.ones((), dtype=int) if call.input(1) is None else call.constant(1, "the split")
    if split.ndim:
        return [int(n) for n in split]
    step = max(int(split), 1)
    return [min(step, length - i) for i in range(0, length, step)]


def split_sizes(call: Call, length: int) -> tuple[int, ...]:
    """Lengths of the pieces of an ONNX `Split` node along an axis of `length` entries."""
    given = call.integers(1, "split")
    if given is not None:
        if min(given, default=0) < 0 or sum(given) != length:
            call.refuse(f"pieces of {given} entries do not make up an axis of {length}")
        return given
    pieces = len(call.node.output)
    size = -(-length // pieces)
    return tuple(min(size, length - i * size) for i in range(pieces))
