"""Sliding windows of convolutions and pools, from the attributes of any opset: where each one lies.

Positions are those of the input without its padding, so a negative one lies in the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.frontends.lowering_context import Call, Shape

SPATIAL_AXES = (1, 2, 3)


@dataclass(frozen=True)
class Track:
    """Windows of `kernel` entries, `dilation` apart, along one axis of `length` entries.

    `padding` is what the node declares before and after the axis; with ceil_mode the last window may reach past it.
    """

    length: int
    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    count: int

    @property
    def taps(self) -> np.ndarray:
        """Positions that each window covers; shape (count, kernel)."""
        starts = np.arange(self.count) * self.stride - self.padding[0]
        return np.asarray(starts[:, None] + self.dilation * np.arange(self.kernel)[None, :])

    @property
    def inside(self) -> np.ndarray:
        """Which of the taps lie in the input."""
        return np.asarray((self.taps >= 0) & (self.taps < self.length))

    @property
    def needed_padding(self) -> tuple[int, int]:
        """Padding with which a convolution has exactly these windows."""
        before, after = self.padding
        reach = (self.count - 1) * self.stride + self.dilation * (self.kernel - 1) + 1
        return before, max(after, reach - self.length - before)


def spatial_shape(call: Call, x: Shape) -> Shape:
    """The axes of x behind the batch and the channels. Refuses a value that has none, or more than three."""
    if len(x) - 2 not in SPATIAL_AXES:
        call.refuse(f"a tensor of shape {x} has {max(len(x) - 2, 0)} spatial axes; 1 to 3 are supported")
    return x[2:]


def tracks(call: Call, spatial: Shape, kernel: Sequence[int]) -> tuple[Track, ...]:
    """One track per spatial axis, by the node's strides, dilations, pads, auto_pad and ceil_mode.

    Refuses windows that do not fit the input.
    """
    axes = len(spatial)
    if len(kernel) != axes or tuple(call.attribute("kernel_shape", kernel)) != tuple(kernel):
        call.refuse(f"a kernel of shape {tuple(kernel)} does not fit {axes} spatial axes")
    stride, dilation = (tuple(call.attribute(name, (1,) * axes)) for name in ("strides", "dilations"))
    if min(*kernel, *stride, *dilation) < 1:
        call.refuse(f"its kernel {tuple(kernel)}, strides {stride} or dilations {dilation} are not positive")
    padding = _padding(call, spatial, tuple(zip(kernel, stride, dilation, strict=True)))
    return tuple(
        _track(call, length, window, pair)
        for length, window, pair in zip(spatial, zip(kernel, stride, dilation, strict=True), padding, strict=True)
    )


def pool_tracks(call: Call, spatial: Shape) -> tuple[Track, ...]:
    """The tracks of a pool, as onnxruntime lays them. Refuses where it departs from the standard, and empty windows."""
    along = tracks(call, spatial, tuple(call.attribute("kernel_shape", ())))
    same = call.attribute("auto_pad", "NOTSET").startswith("SAME")
    if same and any(track.stride > track.kernel or track.dilation > 1 for track in along):
        # Seen: dilated, its output has another length; where a stride skips entries, its padding becomes negative.
        call.refuse("onnxruntime departs from the standard for SAME padding here", "give the padding as numbers")
    if any(max(track.padding) >= track.kernel for track in along) or not all(
        track.inside.any(axis=1).all() for track in along
    ):
        call.refuse("a window lies in the padding alone", "pad by less than the kernel's length")
    return along


def _padding(call: Call, spatial: Shape, windows: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    mode = call.attribute("auto_pad", "NOTSET")
    axes = len(spatial)
    if mode == "NOTSET":
        pads = call.attribute("pads", (0,) * (2 * axes))
        pairs = [(int(pads[i]), int(pads[i + axes])) for i in range(axes)]
    elif mode == "VALID":
        pairs = [(0, 0)] * axes
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // stride) - 1) * stride + dilation * (kernel - 1) + 1 - n, 0)
            for n, (kernel, stride, dilation) in zip(spatial, windows, strict=True)
        ]
        pairs = [halves(total, mode) for total in totals]
    else:
        call.refuse(f"auto_pad {mode!r} is not one that ONNX has")
    if any(p < 0 for pair in pairs for p in pair):
        call.refuse(f"negative padding {pairs}", "crop with a Slice before it")
    return pairs


def halves(total: int, mode: str) -> tuple[int, int]:
    """Padding before and after an axis for auto_pad; the odd entry goes after for SAME_UPPER and before otherwise."""
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _track(call: Call, length: int, window: tuple[int, int, int], padding: tuple[int, int]) -> Track:
    kernel, stride, dilation = window
    before, after = padding
    room = length + before + after - dilation * (kernel - 1) - 1
    if room < 0:
        call.refuse(f"a window of {kernel} entries (dilation {dilation}) does not fit an axis of {length}")
    count = room // stride + 1
    if call.attribute("ceil_mode", 0):
        count = -(-room // stride) + 1
        if (count - 1) * stride >= length + before:  # a window that starts behind the input is no window
            count -= 1
    return Track(length, kernel, stride, dilation, padding, count)
