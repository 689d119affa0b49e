"""Lowering of operators that resample a tensor: padding, resizing, and the exchange of depth for space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Linear, Pad
from mlflow_lipschitz.frontends import interpolation
from mlflow_lipschitz.frontends.interpolation import Stretch
from mlflow_lipschitz.frontends.lowering_context import Call, Shape, Variable, refusal
from mlflow_lipschitz.frontends.referee import run_node

# Positions this close to where the picked entry changes may be picked otherwise by arithmetic in float32.
CLOSE = 1e-3


def lower_pad(call: Call) -> Variable:
    x = call.variable()
    mode = call.attribute("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        call.refuse(f"padding mode {mode!r} is not one that ONNX has")
    pairs = _padding(call, len(x.shape))
    for axis, (before, after) in enumerate(pairs):  # ONNX crops with negative padding, and crops first
        x = call.select(x, axis, range(max(-before, 0), x.shape[axis] - max(-after, 0)))
    grown = tuple((max(before, 0), max(after, 0)) for before, after in pairs)
    if not any(a or b for a, b in grown):
        return x
    if mode == "constant":
        given = call.input(2)
        fill = call.attribute("value", 0.0) if given is None else call.constant(2, "the fill").reshape(-1)[0]
        return call.emit(Pad(grown, float(fill)), x)
    for axis, pair in enumerate(grown):
        length = x.shape[axis]
        if mode == "reflect" and max(pair) >= length:
            call.refuse(f"it reflects {max(pair)} entries of an axis that has {length - 1} besides its end")
        x = call.select(x, axis, [int(i) for i in np.pad(np.arange(length), pair, mode=mode)])
    return x


def _padding(call: Call, rank: int) -> list[tuple[int, int]]:
    """Entries to add before and after each axis."""
    pads, axes = call.integers(1, "pads"), call.integers(3, "axes")
    if pads is None:
        call.refuse("the padding is missing")
    named = range(rank) if axes is None else [call.axis(axis, rank) for axis in axes]
    if len(pads) != 2 * len(named) or len(set(named)) < len(named):
        call.refuse(f"padding {pads} of the axes {tuple(named)} does not fit a tensor of {rank} axes")
    pairs = [(0, 0)] * rank
    for i, axis in enumerate(named):
        pairs[axis] = (pads[i], pads[i + len(named)])
    return pairs


def lower_resize(call: Call) -> Variable:
    """`Resize` and `Upsample` of every opset: the axes one after another, each by its own matrix or choice of entries."""
    x = call.variable()
    mode, coordinates = call.attribute("mode", "nearest"), _coordinates(call)
    if call.attribute("antialias", 0):
        call.refuse("antialiasing", "resize without antialias, or pool before it")
    known = mode in ("nearest", "linear", "cubic") and coordinates in interpolation.POSITIONS
    if not known or (mode != "nearest" and coordinates == "tf_half_pixel_for_nn"):
        call.refuse(f"mode {mode!r} with coordinates {coordinates!r} is not one that ONNX has")
    stretches = _stretches(call, x.shape)
    if any(stretch.scale == 1 and stretch.crop != (0.0, 1.0) for stretch in stretches):
        call.refuse("onnxruntime does not crop an axis whose scale is 1", "crop with a Slice")
    for axis, stretch in enumerate(stretches):
        x = _resized(call, x, axis, stretch)
    return _extrapolated(call, x, stretches) if coordinates == "tf_crop_and_resize" else x


def _is_old(call: Call) -> bool:
    """Whether it is `Upsample`, or `Resize` as it was before opset 11: without a choice of coordinates."""
    return call.node.op_type == "Upsample" or call.opset < 11


def _coordinates(call: Call) -> str:
    return str(call.attribute("coordinate_transformation_mode", "asymmetric" if _is_old(call) else "half_pixel"))


def _stretches(call: Call, shape: Shape) -> list[Stretch]:
    """How every axis changes, from scales or sizes and for the axes that the node names."""
    axes = [call.axis(axis, len(shape)) for axis in call.attribute("axes", range(len(shape)))]
    lengths = [shape[axis] for axis in axes]
    scales, sizes = _numbers(call, "scales"), _numbers(call, "sizes")
    if (scales is None) == (sizes is None) or len(scales or sizes or ()) != len(axes):
        call.refuse("it needs one scale or one size for every axis", "export it with constant scales")
    crops = _crops(call, axes)
    if sizes is not None:
        resized, scales = _fitted(call, lengths, [int(size) for size in sizes])
    else:
        assert scales is not None
        resized = [interpolation.scaled_length(n, scale) for n, scale in zip(lengths, scales, strict=True)]
    if min(resized) < 1 or min(scales) <= 0:
        call.refuse(f"it resizes {tuple(lengths)} entries to {tuple(resized)}")
    columns = zip(axes, lengths, resized, scales, crops, strict=True)
    named = {axis: Stretch(length, entries, scale, crop) for axis, length, entries, scale, crop in columns}
    return [named.get(axis, Stretch(length, length, 1.0)) for axis, length in enumerate(shape)]


def _numbers(call: Call, name: str) -> list[float] | None:
    """The scales or the sizes, which are inputs or an attribute; None where left out, which an empty tensor says too."""
    positions = {"scales": 1} if _is_old(call) else {"scales": 2, "sizes": 3}
    if name in positions and call.input(positions[name]) is not None:
        return [float(value) for value in call.constant(positions[name], name)] or None
    given = call.attribute(name) if call.node.op_type == "Upsample" else None
    return None if given is None else [float(value) for value in given]


def _crops(call: Call, axes: Sequence[int]) -> list[tuple[float, float]]:
    if _coordinates(call) != "tf_crop_and_resize":
        return [(0.0, 1.0)] * len(axes)
    region = call.constant(1, "the region of interest")
    if len(region) != 2 * len(axes):
        call.refuse(f"a region of interest of {len(region)} numbers does not fit {len(axes)} axes")
    return [(float(region[i]), float(region[i + len(axes)])) for i in range(len(axes))]


def _fitted(call: Call, lengths: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[float]]:
    """Lengths after resizing to `sizes`, and scales, by the node's keep_aspect_ratio_policy."""
    ratios = [size / length for size, length in zip(sizes, lengths, strict=True)]
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return list(sizes), ratios
    if policy not in ("not_larger", "not_smaller"):
        call.refuse(f"keep_aspect_ratio_policy {policy!r} is not one that ONNX has")
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [int(np.floor(scale * length + 0.5)) for length in lengths], [scale] * len(lengths)


def _resized(call: Call, x: Variable, axis: int, stretch: Stretch) -> Variable:
    positions = interpolation.POSITIONS[_coordinates(call)](stretch)
    mode = call.attribute("mode", "nearest")
    if mode == "nearest":
        return call.select(x, axis, [int(i) for i in _picked(call, axis, stretch, positions)])
    if mode == "linear":
        weights = interpolation.linear_weights(positions, stretch.length)
    else:
        excluded = bool(call.attribute("exclude_outside", 0))
        weights = interpolation.cubic_weights(
            positions, stretch.length, call.real("cubic_coeff_a", -0.75), exclude_outside=excluded
        )
    if stretch.length == stretch.resized and np.array_equal(weights, np.eye(stretch.length)):
        return x
    return along_axis(call, Linear(weights), x, axis)


def along_axis(call: Call, op: Linear, x: Variable, axis: int) -> Variable:
    """A matrix applied along one axis of x."""
    order = [*(a for a in range(len(x.shape)) if a != axis), axis]
    applied = call.emit(op, call.transpose(x, order))
    return call.transpose(applied, tuple(int(a) for a in np.argsort(order)))


def _picked(call: Call, axis: int, stretch: Stretch, positions: np.ndarray) -> np.ndarray:
    """The entry nearest to each position; where rounding in float32 may decide, the one that onnxruntime picks."""
    mode = call.attribute("nearest_mode", "floor" if _is_old(call) else "round_prefer_floor")
    if mode not in interpolation.NEAREST:
        call.refuse(f"nearest_mode {mode!r} is not one that ONNX has")
    picked, below, above = (
        interpolation.nearest(positions + shift, stretch.length, mode) for shift in (0.0, -CLOSE, CLOSE)
    )
    if stretch.length == stretch.resized and np.array_equal(positions, np.arange(stretch.length)):
        return picked
    if _coordinates(call) == "tf_crop_and_resize":
        inside = ~interpolation.outside(positions, stretch.length)
        if np.any(inside & (below != above)):
            call.refuse("which entries it picks is decided by rounding in float32", "choose another region of interest")
        return picked
    served = _served_entries(call, axis)
    if served.shape != picked.shape or np.any((served != picked) & (below == above)):
        call.refuse("onnxruntime picks other entries than the standard", "export it with a newer opset")
    return served


def _served_entries(call: Call, axis: int) -> np.ndarray:
    """Which entries of an axis onnxruntime picks, seen from a tensor that holds their numbers."""
    shape = call.variable().shape
    numbers = np.arange(shape[axis], dtype=np.float32).reshape(-1, *(1,) * (len(shape) - axis - 1))
    # onnxruntime takes a computed input for given, also where it is empty and opset 13 or later lets it be left out.
    given = [None if value is None or (call.opset >= 13 and value.size == 0) else value for value in _constants(call)]
    constants = [v.astype(np.float32) if v is not None and v.dtype.kind == "f" else v for v in given]
    try:
        (result,) = run_node(call.node, [np.broadcast_to(numbers, shape).copy(), *constants], call.opset)
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise refusal(call.node, f"onnxruntime cannot compute it: {error}") from error
    assert result is not None
    return np.asarray(np.moveaxis(result, axis, 0).reshape(result.shape[axis], -1)[:, 0]).astype(int)


def _constants(call: Call) -> list[np.ndarray | None]:
    """The inputs behind the first, which have been read as constants."""
    return [value if isinstance(value, np.ndarray) else None for value in call.inputs[1:]]


def _extrapolated(call: Call, x: Variable, stretches: Sequence[Stretch]) -> Variable:
    """x with the extrapolation value wherever a position lies outside the input."""
    inside = np.ones(())
    for stretch in stretches:
        positions = interpolation.POSITIONS["tf_crop_and_resize"](stretch)
        inside = np.multiply.outer(inside, ~interpolation.outside(positions, stretch.length))
    value = call.real("extrapolation_value", 0.0)
    return x if np.all(inside) else call.scale_shift(x, inside, value * (1 - inside))


def lower_depth_to_space(call: Call) -> Variable:
    x, size = call.variable(), int(call.attribute("blocksize"))
    batch, depth, height, width = _image(call, x)
    if size < 1 or depth % (size * size):
        call.refuse(f"{depth} channels are no multiple of {size} times {size}")
    channels = depth // (size * size)
    if call.attribute("mode", "DCR") == "DCR":  # depth, column, row: the blocks are the outermost part of the channels
        split, order = (batch, size, size, channels, height, width), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (batch, channels, size, size, height, width), (0, 1, 4, 2, 5, 3)
    spread = call.transpose(call.reshape(x, split), order)
    return call.reshape(spread, (batch, channels, height * size, width * size))


def lower_space_to_depth(call: Call) -> Variable:
    x, size = call.variable(), int(call.attribute("blocksize"))
    batch, channels, height, width = _image(call, x)
    if size < 1 or height % size or width % size:
        call.refuse(f"an image of {height} by {width} is not made of blocks of {size} by {size}")
    split = call.reshape(x, (batch, channels, height // size, size, width // size, size))
    gathered = call.transpose(split, (0, 3, 5, 1, 2, 4))
    return call.reshape(gathered, (batch, channels * size * size, height // size, width // size))


def _image(call: Call, x: Variable) -> Shape:
    if len(x.shape) != 4:
        call.refuse(f"a tensor of shape {x.shape} is no batch of images")
    return x.shape


ROWS = {
    "Pad": lower_pad,
    "Resize": lower_resize,
    "Upsample": lower_resize,
    "DepthToSpace": lower_depth_to_space,
    "SpaceToDepth": lower_space_to_depth,
}
