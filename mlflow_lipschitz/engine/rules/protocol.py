"""What an algorithm may ask of an op: one `Rule` per op type, found through rules/registry.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.linear_form import LinearForm
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node, Shape
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.relaxation import Enclosure, Family
from mlflow_lipschitz.engine.rules.weights import Weights


@runtime_checkable
class Rule(Protocol):
    """The meaning of one op type. All tensors carry (points, objectives) in front, linear forms (points, objectives, rows).

    `operands` are the inputs a linear relaxation of the op may depend on (for an affine op: all of them).
    """

    def operands(self, op: Op, arity: int) -> tuple[int, ...]: ...

    def evaluate(self, op: Op, weights: Weights, *inputs: Tensor) -> Tensor:
        """The op's value; at a kink, one element of its Clarke set."""
        ...

    def interval(self, op: Op, weights: Weights, *inputs: Interval) -> Interval:
        """Rigorous range of the op when each input ranges over its interval independently."""
        ...

    def imprecise(self, op: Op, position: int, *inputs: Interval) -> Tensor | None:
        """Mask over the entries of operand `position` whose bounds the relaxation depends on; None for an affine op."""
        ...

    def relaxation(self, op: Op, *inputs: Interval) -> Enclosure | None:
        """Two planes around the op; None for an affine op, which needs none."""
        ...

    def family(self, op: Op, *inputs: Interval) -> Family | None:
        """The relaxations to choose from; None where there is only one."""
        ...

    def is_smooth(self, op: Op) -> bool:
        """Whether the op is curved everywhere: imprecise at every entry, at any radius."""
        ...

    def forward(
        self, op: Op, weights: Weights, inputs: Sequence[Interval], forms: Sequence[LinearForm], reach: Tensor
    ) -> LinearForm:
        """The op's value as a linear form, given its inputs' intervals and forms; `reach` (points, inputs) is max |x|."""
        ...

    def rounding_terms(self, op: Op, shapes: tuple[Shape, ...]) -> int:
        """How many float64 operations lie behind one entry of a backward step."""
        ...

    def magnitude(self, op: Op, weights: Weights, *inputs: Interval) -> Tensor:
        """(points, objectives): bound over all entries of Σ |weight||input| + |bias|; only asked of affine ops."""
        ...

    def backward(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        """Coefficients on each input, given coefficients on the output; only asked of affine ops."""
        ...

    def offset(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> Tensor | None:
        """What an affine op's constant part adds to the linear form, (points, objectives, rows); None when nothing."""
        ...

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        """Append the nodes of Jᵀ·cotangent; (input index, cotangent node) per input that has a derivative."""
        ...
