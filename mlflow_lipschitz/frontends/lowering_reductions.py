"""Lowering of reductions that are sums: of entries, absolute values, squares or exponentials, and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Linear
from mlflow_lipschitz.frontends.lowering_context import Call, Variable


def reduced_axes(call: Call, rank: int) -> tuple[int, ...] | None:
    """The axes that a Reduce operator of any opset works over, all where it names none; None where it is to do nothing."""
    axes = call.integers(1, "axes")
    if axes:
        return call.axes(axes, rank)
    return None if call.attribute("noop_with_empty_axes", 0) else tuple(range(rank))


def _reduction(before: str, after: str = "") -> Callable[[Call], Variable]:
    """after(sum of before(x)) over the axes; "" stands for no curve."""

    def lower(call: Call) -> Variable:
        x = call.variable()
        axes = reduced_axes(call, len(x.shape))
        if axes is None:
            if before or after:
                call.refuse("it reduces over no axis, and readers of the standard differ in what it then computes")
            return x
        y = call.sum(call.curve(before, x) if before else x, axes, keepdims=bool(call.attribute("keepdims", 1)))
        return call.curve(after, y) if after else y

    return lower


def lower_reduce_mean(call: Call) -> Variable:
    x = call.variable()
    axes = reduced_axes(call, len(x.shape))
    if axes is None:
        return x
    return mean(call, x, axes, keepdims=bool(call.attribute("keepdims", 1)))


def mean(call: Call, x: Variable, axes: tuple[int, ...], *, keepdims: bool = True) -> Variable:
    """The mean over `axes`."""
    count = math.prod(x.shape[a] for a in axes)
    y = call.sum(x, axes, keepdims=keepdims)
    return y if count == 1 else call.scale_shift(y, np.array(1.0 / count), None)


def lower_reduce_log_sum_exp(call: Call) -> Variable:
    """m + log Σ exp(x − m) with m the mean: no overflow unless entries are hundreds apart."""
    x = call.variable()
    axes = reduced_axes(call, len(x.shape))
    if axes is None:
        call.refuse("it reduces over no axis, and readers of the standard differ in what it then computes")
    keepdims = bool(call.attribute("keepdims", 1))
    center = mean(call, x, axes)
    total = call.sum(call.curve("exp", call.subtract(x, center)), axes)
    y = call.add(center, call.curve("log", total))
    return y if keepdims else call.reshape(y, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def lower_cum_sum(call: Call) -> Variable:
    """Running sums along a constant axis: a triangular matrix of ones."""
    x = call.variable()
    axis = call.axis(int(call.constant(1, "the axis").reshape(-1)[0]), len(x.shape))
    ones = np.tril(np.ones((x.shape[axis],) * 2), -1 if call.attribute("exclusive", 0) else 0)
    order = [*(i for i in range(len(x.shape)) if i != axis), axis]
    y = call.emit(Linear(ones.T if call.attribute("reverse", 0) else ones), call.transpose(x, order))
    return call.transpose(y, np.argsort(order).tolist())


ROWS = {
    "ReduceSum": _reduction(""),
    "ReduceMean": lower_reduce_mean,
    "ReduceSumSquare": _reduction("square"),
    "ReduceL1": _reduction("abs"),
    "ReduceL2": _reduction("square", "sqrt"),
    "ReduceLogSum": _reduction("", "log"),
    "ReduceLogSumExp": lower_reduce_log_sum_exp,
    "CumSum": lower_cum_sum,
}
