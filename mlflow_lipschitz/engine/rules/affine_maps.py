"""The linear part of every one-input affine op and its transpose, for any number of leading batch axes.

`apply(op, weight, x, shape)` is the map with `weight` in place of the op's own (its positive part, say); `transpose` is its
adjoint. `shape` is always the shape of the op's input, without batch axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Shape
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.convolution import convolve, convolve_transposed


@dataclass(frozen=True)
class AffineMap:
    """How one op type maps values forward and cotangents back.

    `terms(op, shape)` and `transpose_terms(op, shape)` count the products summed into one entry; 0 means nothing is rounded.
    """

    apply: Callable[[Any, Any, Tensor, Shape], Tensor]
    transpose: Callable[[Any, Any, Tensor, Shape], Tensor]
    terms: Callable[[Any, Shape], int]
    transpose_terms: Callable[[Any, Shape], int]


def affine_map(op: Op) -> AffineMap:
    """The map of an op type; `Adjoint` swaps its inner op's two directions. Raises KeyError for an op that is not affine."""
    if isinstance(op, ops.Adjoint):
        inner = affine_map(op.inner)
        return AffineMap(
            apply=lambda op, w, x, _: inner.transpose(op.inner, w, x, op.shape),
            transpose=lambda op, w, y, _: inner.apply(op.inner, w, y, op.shape),
            terms=lambda op, _: inner.transpose_terms(op.inner, op.shape),
            transpose_terms=lambda op, _: inner.terms(op.inner, op.shape),
        )
    return AFFINE_MAPS[type(op)]


def is_affine_map(op: Op) -> bool:
    """Whether the op is affine with one input."""
    return type(op) in AFFINE_MAPS or isinstance(op, ops.Adjoint)


def constant_part(op: Op, bias: Tensor | None, shape: Shape) -> Tensor | None:
    """The op's constant part, broadcastable to its output shape; None where there is none."""
    if isinstance(op, ops.Conv) and bias is not None:
        return bias.reshape(-1, *(1,) * op.spatial_axes)
    return bias


def _lead(x: Tensor, rank: int) -> tuple[int, ...]:
    return tuple(x.shape[: x.dim() - rank])


def _conv(op: ops.Conv, weight: Tensor, x: Tensor, shape: Shape) -> Tensor:
    padded = F.pad(x, [p for pair in reversed(op.padding) for p in pair])
    sample = 1 + op.spatial_axes
    flat = padded.reshape(-1, *padded.shape[-sample:])
    y = convolve(op, weight, flat)
    return y.reshape(*x.shape[:-sample], *y.shape[1:])


def _conv_transpose(op: ops.Conv, weight: Tensor, y: Tensor, shape: Shape) -> Tensor:
    sample = 1 + op.spatial_axes
    flat = y.reshape(-1, *y.shape[-sample:])
    x = convolve_transposed(op, weight, flat)
    # What the strided kernel never reached comes back as zeros; the padding is cut off.
    for axis, (n, (before, after)) in enumerate(zip(shape[-op.spatial_axes :], op.padding, strict=True), start=2):
        missing = n + before + after - x.shape[axis]
        x = F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [0, missing]).narrow(axis, before, n)
    return x.reshape(*_lead(y, len(shape)), *shape)


def _expand(op: ops.Expand, weight: None, x: Tensor, shape: Shape) -> Tensor:
    lead = _lead(x, len(shape))
    return x.reshape(*lead, *(1,) * (len(op.shape) - len(shape)), *shape).expand(*lead, *op.shape)


def _expand_transpose(op: ops.Expand, weight: None, y: Tensor, shape: Shape) -> Tensor:
    aligned = (1,) * (len(op.shape) - len(shape)) + shape
    axes = [i - len(op.shape) for i, (n, m) in enumerate(zip(aligned, op.shape, strict=True)) if n != m]
    summed = y.sum(axes, keepdim=True) if axes else y
    return summed.reshape(*_lead(y, len(op.shape)), *shape)


def _select(op: ops.Select, weight: None, x: Tensor, shape: Shape) -> Tensor:
    index = torch.tensor(op.indices, dtype=torch.long, device=x.device)
    return x.index_select(x.dim() - len(shape) + op.axis, index)


def _select_transpose(op: ops.Select, weight: None, y: Tensor, shape: Shape) -> Tensor:
    index = torch.tensor(op.indices, dtype=torch.long, device=y.device)
    axis = y.dim() - len(shape) + op.axis
    size = list(y.shape)
    size[axis] = shape[op.axis]
    return y.new_zeros(size).index_add(axis, index, y)


def _permute(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    lead = x.dim() - len(axes)
    return x.permute(*range(lead), *(lead + a for a in axes))


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=lambda i: axes[i]))


def _pad(op: ops.Pad, weight: None, x: Tensor, shape: Shape) -> Tensor:
    return F.pad(x, [p for pair in reversed(op.padding) for p in pair])


def _unpad(op: ops.Pad, weight: None, y: Tensor, shape: Shape) -> Tensor:
    for axis, (n, (before, _)) in enumerate(zip(shape, op.padding, strict=True)):
        y = y.narrow(y.dim() - len(shape) + axis, before, n)
    return y


def _scale(op: ops.ScaleShift, weight: Tensor | None, x: Tensor, shape: Shape) -> Tensor:
    return x if weight is None else x * weight


def _scale_terms(op: ops.ScaleShift, shape: Shape) -> int:
    # A change of sign is exact; what else a scale or a shift does is not.
    exact = op.shift is None and (op.scale is None or bool(np.isin(op.scale, (-1.0, 0.0, 1.0)).all()))
    return 0 if exact else 3


def _summed_axes(op: ops.Sum, shape: Shape) -> list[int]:
    return [axis - len(shape) for axis in op.axes]


def _exact(op: Op, shape: Shape) -> int:
    return 0


AFFINE_MAPS: dict[type[Op], AffineMap] = {
    ops.Linear: AffineMap(
        apply=lambda op, w, x, shape: x @ w.mT,
        transpose=lambda op, w, y, shape: y @ w,
        terms=lambda op, shape: op.weight.shape[1] + 2,
        transpose_terms=lambda op, shape: op.weight.shape[0] + 2,
    ),
    ops.Conv: AffineMap(
        apply=_conv,
        transpose=_conv_transpose,
        terms=lambda op, shape: math.prod(op.weight.shape[1:]) + 2,
        transpose_terms=lambda op, shape: math.prod(op.weight.shape[2:]) * op.weight.shape[0] + 2,
    ),
    ops.ScaleShift: AffineMap(_scale, _scale, _scale_terms, _scale_terms),
    ops.Reshape: AffineMap(
        apply=lambda op, w, x, shape: x.reshape(*_lead(x, len(shape)), *op.shape),
        transpose=lambda op, w, y, shape: y.reshape(*_lead(y, len(op.shape)), *shape),
        terms=_exact,
        transpose_terms=_exact,
    ),
    ops.Transpose: AffineMap(
        apply=lambda op, w, x, shape: _permute(x, op.axes),
        transpose=lambda op, w, y, shape: _permute(y, _inverse(op.axes)),
        terms=_exact,
        transpose_terms=_exact,
    ),
    ops.Expand: AffineMap(_expand, _expand_transpose, _exact, lambda op, shape: math.prod(op.shape)),
    ops.Sum: AffineMap(
        apply=lambda op, w, x, shape: x.sum(_summed_axes(op, shape), keepdim=True) if op.axes else x,
        transpose=lambda op, w, y, shape: y.expand(*_lead(y, len(shape)), *shape),
        terms=lambda op, shape: math.prod(shape[a] for a in op.axes),
        transpose_terms=_exact,
    ),
    ops.Select: AffineMap(_select, _select_transpose, _exact, lambda op, shape: len(op.indices)),
    ops.Pad: AffineMap(_pad, _unpad, _exact, _exact),
}
