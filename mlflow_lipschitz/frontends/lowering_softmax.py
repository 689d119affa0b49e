"""Softmax and its logarithm: log softmax(x) = c − log Σ exp(c), where c is x minus the mean of its row.

Subtracting what the scores of a row have in common leaves differences, which are what a softmax depends on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node
from mlflow_lipschitz.engine.ir.ops import Add, Expand, LogSoftmax, Reshape, ScaleShift, Select, Transpose
from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable
from mlflow_lipschitz.frontends.lowering_normalization import centered

# Soft masks (−100, −10000) put scores this far below others. They must not enter the mean: the others would lie so far
# above it that their exponentials overflow.
SUPPRESSED = 30.0
_COPYING = (Reshape, Transpose, Expand, Select)


def softmax(call: Call, scores: Value, axis: int) -> Value:
    """Softmax along `axis`. Scores may be masked, or constant. Refuses a row in which every score is masked."""
    if not isinstance(scores, Variable):
        powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
        return np.asarray(powers / powers.sum(axis=axis, keepdims=True))
    rows, back = _axis_last(call, scores, axis)
    return call.transpose(_softmax(call, rows), back)


def log_softmax(call: Call, scores: Variable, axis: int) -> Variable:
    """Logarithm of the softmax along `axis`. Refuses masked scores, whose logarithm is minus infinity."""
    rows, back = _axis_last(call, scores, axis)
    return call.transpose(_log_softmax(call, rows), back)


def _axis_last(call: Call, x: Variable, axis: int) -> tuple[Variable, Sequence[int]]:
    """x with `axis` moved to the end, and the permutation that moves it back."""
    order = [a for a in range(len(x.shape)) if a != axis] + [axis]
    return call.transpose(x, order), tuple(int(i) for i in np.argsort(order))


def _softmax(call: Call, x: Variable) -> Variable:
    if x.shape[-1] == 1 and x.masked is None:
        return call.scale_shift(x, np.array(0.0), np.array(1.0))
    if x.shape[-1] == 2 and x.masked is None:
        return call.curve("sigmoid", call.subtract(x, call.select(x, len(x.shape) - 1, (1, 0))))
    kept = np.ones(x.shape) if x.masked is None else 1.0 - x.masked
    if not kept.any(axis=-1).all():
        call.refuse("a row of its scores is masked altogether", "let every position attend to at least one")
    return _where(call, kept, call.curve("exp", _logarithm(call, Variable(x.index, x.shape), kept)))


def _log_softmax(call: Call, x: Variable) -> Variable:
    if x.masked is not None:
        call.refuse("the logarithm of a masked score is minus infinity", "apply the logarithm to unmasked scores")
    if x.shape[-1] == 1:
        return call.scale_shift(x, np.array(0.0), None)
    if x.shape[-1] == 2:
        excess = call.subtract(call.select(x, len(x.shape) - 1, (1, 0)), x)
        return call.scale_shift(call.curve("softplus", excess), np.array(-1.0), None)
    return _logarithm(call, x, np.ones(x.shape))


def _logarithm(call: Call, x: Variable, kept: np.ndarray) -> Variable:
    """c − log Σ exp(c) over the kept entries of each row; elsewhere some number."""
    difference = _where(call, kept, _differences(call, x, kept))
    powers = _where(call, kept, call.curve("exp", difference))
    composed = call.subtract(difference, call.curve("log", call.sum(powers, (len(x.shape) - 1,))))
    return call.emit(LogSoftmax(None if kept.all() else kept), difference, composed)


def _where(call: Call, kept: np.ndarray, x: Variable) -> Variable:
    """x where `kept` is 1, and exactly 0 where it is 0."""
    return x if kept.all() else call.scale_shift(x, kept, None)


def _differences(call: Call, x: Variable, kept: np.ndarray) -> Variable:
    """x minus the mean of its row, taken over the entries that are neither masked nor suppressed."""
    last = len(x.shape) - 1
    constant = np.where(kept > 0, _constant_part(call.builder, x.index), -math.inf)
    counted = constant >= constant.max(axis=-1, keepdims=True) - SUPPRESSED
    if counted.all():
        return centered(call, x, (last,))
    weights = counted / counted.sum(axis=-1, keepdims=True)
    return call.subtract(x, call.sum(call.scale_shift(x, weights, None), (last,)))


def _constant_part(builder: GraphBuilder, index: int) -> np.ndarray:
    """The constant that the last operators before a node add to each of its entries, as far as it can be told apart."""
    parts: dict[int, np.ndarray] = {}
    pending = [index]
    while pending:  # chains are long, and a sum may read a sum twice
        number = pending[-1]
        node = builder.node(number)
        adds = isinstance(node.op, ScaleShift) and node.op.scale is None
        sources = node.inputs if adds or isinstance(node.op, (Add, *_COPYING)) else ()
        missing = [source for source in sources if source not in parts]
        pending.extend(missing)
        if not missing:
            parts[pending.pop()] = _added(node, [parts[source] for source in sources])
    return parts[index]


def _added(node: Node, parts: list[np.ndarray]) -> np.ndarray:
    op = node.op
    if not parts:
        return np.zeros(node.shape)
    if isinstance(op, ScaleShift):
        return np.asarray(parts[0] + (0.0 if op.shift is None else op.shift))
    if isinstance(op, Add):
        return np.asarray(sum(parts))
    (part,) = parts
    if isinstance(op, Reshape):
        return part.reshape(op.shape)
    if isinstance(op, Transpose):
        return part.transpose(op.axes)
    if isinstance(op, Select):
        return np.take(part, op.indices, axis=op.axis)
    return np.broadcast_to(part, node.shape)


def _flattened(call: Call, x: Variable) -> tuple[Variable, int]:
    """The scores and the axis of a Softmax: before opset 13 all axes from `axis` on, by default 1, are one."""
    axis = call.axis(call.attribute("axis", 1 if call.opset < 13 else -1), len(x.shape))
    if call.opset >= 13:
        return x, axis
    return call.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))), 1


def lower_softmax(call: Call) -> Variable:
    x = call.variable()
    y = softmax(call, *_flattened(call, x))
    assert isinstance(y, Variable)
    return call.reshape(y, x.shape)


def lower_log_softmax(call: Call) -> Variable:
    x = call.variable()
    return call.reshape(log_softmax(call, *_flattened(call, x)), x.shape)


ROWS = {"Softmax": lower_softmax, "LogSoftmax": lower_log_softmax}
