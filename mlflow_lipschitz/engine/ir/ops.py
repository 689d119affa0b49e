"""The core operators: what a node computes, never where it sits. Constants are read-only float64 NumPy arrays.

Shapes are without batch axes. Every op answers `output_shape`; what it *means* to an algorithm is its rule (rules/).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.engine.ir.identities import LogSoftmax as LogSoftmax
from mlflow_lipschitz.engine.ir.identities import Maximum as Maximum
from mlflow_lipschitz.engine.ir.identities import Normalized as Normalized
from mlflow_lipschitz.engine.ir.identities import Remainder as Remainder
from mlflow_lipschitz.engine.ir.op import Op, Shape, require
from mlflow_lipschitz.engine.ir.op import frozen_array as frozen_array


@dataclass(frozen=True, eq=False)
class Input(Op):
    """The audited point."""

    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape


@dataclass(frozen=True, eq=False)
class Cotangent(Op):
    """The objective c of Jᵀc: a constant per (point, objective), supplied with the region."""

    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """y = W x + b on the last axis. `weight` is (out, in), `bias` is (out,) or None."""

    weight: np.ndarray
    bias: np.ndarray | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(bool(shape) and shape[-1] == self.weight.shape[1], f"Linear {self.weight.shape} on {shape}")
        return (*shape[:-1], self.weight.shape[0])


@dataclass(frozen=True, eq=False)
class Conv(Op):
    """Cross-correlation over 1, 2 or 3 spatial axes, as ONNX `Conv`, of values (*any, channels, *spatial).

    `weight` is (out, in / groups, *kernel), `bias` is (out,) or None; `padding` has one (before, after) pair per spatial axis.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        does_not_fit = f"Conv {self.weight.shape} on {shape}"
        require(1 <= self.spatial_axes <= 3 and len(shape) > self.spatial_axes, does_not_fit)
        *lead, channels = shape[: -self.spatial_axes]
        require(channels == self.weight.shape[1] * self.groups, does_not_fit)
        require(self.weight.shape[0] % self.groups == 0, f"{does_not_fit} in {self.groups} groups")
        sizes = tuple(
            (n + p0 + p1 - d * (k - 1) - 1) // s + 1
            for n, (p0, p1), d, k, s in zip(
                shape[-self.spatial_axes :],
                self.padding,
                self.dilation,
                self.weight.shape[2:],
                self.stride,
                strict=True,
            )
        )
        require(all(n > 0 for n in sizes), f"{does_not_fit}: the kernel is larger than the padded value")
        return (*lead, self.weight.shape[0], *sizes)

    @property
    def spatial_axes(self) -> int:
        """How many axes the kernel moves along; they are the value's last ones."""
        return self.weight.ndim - 2


@dataclass(frozen=True, eq=False)
class ScaleShift(Op):
    """y = scale * x + shift with constants that broadcast to x (and do not grow it); None means 1 or 0."""

    scale: np.ndarray | None = None
    shift: np.ndarray | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        for constant in (self.scale, self.shift):
            if constant is not None:
                require(np.broadcast_shapes(constant.shape, shape) == shape, f"constant {constant.shape} on {shape}")
        return shape


@dataclass(frozen=True, eq=False)
class Add(Op):
    """Sum of two values of one shape (broadcast with `Expand` first)."""

    def output_shape(self, *shapes: Shape) -> Shape:
        require(len(shapes) == 2 and shapes[0] == shapes[1], f"Add of {shapes}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Multiply(Op):
    """Elementwise product of two variable values of one shape.

    `linear_in` does not change the value: it says which operands a linear relaxation follows. A factor left out (the Clarke
    derivative of a kink) counts as ranging freely over its interval.
    """

    linear_in: tuple[int, ...] = (0, 1)

    def output_shape(self, *shapes: Shape) -> Shape:
        require(len(shapes) == 2 and shapes[0] == shapes[1], f"Multiply of {shapes}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class MatMul(Op):
    """Matrix product of two variable values (*lead, n, k) and (*lead, k, m) on their last two axes."""

    def output_shape(self, *shapes: Shape) -> Shape:
        a, b = shapes
        require(len(a) == len(b) >= 2 and a[:-2] == b[:-2] and a[-1] == b[-2], f"MatMul of {shapes}")
        return (*a[:-1], b[-1])


@dataclass(frozen=True, eq=False)
class Elementwise(Op):
    """A scalar curve applied to every entry; `curve` is a row of rules/curves/table.py, `parameters` its constants."""

    curve: str
    parameters: tuple[float, ...] = ()

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        return shape


@dataclass(frozen=True, eq=False)
class Rounding(Op):
    """round(x / step) * step, ties to even: between x − step / 2 and x + step / 2. Positive steps that broadcast to x."""

    step: np.ndarray

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(np.broadcast_shapes(self.step.shape, shape) == shape, f"steps {self.step.shape} on {shape}")
        require(
            bool((np.isfinite(self.step) & (self.step > 0)).all()), "a step to round to must be positive and finite"
        )
        return shape


@dataclass(frozen=True, eq=False)
class Reshape(Op):
    """Same entries in the same order, another shape."""

    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(math.prod(shape) == math.prod(self.shape), f"Reshape {shape} to {self.shape}")
        return self.shape


@dataclass(frozen=True, eq=False)
class Transpose(Op):
    """Permute the axes: output axis i is input axis `axes[i]`."""

    axes: tuple[int, ...]

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(sorted(self.axes) == list(range(len(shape))), f"Transpose {self.axes} of {shape}")
        return tuple(shape[a] for a in self.axes)


@dataclass(frozen=True, eq=False)
class Expand(Op):
    """Broadcast to `shape` by NumPy's rules."""

    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(np.broadcast_shapes(shape, self.shape) == self.shape, f"Expand {shape} to {self.shape}")
        return self.shape


@dataclass(frozen=True, eq=False)
class Sum(Op):
    """Sum over `axes`, which are kept with length 1."""

    axes: tuple[int, ...]

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(all(0 <= a < len(shape) for a in self.axes), f"Sum over {self.axes} of {shape}")
        return tuple(1 if a in self.axes else n for a, n in enumerate(shape))


@dataclass(frozen=True, eq=False)
class Select(Op):
    """Entries `indices` along `axis`, in that order: slice, gather and split with constant positions."""

    axis: int
    indices: tuple[int, ...]

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(0 <= self.axis < len(shape), f"Select on axis {self.axis} of {shape}")
        require(all(0 <= i < shape[self.axis] for i in self.indices), f"Select {self.indices} of {shape}")
        return (*shape[: self.axis], len(self.indices), *shape[self.axis + 1 :])


@dataclass(frozen=True, eq=False)
class Pad(Op):
    """Constant padding; one (before, after) pair per axis, none negative."""

    padding: tuple[tuple[int, int], ...]
    value: float = 0.0

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(len(shape) == len(self.padding), f"Pad {self.padding} of {shape}")
        require(all(p >= 0 for pair in self.padding for p in pair), f"negative Pad {self.padding}")
        return tuple(n + a + b for n, (a, b) in zip(shape, self.padding, strict=True))


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Join any number of values along `axis`."""

    axis: int

    def output_shape(self, *shapes: Shape) -> Shape:
        require(bool(shapes) and 0 <= self.axis < len(shapes[0]), f"Concat of {shapes} on axis {self.axis}")
        first = shapes[0]
        for shape in shapes[1:]:
            same = all(a == b for i, (a, b) in enumerate(zip(first, shape, strict=True)) if i != self.axis)
            require(same, f"Concat of {shapes} on axis {self.axis}")
        return (*first[: self.axis], sum(s[self.axis] for s in shapes), *first[self.axis + 1 :])


@dataclass(frozen=True, eq=False)
class Adjoint(Op):
    """The transpose of the linear part of `inner`, a one-input affine op whose input had shape `shape`.

    Differentiation makes these; of a model's own operators, a transposed convolution is one. The transpose of an `Adjoint` is the
    linear part of `inner` again.
    """

    inner: Op
    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        (shape,) = shapes
        require(shape == self.inner.output_shape(self.shape), f"Adjoint of {type(self.inner).__name__} on {shape}")
        return self.shape
