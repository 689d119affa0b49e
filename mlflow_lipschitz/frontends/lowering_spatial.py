"""Lowering of convolution and average pooling over one or two spatial axes."""

from __future__ import annotations

import math

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Conv, ScaleShift, Sum
from mlflow_lipschitz.frontends.lowering_context import Call, Variable

Pairs = tuple[tuple[int, int], ...]


def lower_conv(call: Call) -> Variable:
    x, weight = _spatial_input(call), call.constant(1, "the weight")
    bias = None if call.input(2) is None else call.constant(2, "the bias")
    kernel = weight.shape[2:]
    stride, dilation, padding = _window(call, x, kernel)
    return call.emit(Conv(weight, bias, stride, padding, dilation, int(call.attribute("group", 1))), x)


def lower_average_pool(call: Call) -> Variable:
    """A depthwise convolution with ones, divided by the number of entries each window counts."""
    x = _spatial_input(call)
    channels, *spatial = x.shape
    kernel = tuple(call.attribute("kernel_shape"))
    stride, dilation, padding = _window(call, x, kernel)
    strided_over = any(s > k for s, k in zip(stride, kernel, strict=True))
    if call.attribute("auto_pad", "NOTSET").startswith("SAME") and (strided_over or max(dilation) > 1):
        # Seen: dilated, its output has another length; where a stride skips entries, its padding becomes negative.
        call.refuse("onnxruntime departs from the standard for SAME padding here", "give the padding as numbers")
    if call.attribute("ceil_mode", 0):
        _refuse_partial_windows(call, spatial, kernel, (stride, dilation, padding))
    ones = np.ones((1, 1, *kernel))
    if call.attribute("count_include_pad", 0) or not any(before or after for before, after in padding):
        divisor = np.array(float(math.prod(kernel)))
    else:
        divisor = _window_counts(tuple(spatial), kernel, (stride, dilation, padding))
    pooled = call.emit(Conv(np.repeat(ones, channels, axis=0), None, stride, padding, dilation, channels), x)
    return call.emit(ScaleShift(np.asarray(1.0 / divisor)), pooled)


def lower_global_average_pool(call: Call) -> Variable:
    x = call.variable()
    if len(x.shape) < 2:
        call.refuse(f"samples of shape {x.shape} have no spatial axes")
    axes = tuple(range(1, len(x.shape)))
    return call.emit(ScaleShift(np.array(1.0 / math.prod(x.shape[1:]))), call.emit(Sum(axes), x))


def _spatial_input(call: Call) -> Variable:
    x = call.variable()
    if len(x.shape) not in (2, 3):
        call.refuse(f"samples of shape {x.shape} have {len(x.shape) - 1} spatial axes; 1 or 2 are supported")
    return x


def _window(call: Call, x: Variable, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], Pairs]:
    """Stride, dilation and padding of a window over the spatial axes of x, from pads or from auto_pad."""
    axes = len(x.shape) - 1
    if len(kernel) != axes or tuple(call.attribute("kernel_shape", kernel)) != tuple(kernel):
        call.refuse(f"a kernel of shape {kernel} does not fit samples of shape {x.shape}")
    stride = tuple(call.attribute("strides", (1,) * axes))
    dilation = tuple(call.attribute("dilations", (1,) * axes))
    mode = call.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = call.attribute("pads", (0,) * (2 * axes))
        padding = tuple((int(pads[i]), int(pads[i + axes])) for i in range(axes))
    elif mode == "VALID":
        padding = ((0, 0),) * axes
    else:
        totals = (
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, s, d, k in zip(x.shape[1:], stride, dilation, kernel, strict=True)
        )
        halves = [(t // 2, t - t // 2) for t in totals]
        padding = tuple((a, b) if mode == "SAME_UPPER" else (b, a) for a, b in halves)
    if any(p < 0 for pair in padding for p in pair):
        call.refuse(f"negative padding {padding}")
    if min(*kernel, *stride, *dilation) < 1 or any(
        n + before + after < d * (k - 1) + 1
        for n, k, d, (before, after) in zip(x.shape[1:], kernel, dilation, padding, strict=True)
    ):
        call.refuse(f"a window of {kernel} entries (dilation {dilation}) does not fit samples of shape {x.shape}")
    return stride, dilation, padding


def _window_counts(
    spatial: tuple[int, ...], kernel: tuple[int, ...], window: tuple[tuple[int, ...], tuple[int, ...], Pairs]
) -> np.ndarray:
    """How many entries of the unpadded input each window covers, per output position; shape (1, *output)."""
    per_axis = []
    for n, k, s, d, (before, after) in zip(spatial, kernel, *window, strict=True):
        starts = np.arange((n + before + after - d * (k - 1) - 1) // s + 1) * s - before
        taps = starts[:, None] + d * np.arange(k)[None, :]
        per_axis.append(((taps >= 0) & (taps < n)).sum(axis=1).astype(np.float64))
    counts = per_axis[0] if len(per_axis) == 1 else np.multiply.outer(*per_axis)
    return np.asarray(counts)[None]


def _refuse_partial_windows(
    call: Call, spatial: list[int], kernel: tuple[int, ...], window: tuple[tuple[int, ...], tuple[int, ...], Pairs]
) -> None:
    for n, k, s, d, (before, after) in zip(spatial, kernel, *window, strict=True):
        if (n + before + after - d * (k - 1) - 1) % s:
            call.refuse("ceil_mode adds windows that reach past the padding", "pool with ceil_mode=False")


ROWS = {
    "Conv": lower_conv,
    "AveragePool": lower_average_pool,
    "GlobalAveragePool": lower_global_average_pool,
}
