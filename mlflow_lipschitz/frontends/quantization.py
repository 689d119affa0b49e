"""Quantized tensors: integers n that stand for the real numbers (n − zero point) · scale.

In the engine's graph a quantized tensor is the real numbers it stands for. Constants are dequantized without rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.ops import Rounding
from mlflow_lipschitz.frontends.lowering_context import Call, Shape, Value, Variable

# What QuantizeLinear can round to, with the smallest and the largest number it has.
RANGES = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767), "uint4": (0, 15),
    "int4": (-8, 7),
}  # fmt: skip

REMEDY = (
    "audit the model as it was before quantization, or quantize it in the QDQ format: float operators between "
    "DequantizeLinear and QuantizeLinear"
)

# Operators that hand on integers as they are, or select among them: the real numbers behind them go the same way.
COPIES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Scale and zero point in float64, of shapes that broadcast to the tensor."""

    scale: np.ndarray
    zero: np.ndarray

    @property
    def uniform(self) -> bool:
        """Whether all entries have the same scale and zero point."""
        return self.scale.size == 1 and self.zero.size == 1

    def same_as(self, other: Grid) -> bool:
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)


@dataclass(frozen=True)
class Quantized(Variable):
    """A tensor of integers that depends on the model's input; `index` is the node of the real numbers they stand for."""

    grid: Grid = field(default_factory=lambda: Grid(np.ones(()), np.zeros(())), compare=False)

    @property
    def real(self) -> Variable:
        return Variable(self.index, self.shape)


def grid_of(call: Call, position: int, shape: Shape, axis: int) -> Grid:
    """The scale at `position` and the zero point behind it (0 where left out), for a tensor of `shape`.

    A vector of scales belongs to `axis`; with the node's block_size, a tensor of scales belongs to blocks along it.
    """
    scale = call.constant(position, "the scale")
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        call.refuse("its scale is not a positive number", REMEDY)
    zero = np.zeros(()) if call.input(position + 1) is None else call.constant(position + 1, "the zero point")
    scale, zero = (_placed(call, np.asarray(part, dtype=np.float64), shape, axis) for part in (scale, zero))
    return Grid(scale, zero)


def _placed(call: Call, values: np.ndarray, shape: Shape, axis: int) -> np.ndarray:
    """Scales or zero points in a shape that broadcasts to the tensor."""
    if values.size == 1:
        return values.reshape(())
    axis, block = call.axis(axis, len(shape)), int(call.attribute("block_size", 0))
    if values.ndim == 1 and values.size == shape[axis] and not block:
        return values.reshape(-1, *(1,) * (len(shape) - axis - 1))
    if block and values.ndim == len(shape):
        spread = np.take(values, np.arange(shape[axis]) // block, axis=axis)
        if spread.shape == shape:
            return np.asarray(spread)
    call.refuse(f"scales of shape {values.shape} do not fit a tensor of shape {shape}")


def dequantized(call: Call, position: int, axis: int) -> Value:
    """The real numbers behind the quantized value at `position`, by the scale and zero point behind it."""
    value = call.input(position)
    if isinstance(value, Quantized):
        return _read_on(call, value, grid_of(call, position + 1, value.shape, axis))
    if isinstance(value, Variable):
        call.refuse("it dequantizes a value that was not quantized")
    numbers = call.constant(position, "the quantized value").astype(np.float64)
    grid = grid_of(call, position + 1, numbers.shape, axis)
    return np.asarray((numbers - grid.zero) * grid.scale)


def _read_on(call: Call, value: Quantized, grid: Grid) -> Variable:
    """The same integers, read with another scale and zero point than those they were made with."""
    if grid.same_as(value.grid):
        return value.real
    shift = np.asarray((value.grid.zero - grid.zero) * grid.scale)
    return call.scale_shift(value.real, np.asarray(grid.scale / value.grid.scale), shift)


def quantized(call: Call, x: Variable, position: int, axis: int) -> Quantized:
    """x clipped to what the integers reach and rounded to them, by the scale at `position` and the zero point behind it."""
    grid = grid_of(call, position, x.shape, axis)
    low, high = _range(call, position + 1)
    if np.any(grid.zero != grid.zero.flat[0]):
        call.refuse("its zero points differ", REMEDY)
    first, last = low - float(grid.zero.flat[0]), high - float(grid.zero.flat[0])
    if grid.uniform:
        clipped = call.curve("clip", x, first * float(grid.scale), last * float(grid.scale))
    else:
        steps = call.curve("clip", call.scale_shift(x, 1.0 / grid.scale, None), first, last)
        clipped = call.scale_shift(steps, grid.scale, None)
    rounded = call.emit(Rounding(grid.scale), clipped)
    return Quantized(rounded.index, rounded.shape, None, grid)


def _range(call: Call, position: int) -> tuple[int, int]:
    """Smallest and largest number of the type that is quantized to."""
    zero, declared = call.input(position), call.attribute("output_dtype", 0)
    if declared:
        name = onnx.helper.tensor_dtype_to_np_dtype(declared).name
    elif isinstance(zero, np.ndarray):
        name = zero.dtype.name
    else:
        name = "uint8"
    if name not in RANGES:
        call.refuse(f"it quantizes to {name}", REMEDY)
    return RANGES[name]


def handed_on(call: Call, row: Callable[[Call], Any]) -> tuple[Value | None, ...]:
    """The outputs of a row that only copies or selects integers, which stay quantized. Refuses any other row."""
    variables = [value for value in call.inputs if isinstance(value, Variable)]
    grids = [value.grid for value in variables if isinstance(value, Quantized)]
    joined = call.node.op_type == "Concat" and len(variables) < len(call.inputs)
    alike = len(grids) == len(variables) and all(grid.uniform and grid.same_as(grids[0]) for grid in grids)
    if call.node.op_type not in COPIES or joined or not alike:
        call.refuse("it computes with quantized integers", REMEDY)
    result = row(replace(call, inputs=tuple(v.real if isinstance(v, Quantized) else v for v in call.inputs)))
    outputs = result if isinstance(result, tuple) else (result,)
    return tuple(Quantized(v.index, v.shape, None, grids[0]) if isinstance(v, Variable) else v for v in outputs)
