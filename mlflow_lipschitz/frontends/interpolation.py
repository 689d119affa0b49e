"""Resampling along one axis, as ONNX defines `Resize` and `Upsample`: output positions, and the weights of the input entries.

Every function is for one axis, in float64. onnxruntime computes positions in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stretch:
    """An axis of `length` entries that becomes one of `resized`; `scale` is what positions are divided by.

    `crop` is the normalized part of the axis that `tf_crop_and_resize` shows.
    """

    length: int
    resized: int
    scale: float
    crop: tuple[float, float] = (0.0, 1.0)


def _half_pixel(axis: Stretch) -> np.ndarray:
    return np.asarray((np.arange(axis.resized) + 0.5) / axis.scale - 0.5)


def _half_pixel_symmetric(axis: Stretch) -> np.ndarray:
    # Where the scale does not make whole entries, what is left over is cut on both sides alike.
    return axis.length / 2 * (1 - axis.resized / (axis.scale * axis.length)) + _half_pixel(axis)


def _align_corners(axis: Stretch) -> np.ndarray:
    return np.arange(axis.resized) * (axis.length - 1) / max(axis.resized - 1, 1)


def _crop_and_resize(axis: Stretch) -> np.ndarray:
    start, end = axis.crop
    last = axis.length - 1
    if axis.resized == 1:
        return np.array([0.5 * (start + end) * last])
    return np.asarray(start * last + np.arange(axis.resized) * (end - start) * last / (axis.resized - 1))


POSITIONS: dict[str, Callable[[Stretch], np.ndarray]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": lambda axis: _half_pixel(axis) if axis.resized > 1 else np.zeros(1),
    "tf_half_pixel_for_nn": lambda axis: (np.arange(axis.resized) + 0.5) / axis.scale,
    "align_corners": _align_corners,
    "asymmetric": lambda axis: np.arange(axis.resized) / axis.scale,
    "tf_crop_and_resize": _crop_and_resize,
}

NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda positions: np.ceil(positions - 0.5),
    "round_prefer_ceil": lambda positions: np.floor(positions + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def nearest(positions: np.ndarray, length: int, mode: str) -> np.ndarray:
    """The entry picked for each position."""
    return np.clip(NEAREST[mode](positions), 0, length - 1).astype(int)


def linear_weights(positions: np.ndarray, length: int) -> np.ndarray:
    """Weights (positions, length) between the two neighbors of each position; beyond the ends, of the end alone."""
    inside = np.clip(positions, 0, length - 1)
    left = np.floor(inside).astype(int)
    weights = np.zeros((len(positions), length))
    rows = np.arange(len(positions))
    np.add.at(weights, (rows, left), 1 - (inside - left))
    np.add.at(weights, (rows, np.minimum(left + 1, length - 1)), inside - left)
    return weights


def cubic_weights(positions: np.ndarray, length: int, coefficient: float, *, exclude_outside: bool) -> np.ndarray:
    """Weights (positions, length) of Keys' cubic convolution with four neighbors.

    A neighbor outside is the end entry, or, with `exclude_outside`, has no weight and the others sum to 1.
    """
    left = np.floor(positions).astype(int)
    weights = np.zeros((len(positions), length))
    rows = np.arange(len(positions))
    for offset in range(-1, 3):
        taps = left + offset
        parts = _keys(np.abs(positions - taps), coefficient)
        if exclude_outside:
            parts = np.where((taps >= 0) & (taps < length), parts, 0.0)
        np.add.at(weights, (rows, np.clip(taps, 0, length - 1)), parts)
    return weights / weights.sum(axis=1, keepdims=True) if exclude_outside else weights


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def outside(positions: np.ndarray, length: int) -> np.ndarray:
    """Which positions lie beyond the ends."""
    return (positions < 0) | (positions > length - 1)


def scaled_length(length: int, scale: float) -> int:
    """Entries that an axis has after scaling. onnx and onnxruntime multiply in float32, where 3 · 0.6666667 is 2."""
    return math.floor(np.float32(length) * np.float32(scale))
