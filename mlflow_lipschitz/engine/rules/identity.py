"""What the rules of ir/identities.py have in common: linear bounds go through inputs that add up to the value."""

from __future__ import annotations

import torch

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.elementwise import RelaxedOp
from mlflow_lipschitz.engine.rules.relaxation import Relaxation


class IdentityRule(RelaxedOp):
    """y = Σ sign · input, exactly, over the (input, sign) pairs of `linear_in`: nothing to relax, nothing to refine for it."""

    linear_in: tuple[tuple[int, float], ...]

    def operands(self, op: Op, arity: int) -> tuple[int, ...]:
        return tuple(position for position, _ in self.linear_in)

    def imprecise(self, op: Op, position: int, *inputs: Interval) -> None:
        return None

    def family(self, op: Op, *inputs: Interval) -> None:
        return None

    def relaxation(self, op: Op, *inputs: Interval) -> Relaxation:
        zero = inputs[0].lower.new_zeros((1, 1, *inputs[0].lower.shape[2:]))
        planes = tuple(torch.full_like(zero, sign) for _, sign in self.linear_in)
        return Relaxation(self.operands(op, len(inputs)), planes, zero, planes, zero)
