"""What a random network is made of: every operator and every curve that a model may hold, put behind any value."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.rules.elementwise import supported_curve
from tests.engine.test_curves import PARAMETERS, ROWS
from tests.soundness.drafts import Draft

Block = Callable[[Draft, int], int]

MODEL_CURVES = sorted({name for name, parameters in ROWS if supported_curve(ops.Elementwise(name, parameters))})


def curve(name: str) -> Block:
    """The curve, of an argument kept where it has values in nine networks of ten."""

    def block(draft: Draft, x: int) -> int:
        op = ops.Elementwise(name, _parameters(draft, name))
        guarded = _is_partial(op) and draft.chance(0.9)
        return draft.add(op, _positive(draft, x) if guarded else draft.with_kinks_at_home(x))

    return block


def _parameters(draft: Draft, name: str) -> tuple[float, ...]:
    if name == "power":
        rows = PARAMETERS["power"]
        return rows[draft.one_of(0, len(rows) - 1)]
    choices = [row for row in PARAMETERS.get(name, ((),)) if supported_curve(ops.Elementwise(name, row))]
    return choices[draft.one_of(0, len(choices) - 1)]


def _is_partial(op: ops.Elementwise) -> bool:
    if op.curve == "power":
        return op.parameters[1] < 0 or not float(op.parameters[1]).is_integer()
    return op.curve in ("log", "sqrt", "reciprocal")


def _positive(draft: Draft, x: int) -> int:
    inner = ("square", "softplus", "abs", "exp")[draft.one_of(0, 3)]
    positive = draft.add(ops.Elementwise(inner), x)
    if inner in ("softplus", "exp") and draft.chance(0.5):
        return positive
    shift = float(draft.rng.choice([0.25, 1.0, 2.0**-10]))
    return draft.add(ops.ScaleShift(shift=ops.frozen_array(shift)), positive)


def _linear(draft: Draft, x: int) -> int:
    return draft.linear(x if draft.shape(x) else draft.fitted(x, (1,)), draft.one_of(2, 4))


def _convolution(draft: Draft, axes: int) -> tuple[ops.Conv, tuple[int, ...]]:
    """A convolution and a shape it takes."""
    groups = draft.one_of(1, 2)
    channels = groups * (draft.one_of(1, 2) if axes == 1 else 1)
    while True:
        shape = (channels, *(draft.one_of(1, (4, 3, 2)[axes - 1]) for _ in range(axes)))
        kernel = tuple(draft.one_of(1, 3 if axes == 1 else 2) for _ in range(axes))
        weight = draft.constant(groups * draft.one_of(1, 2), channels // groups, *kernel)
        bias = draft.constant(len(weight)) if draft.chance(0.6) else None
        padding = tuple((draft.one_of(0, 1), draft.one_of(0, 1)) for _ in range(axes))
        stride, dilation = (tuple(draft.one_of(1, 2) for _ in range(axes)) for _ in range(2))
        op = ops.Conv(weight, bias, stride, padding, dilation, groups)
        try:
            out = op.output_shape(shape)
        except ValueError:  # the kernel does not fit
            continue
        if math.prod(out) <= 16:
            return op, shape


def _conv(axes: int) -> Block:
    def block(draft: Draft, x: int) -> int:
        op, shape = _convolution(draft, axes)
        lead = (draft.one_of(1, 2),) if draft.chance(0.3) and math.prod(shape) <= 4 else ()
        return draft.small(draft.add(op, draft.fitted(x, (*lead, *shape))))

    return block


def _transposed_conv(draft: Draft, x: int) -> int:
    inner, shape = _convolution(draft, draft.one_of(1, 2))
    return draft.small(draft.add(ops.Adjoint(inner, shape), draft.fitted(x, inner.output_shape(shape))))


def _scale_shift(draft: Draft, x: int) -> int:
    shape = draft.shape(x)
    held = tuple(n if draft.chance(0.6) else 1 for n in shape[draft.one_of(0, len(shape)) :])
    scale = draft.constant(*held) if draft.chance(0.8) else None
    return draft.add(ops.ScaleShift(scale, draft.constant(*held) if draft.chance(0.8) else None), x)


def _residual(draft: Draft, x: int) -> int:
    x = draft.small(x)
    hidden = draft.add(ops.Elementwise("relu"), draft.with_kinks_at_home(draft.linear(x, 3)))
    return draft.add(ops.Add(), x, draft.linear(hidden, draft.shape(x)[-1]))


def _other(draft: Draft, x: int) -> int:
    """A second value of x's shape, often on both sides of the first at home."""
    return draft.linear(x, draft.shape(x)[-1])


def _multiply(draft: Draft, x: int) -> int:
    followed = ((0, 1), (1,))[draft.one_of(0, 1)]
    return draft.add(ops.Multiply(linear_in=followed), x, _other(draft, x))


def _matmul(draft: Draft, x: int) -> int:
    n, k, m = (draft.one_of(1, 2) for _ in range(3))
    return draft.add(ops.MatMul(), draft.fitted(x, (n, k)), draft.fitted(_other(draft, x), (k, m)))


def _division(draft: Draft, x: int) -> int:
    inverse = draft.add(ops.Elementwise("reciprocal"), _positive(draft, x))
    return draft.add(ops.Multiply(), _other(draft, x), inverse)


def _reshape(draft: Draft, x: int) -> int:
    size = math.prod(draft.shape(x))
    return draft.add(ops.Reshape((size, 1) if draft.chance(0.5) else (1, size)), x)


def _transpose(draft: Draft, x: int) -> int:
    matrix = draft.fitted(x, (2, draft.one_of(2, 3)))
    return draft.add(ops.Transpose((1, 0)), matrix)


def _expand(draft: Draft, x: int) -> int:
    return draft.small(draft.add(ops.Expand((2, *draft.shape(x))), x))


def _sum(draft: Draft, x: int) -> int:
    matrix = draft.fitted(x, (2, draft.one_of(1, 3)))
    return draft.add(ops.Sum(((0,), (1,), (0, 1))[draft.one_of(0, 2)]), matrix)


def _select(draft: Draft, x: int) -> int:
    axis = draft.one_of(0, len(draft.shape(x)) - 1)
    length = draft.shape(x)[axis]
    return draft.small(draft.add(ops.Select(axis, tuple(draft.one_of(0, length - 1) for _ in range(3))), x))


def _pad(draft: Draft, x: int) -> int:
    row = draft.fitted(x, (draft.one_of(1, 4),))
    value = float(draft.rng.choice([0.0, -0.25, 3.0]))
    return draft.add(ops.Pad(((draft.one_of(0, 2), draft.one_of(0, 1)),), value=value), row)


def _concat(draft: Draft, x: int) -> int:
    x = draft.fitted(x, (draft.one_of(1, 3),))
    return draft.add(ops.Concat(0), draft.add(ops.Elementwise("relu"), x), x, _linear(draft, x))


def _extreme(make: Callable[..., int]) -> Block:
    def block(draft: Draft, x: int) -> int:
        # x and what x is plus something that is zero at home: a tie there.
        other = _other(draft, x) if draft.chance(0.5) else draft.add(ops.Add(), x, _flat_at_home(draft, x))
        return make(draft.builder, *((x, other) if draft.chance(0.5) else (other, x)))

    return block


def _flat_at_home(draft: Draft, x: int) -> int:
    return draft.with_kinks_at_home(_other(draft, x))


def _extreme_over(make: Callable[..., int]) -> Block:
    def block(draft: Draft, x: int) -> int:
        windows = draft.fitted(draft.with_kinks_at_home(x), (draft.one_of(2, 5), draft.one_of(1, 2)))
        return make(draft.builder, windows, 0)

    return block


def _log_softmax(draft: Draft, x: int) -> int:
    return building.log_softmax(draft.builder, draft.fitted(x, (2, 2) if draft.chance(0.3) else (draft.one_of(2, 4),)))


def _softmax(draft: Draft, x: int) -> int:
    return draft.add(ops.Elementwise("exp"), _log_softmax(draft, x))


def _causal_softmax(draft: Draft, x: int) -> int:
    kept = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    scores = building.log_softmax(draft.builder, draft.fitted(x, (2, 3)), kept=kept)
    power = draft.add(ops.Elementwise("exp"), scores)
    return draft.add(ops.ScaleShift(scale=ops.frozen_array(kept)), power)


def _normalized(draft: Draft, x: int) -> int:
    x = draft.fitted(x, (2, draft.one_of(1, 3)))
    axes = ((1,), (0, 1))[draft.one_of(0, 1)]
    epsilon = float(draft.rng.choice([1e-5, 2.0**-10, 1.0, 0.0], p=[0.4, 0.25, 0.25, 0.1]))
    factor = 1.0 if draft.chance(0.4) else 1 / draft.shape(x)[-1]
    return building.normalized(draft.builder, x, axes, factor=factor, epsilon=epsilon)[0]


def _layer_norm(draft: Draft, x: int) -> int:
    size = draft.one_of(2, 3)
    centered = draft.add(ops.Linear(ops.frozen_array(np.eye(size) - 1 / size)), draft.fitted(x, (2, size)))
    return building.normalized(draft.builder, centered, (1,), factor=1 / size, epsilon=1e-5)[0]


def rounding(draft: Draft, x: int) -> int:
    """Has values and no derivative."""
    return draft.add(ops.Rounding(ops.frozen_array(draft.rng.choice([0.25, 1.0, 0.1]))), x)


OPERATORS: dict[str, Block] = {
    "linear": _linear,
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "conv3d": _conv(3),
    "transposed conv": _transposed_conv,
    "scale_shift": _scale_shift,
    "residual": _residual,
    "multiply": _multiply,
    "matmul": _matmul,
    "division": _division,
    "reshape": _reshape,
    "transpose": _transpose,
    "expand": _expand,
    "sum": _sum,
    "select": _select,
    "pad": _pad,
    "concat": _concat,
    "maximum": _extreme(building.maximum),
    "minimum": _extreme(building.minimum),
    "maximum over": _extreme_over(building.maximum_over),
    "minimum over": _extreme_over(building.minimum_over),
    "log softmax": _log_softmax,
    "softmax": _softmax,
    "softmax, entries left out": _causal_softmax,
    "normalized": _normalized,
    "layer norm": _layer_norm,
}
BLOCKS: dict[str, Block] = {**OPERATORS, **{f"curve {name}": curve(name) for name in MODEL_CURVES}}
