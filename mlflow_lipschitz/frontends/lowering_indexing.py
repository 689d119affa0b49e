"""Lowering of operators that pick, repeat or replace entries at constant positions.

What an operator does to the numbers 0, 1, 2, … of the entries says where each entry of its result comes from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Concat
from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable
from mlflow_lipschitz.frontends.values import Shape


def pick(call: Call, x: Variable, positions: np.ndarray) -> Variable:
    """The entries of x at flat positions, in the shape of `positions`."""
    flat = call.select(call.reshape(x, (int(np.prod(x.shape, dtype=int)),)), 0, positions.reshape(-1).tolist())
    return call.reshape(flat, positions.shape)


def _numbered(shape: Shape) -> np.ndarray:
    return np.arange(int(np.prod(shape, dtype=int))).reshape(shape)


def _indices(call: Call, position: int, length: int | np.ndarray) -> np.ndarray:
    """Constant indices, counted from the front. Refuses those outside."""
    indices = call.constant(position, "the indices").astype(np.int64)
    if np.any(indices < -length) or np.any(indices >= length):
        call.refuse(f"an index is outside an axis of length {length}")
    return np.asarray(np.where(indices < 0, indices + length, indices))


def lower_gather(call: Call) -> Variable:
    x = call.variable()
    axis = call.axis(call.attribute("axis", 0), len(x.shape))
    indices = _indices(call, 1, x.shape[axis])
    picked = call.select(x, axis, indices.reshape(-1).tolist())
    return call.reshape(picked, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def lower_gather_elements(call: Call) -> Variable:
    x = call.variable()
    axis = call.axis(call.attribute("axis", 0), len(x.shape))
    indices = _indices(call, 1, x.shape[axis])
    if any(n > m for i, (n, m) in enumerate(zip(indices.shape, x.shape, strict=True)) if i != axis):
        call.refuse(f"indices of shape {indices.shape} do not fit a tensor of shape {x.shape}")
    part = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return pick(call, x, np.take_along_axis(_numbered(x.shape)[part], indices, axis))


def lower_gather_nd(call: Call) -> Variable:
    x, shared = call.variable(), int(call.attribute("batch_dims", 0))
    depth = call.constant(1, "the indices").shape[-1]
    indices = _indices(call, 1, np.array(x.shape[shared : shared + depth]))
    numbers = _numbered(x.shape)
    if shared == 0:
        return pick(call, x, numbers[tuple(np.moveaxis(indices, -1, 0))])
    lead = x.shape[:shared]
    if indices.shape[:shared] != lead:
        call.refuse(f"indices of shape {indices.shape} do not fit a tensor of shape {x.shape}")
    parts = [numbers[place][tuple(np.moveaxis(indices[place], -1, 0))] for place in np.ndindex(*lead)]
    return pick(call, x, np.stack(parts).reshape(*lead, *np.shape(parts[0])))


def lower_scatter_elements(call: Call) -> Variable:
    shape = _shape(call.input(0))
    axis = call.axis(call.attribute("axis", 0), len(shape))
    indices = _indices(call, 1, shape[axis])
    places = tuple(indices if i == axis else place for i, place in enumerate(np.indices(indices.shape)))
    return _scattered(call, np.asarray(_numbered(shape)[places]))


def lower_scatter_nd(call: Call) -> Variable:
    shape = _shape(call.input(0))
    depth = call.constant(1, "the indices").shape[-1]
    indices = _indices(call, 1, np.array(shape[:depth]))
    return _scattered(call, np.asarray(_numbered(shape)[tuple(np.moveaxis(indices, -1, 0))]))


def _scattered(call: Call, targets: np.ndarray) -> Variable:
    """Input 0 with the entries `targets` replaced by those of input 2: both in a row, and each entry picked from it."""
    data, updates = call.input(0), call.input(2)
    if call.attribute("reduction", "none") != "none" or np.unique(targets).size < targets.size:
        call.refuse("it puts several values into one entry", "scatter each entry once, without a reduction")
    if data is None or updates is None or _shape(updates) != targets.shape:
        call.refuse(f"updates of shape {_shape(updates)} do not fit indices for {targets.shape}")
    positions = _numbered(_shape(data))
    size = positions.size
    positions.reshape(-1)[targets.reshape(-1)] = size + np.arange(targets.size)
    if isinstance(data, Variable) and isinstance(updates, Variable):
        row = call.emit(Concat(0), call.reshape(data, (size,)), call.reshape(updates, (targets.size,)))
        return pick(call, row, positions)
    replaced = positions >= size
    if isinstance(data, Variable):
        kept = call.scale_shift(data, (~replaced).astype(np.float64), None)
        values = np.zeros(data.shape)
        values.reshape(-1)[targets.reshape(-1)] = np.asarray(updates, dtype=np.float64).reshape(-1)
        return call.scale_shift(kept, None, values)
    spread = pick(call, call.variable(2), np.where(replaced, positions - size, 0))
    return call.scale_shift(spread, replaced.astype(np.float64), np.where(replaced, 0.0, np.asarray(data)))


def _shape(value: Value | None) -> Shape:
    return () if value is None else value.shape


def lower_tile(call: Call) -> Variable:
    x, repeats = call.variable(), call.integers(1, "repeats") or ()
    if len(repeats) != len(x.shape) or min(repeats, default=1) < 1:
        call.refuse(f"repeats {repeats} do not fit a tensor of shape {x.shape}")
    if all(n == 1 for n in repeats):
        return x
    apart = tuple(n for length in x.shape for n in (1, length))
    repeated = tuple(n for times, length in zip(repeats, x.shape, strict=True) for n in (times, length))
    full = tuple(times * length for times, length in zip(repeats, x.shape, strict=True))
    return call.reshape(call.expand(call.reshape(x, apart), repeated), full)


def lower_trilu(call: Call) -> Variable:
    x = call.variable()
    offset = 0 if call.input(1) is None else int(call.constant(1, "the diagonal").reshape(()))
    keep: Callable[..., np.ndarray] = np.triu if call.attribute("upper", 1) else np.tril
    return call.scale_shift(x, keep(np.ones(x.shape[-2:]), offset), None)


ROWS = {
    "Gather": lower_gather,
    "GatherElements": lower_gather_elements,
    "GatherND": lower_gather_nd,
    "Scatter": lower_scatter_elements,
    "ScatterElements": lower_scatter_elements,
    "ScatterND": lower_scatter_nd,
    "Tile": lower_tile,
    "Trilu": lower_trilu,
}
