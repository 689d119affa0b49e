"""Lowering of operators that select the largest or smallest of several values: pools, reductions, entry by entry.

A pool takes its windows axis by axis: the largest entry of a box is the largest of the largest of its rows. A window that
reaches into the padding is one of fewer entries: neither does minus infinity enter the arithmetic, nor is an entry compared with
itself, for a tie leaves the derivative open. So would dead ReLUs, and a curve that never falls comes after the maximum instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Concat, Elementwise
from mlflow_lipschitz.frontends.lowering_context import Call, Variable
from mlflow_lipschitz.frontends.windows import Track, pool_tracks, spatial_shape

# No float32 lies beyond: where a model asks for the larger of a value and this, it means "no lower limit".
LOWEST = float(np.finfo(np.float32).min)

# Curves of one parameter or none that never fall where that is not negative: max(f(a), f(b)) = f(max(a, b)).
RISING = frozenset({"relu", "leaky_relu", "tanh", "sigmoid", "exp", "erf", "atan", "softplus", "softsign", "celu"})


def before_curve(call: Call, largest: Callable[[Variable], Variable]) -> Variable:
    """`largest` of the node's input; of what the input is a rising curve of, where nothing else reads that."""
    x = call.variable()
    producer = call.builder.node(x.index)
    curve = producer.op
    if not isinstance(curve, Elementwise) or x.masked is not None or not call.read_only_here() or call.as_served:
        return largest(x)
    if not (curve.curve == "clip" or (curve.curve in RISING and min(curve.parameters, default=0.0) >= 0)):
        return largest(x)
    (source,) = producer.inputs
    return call.joined(call.emit(curve, largest(Variable(source, call.builder.shape(source)))))


def negative(call: Call, x: Variable) -> Variable:
    return call.scale_shift(x, np.array(-1.0), None)


def lower_max_pool(call: Call) -> Variable:
    if any(name and call.consumers.get(name) for name in call.node.output[1:]):
        call.refuse("the model reads the positions of the maxima, which have no derivative", "unpool with a Resize")
    return before_curve(call, lambda x: _pooled(call, x))


def _pooled(call: Call, x: Variable) -> Variable:
    for axis, track in enumerate(pool_tracks(call, spatial_shape(call, x.shape)), start=2):
        x = _largest_in_windows(call, x, axis, track)
    return x


def _largest_in_windows(call: Call, x: Variable, axis: int, track: Track) -> Variable:
    """The largest entries along one axis: windows that hold as many entries of the input are taken together."""
    sizes = track.inside.sum(axis=1)
    runs = np.split(np.arange(track.count), np.flatnonzero(np.diff(sizes)) + 1)
    parts = [
        _largest_of_windows(call, x, axis, track.taps[run][track.inside[run]].reshape(len(run), -1)) for run in runs
    ]
    return parts[0] if len(parts) == 1 else call.emit(Concat(axis), *parts)


def _largest_of_windows(call: Call, x: Variable, axis: int, taps: np.ndarray) -> Variable:
    """The largest of the entries at `taps`, (windows, entries of each)."""
    count, size = taps.shape
    gathered = call.select(x, axis, [int(i) for i in taps.T.reshape(-1)])
    if size == 1:
        return gathered
    stacked = call.reshape(gathered, (*x.shape[:axis], size, count, *x.shape[axis + 1 :]))
    return call.reshape(call.maximum_over(stacked, axis), (*x.shape[:axis], count, *x.shape[axis + 1 :]))


def lower_global_max_pool(call: Call) -> Variable:
    x = call.variable()
    if len(x.shape) < 3:
        call.refuse(f"a tensor of shape {x.shape} has no spatial axes")
    axes = tuple(range(2, len(x.shape)))
    return before_curve(call, lambda source: _largest_over(call, source, axes, keepdims=True))


def lower_reduce_max(call: Call) -> Variable:
    return before_curve(call, lambda x: _reduced(call, x))


def lower_reduce_min(call: Call) -> Variable:
    return negative(call, _reduced(call, negative(call, call.variable())))


def _reduced(call: Call, x: Variable) -> Variable:
    axes = call.integers(1, "axes")
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return x
    reduced = call.axes(axes, len(x.shape)) if axes else tuple(range(len(x.shape)))
    return _largest_over(call, x, reduced, keepdims=bool(call.attribute("keepdims", 1)))


def _largest_over(call: Call, x: Variable, axes: tuple[int, ...], *, keepdims: bool) -> Variable:
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    size = math.prod(x.shape[axis] for axis in axes)
    lined = call.reshape(call.transpose(x, (*kept, *axes)), (*(x.shape[axis] for axis in kept), size))
    largest = call.maximum_over(lined, len(kept))
    return call.reshape(largest, tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a in kept))


def lower_max(call: Call) -> Variable:
    given = [call.input(position) for position in range(len(call.inputs))]
    constants = [value for value in given if isinstance(value, np.ndarray)]
    largest = _largest_of(call, [value for value in given if isinstance(value, Variable)])
    return _at_least(call, largest, constants)


def lower_min(call: Call) -> Variable:
    given = [call.input(position) for position in range(len(call.inputs))]
    constants = [np.asarray(-value) for value in given if isinstance(value, np.ndarray)]
    largest = _largest_of(call, [negative(call, value) for value in given if isinstance(value, Variable)])
    return negative(call, _at_least(call, largest, constants))


def _largest_of(call: Call, values: list[Variable]) -> Variable:
    """A tournament of any number of variables, each of which plays once."""
    # A masked value has the node of the value without its mask; Call.maximum refuses it.
    left = list({(value.index, value.masked is None): value for value in values}.values())
    while len(left) > 1:
        left = [call.maximum(left[i], left[i + 1]) if i + 1 < len(left) else left[i] for i in range(0, len(left), 2)]
    return left[0]


def _at_least(call: Call, x: Variable, floors: list[np.ndarray]) -> Variable:
    """max(x, c) = c + relu(x − c) for the largest c of several constants; x itself where c is no limit."""
    if not floors:
        return x
    shape = call.broadcast(x.shape, *(np.shape(floor) for floor in floors))
    floor = np.maximum.reduce([np.broadcast_to(np.asarray(c, dtype=np.float64), shape) for c in floors])
    if np.all(floor <= LOWEST):
        return call.expand(x, shape)
    if not np.all(np.isfinite(floor)) or np.any(floor <= LOWEST):
        call.refuse("some of its constants are infinite and some are not", "limit all entries, or none")
    x = call.expand(x, shape)
    if not np.any(floor):
        return call.curve("relu", x)
    shift = np.asarray(floor.flat[0]) if np.all(floor == floor.flat[0]) else floor
    excess = call.curve("relu", call.scale_shift(x, None, np.asarray(-shift)))
    return call.scale_shift(excess, None, shift)


ROWS = {
    "MaxPool": lower_max_pool,
    "GlobalMaxPool": lower_global_max_pool,
    "ReduceMax": lower_reduce_max,
    "ReduceMin": lower_reduce_min,
    "Max": lower_max,
    "Min": lower_min,
}
