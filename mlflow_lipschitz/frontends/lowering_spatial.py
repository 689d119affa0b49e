"""Lowering of convolutions, transposed convolutions and sums over windows in one to three spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Adjoint, Conv, ScaleShift
from mlflow_lipschitz.frontends.lowering_context import Call, Shape, Variable
from mlflow_lipschitz.frontends.windows import Track, halves, pool_tracks, spatial_shape, tracks


def lower_conv(call: Call) -> Variable:
    bias = None if call.input(2) is None else call.constant(2, "the bias")
    return convolution(call, call.variable(), call.constant(1, "the weight"), bias)


def convolution(call: Call, x: Variable, weight: np.ndarray, bias: np.ndarray | None) -> Variable:
    """x convolved with a constant weight, by the node's window attributes and `group`."""
    along = tracks(call, spatial_shape(call, x.shape), weight.shape[2:])
    return call.emit(_conv(weight, bias, along, int(call.attribute("group", 1))), x)


def lower_conv_transpose(call: Call) -> Variable:
    """The transpose of the convolution that leads from the output to the input, with the same weight."""
    x, weight = call.variable(), call.constant(1, "the weight")
    along = _transposed_tracks(call, spatial_shape(call, x.shape), weight.shape[2:])
    groups = int(call.attribute("group", 1))
    shape = (x.shape[0], weight.shape[1] * groups, *(track.length for track in along))
    y = call.emit(Adjoint(_conv(weight, None, along, groups), shape), x)
    if call.input(2) is None:
        return y
    bias = call.constant(2, "the bias")
    return call.emit(ScaleShift(None, bias.reshape(-1, *(1,) * len(along))), y)


def _conv(weight: np.ndarray, bias: np.ndarray | None, along: Sequence[Track], groups: int) -> Conv:
    stride = tuple(track.stride for track in along)
    padding = tuple(track.needed_padding for track in along)
    return Conv(weight, bias, stride, padding, tuple(track.dilation for track in along), groups)


def _transposed_tracks(call: Call, spatial: Shape, kernel: Shape) -> tuple[Track, ...]:
    """Windows over the output, one for every entry of the input."""
    axes = len(spatial)
    if len(kernel) != axes or tuple(call.attribute("kernel_shape", kernel)) != tuple(kernel):
        call.refuse(f"a kernel of shape {tuple(kernel)} does not fit {axes} spatial axes")
    stride, dilation = (tuple(call.attribute(name, (1,) * axes)) for name in ("strides", "dilations"))
    extra = tuple(call.attribute("output_padding", (0,) * axes))
    if min(*kernel, *stride, *dilation) < 1 or not all(0 <= e < s for e, s in zip(extra, stride, strict=True)):
        call.refuse(
            f"its strides {stride}, dilations {dilation} and output_padding {extra} do not fit together",
            "onnxruntime too wants output_padding smaller than the stride",
        )
    reach = [
        (n - 1) * s + e + d * (k - 1) + 1
        for n, s, e, d, k in zip(spatial, stride, extra, dilation, kernel, strict=True)
    ]
    padding = _transposed_padding(call, reach, [n * s for n, s in zip(spatial, stride, strict=True)])
    lengths = [full - before - after for full, (before, after) in zip(reach, padding, strict=True)]
    if min(lengths) < 1:
        call.refuse(f"its padding {padding} leaves nothing of {tuple(reach)} entries")
    columns = zip(lengths, kernel, stride, dilation, padding, spatial, strict=True)
    return tuple(Track(*column) for column in columns)


def _transposed_padding(call: Call, reach: Sequence[int], same: Sequence[int]) -> list[tuple[int, int]]:
    """What is cut off the `reach` of the kernels on each side; `same` are the lengths that auto_pad SAME asks for."""
    mode, wanted = call.attribute("auto_pad", "NOTSET"), call.attribute("output_shape")
    if wanted is not None:
        totals = [full - int(length) for full, length in zip(reach, wanted[-len(reach) :], strict=True)]
        if min(totals) < 0:
            call.refuse(f"its output_shape {tuple(wanted)} is longer than its kernels reach ({tuple(reach)})")
        return [halves(total, mode) for total in totals]
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return [halves(max(full - length, 0), mode) for full, length in zip(reach, same, strict=True)]
    pads = call.attribute("pads", (0,) * (2 * len(reach))) if mode == "NOTSET" else (0,) * (2 * len(reach))
    if min(pads) < 0:
        call.refuse(f"negative padding {tuple(pads)}", "pad with a Pad behind it")
    return [(int(pads[i]), int(pads[i + len(reach)])) for i in range(len(reach))]


def lower_average_pool(call: Call) -> Variable:
    return average_pool(call, call.variable())


def average_pool(call: Call, x: Variable) -> Variable:
    """Every channel by itself convolved with ones, divided by the number of entries each window counts."""
    spatial = spatial_shape(call, x.shape)
    along = pool_tracks(call, spatial)
    weight, divisor = np.ones((1, 1, *(track.kernel for track in along))), _divisor(call, along)
    uniform = bool(np.all(divisor == divisor.flat[0]))
    if uniform and not call.as_served:
        return call.joined(_channel_sums(call, x, weight / divisor.flat[0], along))
    return call.emit(ScaleShift(np.asarray(1.0 / divisor)), _channel_sums(call, x, weight, along))


def _channel_sums(call: Call, x: Variable, weight: np.ndarray, along: Sequence[Track]) -> Variable:
    """Every channel by itself convolved with one weight."""
    alone = call.reshape(x, (*x.shape[:2], 1, *x.shape[2:]))
    sums = call.emit(_conv(weight, None, along, 1), alone)
    return call.reshape(sums, (*x.shape[:2], *(track.count for track in along)))


def lower_lp_pool(call: Call) -> Variable:
    """(Σ |x|ᵖ)^(1/p) over each window; at p = 2 its slope has no bound where a whole window may be 0."""
    x, root = call.variable(), _norm(call)
    along = pool_tracks(call, spatial_shape(call, x.shape))
    weight = np.ones((1, 1, *(track.kernel for track in along)))
    sums = _channel_sums(call, call.curve("abs" if root == 1 else "square", x), weight, along)
    return sums if root == 1 else call.curve("sqrt", sums)


def lower_global_lp_pool(call: Call) -> Variable:
    x, root = call.variable(), _norm(call)
    if len(x.shape) < 3:
        call.refuse(f"a tensor of shape {x.shape} has no spatial axes")
    sums = call.sum(call.curve("abs" if root == 1 else "square", x), tuple(range(2, len(x.shape))))
    return sums if root == 1 else call.curve("sqrt", sums)


def _norm(call: Call) -> int:
    p = int(call.attribute("p", 2))
    return p if p in (1, 2) else call.refuse(f"the norm p = {p}", "pool with p = 1 or 2")


def _divisor(call: Call, along: Sequence[Track]) -> np.ndarray:
    """How many entries each window counts: those of the input, or also those of the padding that the node declares."""
    with_padding = call.attribute("count_include_pad", 0)
    counts = np.ones(())
    for track in along:
        counted = track.taps < track.length + track.padding[1] if with_padding else track.inside
        counts = np.multiply.outer(counts, counted.sum(axis=1).astype(np.float64))
    return counts


def lower_global_average_pool(call: Call) -> Variable:
    return global_average_pool(call, call.variable())


def global_average_pool(call: Call, x: Variable) -> Variable:
    axes = tuple(range(2, len(x.shape)))
    if not axes:
        call.refuse(f"a tensor of shape {x.shape} has no spatial axes")
    return call.emit(ScaleShift(np.array(1.0 / math.prod(x.shape[2:]))), call.sum(x, axes))


ROWS = {
    "Conv": lower_conv,
    "ConvTranspose": lower_conv_transpose,
    "AveragePool": lower_average_pool,
    "GlobalAveragePool": lower_global_average_pool,
    "LpPool": lower_lp_pool,
    "GlobalLpPool": lower_global_lp_pool,
}
