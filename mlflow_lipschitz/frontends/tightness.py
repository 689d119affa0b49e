"""What a node costs in tightness: how far its bounds can be from what it really does, by the engine's nodes it becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.affine_maps import is_affine_map
from mlflow_lipschitz.engine.rules.curves.table import facts_of
from mlflow_lipschitz.engine.rules.registry import is_supported
from mlflow_lipschitz.frontends import (
    lowering_attention,
    lowering_elementwise,
    lowering_microsoft,
    lowering_normalization,
    lowering_recurrent,
    lowering_selection,
    lowering_softmax,
)

Verdict = Literal["exact", "relaxed", "unsupported"]

EXACT = "bounds pass through it without loss"
KINK = "kink: exact unless a unit changes sides within the region; then its two pieces are enclosed by lines"
CURVE = "smooth curve: the error grows with the square of the interval's width"
DOMAIN = "unbounded if the region reaches an end of where it is defined"
PRODUCT = "product of two variables: the gap grows with the product of both widths"
LARGEST = "exact where one entry is the largest all over the region; else each contest is a kink"
ROUNDING = "rounding: off by up to half a step, and no slope: no Lipschitz bound, but a certified radius"

# Of several operands, but affine; and those that only narrow the bounds of their composition, which is among their inputs.
_WITHOUT_COST = (ops.Input, ops.Add, ops.Concat, ops.LogSoftmax, ops.Normalized)

# Operators by themselves: never exact, and exact unless both factors are variables.
PRODUCTS = ("Mul", "Div", "MatMul", "Gemm", "Einsum", "PRelu")
ALWAYS_RELAXED = frozenset(
    name
    for rows in (
        lowering_elementwise.CURVES, lowering_selection.ROWS, lowering_softmax.ROWS, lowering_attention.ROWS,
        lowering_recurrent.ROWS, lowering_normalization.ROWS,
        ("Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        ("LpPool", "GlobalLpPool", "QuantizeLinear", "QLinearConv", "QLinearMatMul", *lowering_microsoft.ROWS),
    )
    for name in rows
) - {"BatchNormalization", "DequantizeLinear", "PRelu"}  # fmt: skip


def cost(emitted: Sequence[Op]) -> tuple[Verdict, str]:
    """The verdict on a node that becomes these ops, and what that costs in tightness: of a composition, by its parts."""
    without_rule = [op for op in emitted if not is_supported(op)]
    if without_rule:
        return "unsupported", f"the engine has no rule for {type(without_rule[0]).__name__}"
    notes = [note for note in (KINK, CURVE, PRODUCT, LARGEST, DOMAIN, ROUNDING) if note in _costs(emitted)]
    if not notes:
        return "exact", EXACT
    if LARGEST in notes and KINK in notes:
        notes.remove(KINK)  # the one inside each contest
    return "relaxed", "; ".join(notes)


def _costs(emitted: Sequence[Op]) -> set[str]:
    found = set()
    for op in emitted:
        if isinstance(op, ops.Elementwise):
            found |= _cost_of_curve(op)
        elif isinstance(op, ops.Maximum):
            found.add(LARGEST)
        elif isinstance(op, ops.Rounding):
            found.add(ROUNDING)
        elif not (is_affine_map(op) or isinstance(op, _WITHOUT_COST)):
            found.add(PRODUCT)
    return found


def _cost_of_curve(op: ops.Elementwise) -> set[str]:
    facts = facts_of(op.curve, op.parameters)
    found = {CURVE if facts.curved else KINK}
    if facts.domain != (-math.inf, math.inf) or facts.pole is not None:
        found.add(DOMAIN)
    return found
