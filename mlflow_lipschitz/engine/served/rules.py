"""How far the served value of a node is from the exact one, given how far those of its inputs are: one rule per op.

For a sum of n products, in any order, with or without fused multiply-add: |fl(Σ wᵢ x̂ᵢ + b) − (Σ wᵢ xᵢ + b)| ≤
Σ |wᵢ| eᵢ + γ_n (Σ |wᵢ| (|xᵢ| + eᵢ) + |b|), with |x̂ᵢ − xᵢ| ≤ eᵢ (Higham, Accuracy and Stability of Numerical Algorithms, §3.1). More
roundings are counted than a plain evaluation makes, so that runtimes may join a constant factor or summand with its neighbor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.affine_maps import affine_map, constant_part
from mlflow_lipschitz.engine.rules.weights import Weights
from mlflow_lipschitz.engine.served.formats import Format
from mlflow_lipschitz.engine.served.libraries import curve_error

# Roundings beyond those of the sum itself: of each product, of the weight (a constant that the format does not hold, or a factor
# that a runtime joined with it), of the bias.
PRODUCT_ROUNDINGS = 4
# Of a scale and a shift: they may stand for a normalization, whose factor takes a sum, a root, a quotient and a product.
SCALE_ROUNDINGS = 8


@dataclass(frozen=True)
class Step:
    """One node of a served program.

    Attributes:
        weights: the op's constants.
        inputs, errors: per input, the exact range and how far the served value may be from it, (points, 1, *shape).
        fused: per input, how many more terms a sum has into which a runtime may draw this node: those of the product behind it.
    """

    op: Any
    weights: Weights
    inputs: tuple[Interval, ...]
    errors: tuple[Tensor, ...]
    fused: tuple[int, ...]
    form: Format

    def reach(self, position: int) -> Tensor:
        """How large a served input may be."""
        return self.inputs[position].magnitude + self.errors[position]

    def read(self, position: int) -> Tensor:
        """The error of an input once it is read, when it may be flushed to zero."""
        return self.errors[position] + self.form.tiny


ErrorRule = Callable[[Step], Tensor]


def _within(step: Step, error: Tensor, size: Tensor) -> Tensor:
    """The error where nothing on the way can exceed the largest number; infinite elsewhere."""
    return torch.where(size <= step.form.largest / 2, error, torch.inf)


def _copied(step: Step) -> Tensor:
    (error,), op = step.errors, step.op
    shape = tuple(error.shape[2:])
    moved = affine_map(op).apply(op, None, error, shape)
    if isinstance(op, ops.Pad) and op.value != 0:
        outside = 1 - affine_map(op).apply(op, None, torch.ones_like(error), shape)
        moved = moved + outside * (step.form.roundings(1) * abs(op.value) + step.form.tiny)
    return moved


def _affine(step: Step) -> Tensor:
    """Products with constants, added up with a constant."""
    op, weights, form = step.op, step.weights, step.form
    shape = tuple(step.errors[0].shape[2:])
    matrix = None if weights.full is None else weights.full.abs()
    apply = affine_map(op).apply
    passed = apply(op, matrix, step.read(0), shape)
    size = apply(op, matrix, step.reach(0), shape)
    scaled = isinstance(op, ops.ScaleShift)
    count = 1 if scaled else products_in(op, shape)
    if scaled and _only_signs(op):
        return _within(step, apply(op, matrix, step.errors[0], shape), size)
    terms = SCALE_ROUNDINGS if scaled else count + PRODUCT_ROUNDINGS
    error = passed + form.roundings(terms) * size + form.tiny * (4 * count + 8)
    if matrix is not None and weights.smallest is not None:
        lost = torch.where(matrix < form.tiny, matrix, 0.0)  # constants that may be flushed to zero
        error = error + apply(op, lost, step.reach(0), shape)
    bias = None if isinstance(op, ops.Adjoint | ops.Pad) else constant_part(op, weights.bias, shape)
    if bias is not None:
        # Where a runtime begins a sum with this summand, every addition rounds it.
        error = error + form.roundings(terms + step.fused[0]) * bias.abs()
        size = size + bias.abs()
    return _within(step, error, size)


def _sum_of_two(step: Step) -> Tensor:
    form, (a, b) = step.form, (step.reach(0), step.reach(1))
    # A residual may be drawn into the sum that makes the other summand.
    rounded = form.roundings(3 + step.fused[1]) * a + form.roundings(3 + step.fused[0]) * b
    return _within(step, step.read(0) + step.read(1) + rounded + 4 * form.tiny, a + b)


def _product(step: Step) -> Tensor:
    form, (a, b) = step.form, (step.reach(0), step.reach(1))
    size = a * b
    passed = step.inputs[0].magnitude * step.read(1) + step.read(0) * (b + form.tiny)
    return _within(step, passed + form.roundings(3) * size + 4 * form.tiny, size)


def _matrix_product(step: Step) -> Tensor:
    form, (a, b) = step.form, (step.reach(0), step.reach(1))
    size, count = a @ b, a.shape[-1]
    passed = step.inputs[0].magnitude @ step.read(1) + step.read(0) @ (b + form.tiny)
    rounded = form.roundings(count + PRODUCT_ROUNDINGS) * size
    return _within(step, passed + rounded + form.tiny * (4 * count + 8), size)


def _joined(step: Step) -> Tensor:
    lead = max(error.shape[0] for error in step.errors)
    return torch.cat([error.expand(lead, *error.shape[1:]) for error in step.errors], 2 + step.op.axis)


def _curve(step: Step) -> Tensor:
    error, size = curve_error(step.op, step.inputs[0], step.read(0), step.form)
    return _within(step, error, size)


def _maximum(step: Step) -> Tensor:
    """The larger of two numbers is one of them: nothing is rounded, and it moves no more than either."""
    return torch.maximum(step.errors[0], step.errors[1])


def _log_softmax(step: Step) -> Tensor:
    """Of the scores' differences: each is off by its own error and the largest, then come the served program's own roundings.

    It subtracts the largest score (the difference t of two scores is rounded: u |t| in the exponent, in numerator and denominator),
    raises, adds up n positive numbers, and divides or takes a logarithm. The relative error of the softmax itself is no more.
    """
    form, error = step.form, step.read(0)
    kept = step.weights.full
    if kept is not None:
        error = torch.where(kept > 0, error, 0.0)
    reach = step.inputs[0].magnitude + error
    apart = 2 * reach.amax(-1, keepdim=True)
    count = error.shape[-1]
    result = step.inputs[1].magnitude + step.errors[1]
    rounded = form.roundings(1) * (3 * apart + 16 * torch.fmin(result, apart + math.log(count))) + form.roundings(
        2 * count + 48
    )
    total = error + error.amax(-1, keepdim=True) + rounded + 4 * count * form.tiny
    return _within(step, total, apart)


def _normalized(step: Step) -> Tensor:
    """It is computed as the product that is its last input."""
    return step.errors[2]


ERROR_RULES: dict[type[Op], ErrorRule] = {
    **dict.fromkeys((ops.Reshape, ops.Transpose, ops.Expand, ops.Select, ops.Pad), _copied),
    **dict.fromkeys((ops.Linear, ops.Conv, ops.ScaleShift, ops.Sum, ops.Adjoint), _affine),
    ops.Add: _sum_of_two,
    ops.Concat: _joined,
    ops.Elementwise: _curve,
    ops.LogSoftmax: _log_softmax,
    ops.MatMul: _matrix_product,
    ops.Maximum: _maximum,
    ops.Multiply: _product,
    ops.Normalized: _normalized,
}

# Ops that only move entries: whatever a served program does instead, it rounds nothing.
COPYING = (ops.Reshape, ops.Transpose, ops.Expand, ops.Select, ops.Concat)


def products_in(op: Op, shape: tuple[int, ...]) -> int:
    """How many terms, at most, are added up in one entry; products with a weight that is zero are none."""
    if isinstance(op, ops.Linear | ops.Conv):
        nonzero = np.count_nonzero(op.weight.reshape(op.weight.shape[0], -1), axis=1)
        return int(nonzero.max(initial=0))
    return affine_map(op).terms(op, shape)


def _only_signs(op: ops.ScaleShift) -> bool:
    return op.shift is None and (op.scale is None or bool(np.isin(op.scale, (-1.0, 0.0, 1.0)).all()))
