"""Matrix product of two variable values: attention scores, and what attention weights pick.

With centers A₀, B₀ of two intervals, AB = A B₀ + A₀ B − A₀ B₀ + (A − A₀)(B − B₀), and the last term is at most the product of the
half widths: McCormick's two planes in the middle of each product, added up without a tensor of all products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.linear_form import LinearForm
from mlflow_lipschitz.engine.domains.rounding import error_bound, gamma, next_up, product_bounds
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node, Shape
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.elementwise import EnclosedOp
from mlflow_lipschitz.engine.rules.forward import lost_to_underflow
from mlflow_lipschitz.engine.rules.relaxation import BackwardStep, dot
from mlflow_lipschitz.engine.rules.weights import Weights

_SLACK = 1 + 2.0**-20
_UNDERFLOW = 2.0**-960


@dataclass(frozen=True)
class BilinearEnclosure:
    """|AB − A B₀ − A₀ B + middle| ≤ error, with `middle` = A₀ B₀ as computed and whatever numbers A₀ and B₀ came out as.

    `left` (points, objectives, *lead, n, k), `right` (…, k, m), `middle` and `error` (…, n, m).
    """

    left: Tensor
    right: Tensor
    middle: Tensor
    error: Tensor

    @staticmethod
    def around(a: Interval, b: Interval) -> BilinearEnclosure:
        left, right = a.lower / 2 + a.upper / 2, b.lower / 2 + b.upper / 2
        reach, spread = (
            next_up(torch.maximum(x.upper - center, center - x.lower)) for x, center in ((a, left), (b, right))
        )
        size, terms = left.abs() @ right.abs(), left.shape[-1] + 4
        error = (reach @ spread) * (1 + gamma(terms)) + error_bound(size, terms) + _UNDERFLOW
        return BilinearEnclosure(left, right, left @ right, error * _SLACK)

    def magnitude(self, *inputs: Interval) -> Tensor:
        a, b = inputs
        size = a.magnitude @ self.right.abs() + self.left.abs() @ b.magnitude + self.middle.abs() + self.error
        return entries(size, 2).amax(-1) * _SLACK

    def backward(self, coeffs: Tensor) -> BackwardStep:
        size = coeffs.abs()
        passed: list[tuple[int, Tensor, Tensor | None]] = [
            (0, coeffs @ self.right[:, :, None].mT, None),
            (1, self.left[:, :, None].mT @ coeffs, None),
        ]
        offset = dot(size, self.error[:, :, None]) - dot(coeffs, self.middle[:, :, None])
        return BackwardStep(passed, offset, entries(size, 3).sum(-1))

    def forward(self, forms: Sequence[LinearForm], reach: Tensor) -> LinearForm:
        a, b = forms
        parts = []
        if a.coeffs is not None:
            parts.append(a.coeffs @ self.right[:, :, None])
        if b.coeffs is not None:
            parts.append(self.left[:, :, None] @ b.coeffs)
        offset = a.offset @ self.right + self.left @ b.offset - self.middle
        error = a.error @ self.right.abs() + self.left.abs() @ b.error + self.error
        size = a.size(reach) @ self.right.abs() + self.left.abs() @ b.size(reach) + self.middle.abs()
        error = error + error_bound(size, 2 * self.left.shape[-1] + 8)
        return LinearForm(
            sum(parts[1:], parts[0]) if parts else None, offset, error * _SLACK + lost_to_underflow(reach)
        )


class MatMulRule(EnclosedOp):
    """y = x₀ x₁ on the last two axes."""

    def operands(self, op: Op, arity: int) -> tuple[int, ...]:
        return (0, 1)

    def evaluate(self, op: Op, weights: Weights, *inputs: Tensor) -> Tensor:
        return inputs[0] @ inputs[1]

    def interval(self, op: Op, weights: Weights, *inputs: Interval) -> Interval:
        """Every product's own range, added up."""
        (left_low, left_high), (right_low, right_high) = (
            (side.lower, side.upper) for side in (_rows(inputs[0]), _columns(inputs[1]))
        )
        corners = [product_bounds(a, b) for a in (left_low, left_high) for b in (right_low, right_high)]
        low, high = corners[0]
        for corner_low, corner_high in corners[1:]:
            low, high = torch.minimum(low, corner_low), torch.maximum(high, corner_high)
        terms = low.shape[-1]
        below, above = low.sum(-1), high.sum(-1)
        return Interval.enclosing(
            below - error_bound(low.abs().sum(-1), terms), above + error_bound(high.abs().sum(-1), terms)
        )

    def imprecise(self, op: Op, position: int, *inputs: Interval) -> Tensor:
        return inputs[position].lower < inputs[position].upper

    def is_smooth(self, op: Op) -> bool:
        return True

    def family(self, op: Op, *inputs: Interval) -> None:
        return None

    def relaxation(self, op: Op, *inputs: Interval) -> BilinearEnclosure:
        return BilinearEnclosure.around(*inputs)

    def forward(
        self, op: Op, weights: Weights, inputs: Sequence[Interval], forms: Sequence[LinearForm], reach: Tensor
    ) -> LinearForm:
        return BilinearEnclosure.around(*inputs).forward(forms, reach)

    def rounding_terms(self, op: Op, shapes: tuple[Shape, ...]) -> int:
        (n, k), m = shapes[0][-2:], shapes[1][-1]
        return n + k + m + 10

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        a, b = node.inputs
        left = builder.add(ops.MatMul(), cotangent, _transposed(builder, b), name=node.name)
        right = builder.add(ops.MatMul(), _transposed(builder, a), cotangent, name=node.name)
        return (a, left), (b, right)


def _rows(x: Interval) -> Interval:
    return Interval(x.lower[..., :, None, :], x.upper[..., :, None, :])


def _columns(x: Interval) -> Interval:
    return Interval(x.lower.mT[..., None, :, :], x.upper.mT[..., None, :, :])


def _transposed(builder: GraphBuilder, x: int) -> int:
    rank = len(builder.shape(x))
    return builder.add(ops.Transpose((*range(rank - 2), rank - 1, rank - 2)), x)
