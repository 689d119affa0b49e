"""Attributes of random sliding windows that fit, as exporters write them."""

from __future__ import annotations

from typing import Any

import numpy as np

PADDED = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def random_window(rng: np.random.Generator, spatial: list[int], *, dilated: bool, pool: bool) -> dict[str, Any]:
    """kernel_shape, strides, dilations and padding for an input of `spatial` entries.

    onnxruntime has no dilated SAME padding, and departs from the standard where a pool's stride skips entries with it.
    """
    kernel = [int(rng.integers(1, min(n, 3) + 1)) for n in spatial]
    strides = [int(n) for n in rng.integers(1, 4, size=len(spatial))]
    mode = str(rng.choice(PADDED))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    if mode == "NOTSET":
        attributes["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
    else:
        attributes["auto_pad"] = mode
    if mode.startswith("SAME"):
        attributes["strides"] = [min(s, k) for s, k in zip(strides, kernel, strict=True)] if pool else strides
    elif dilated:
        room = [(n - 1) // (k - 1) if k > 1 else 2 for n, k in zip(spatial, kernel, strict=True)]
        attributes["dilations"] = [int(rng.integers(1, most + 1)) for most in room]
    return attributes
