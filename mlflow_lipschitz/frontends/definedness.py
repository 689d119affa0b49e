"""Whether a value is a number whatever the model is given: whether all curves behind it are defined everywhere they are read.

A logarithm of a negative number is none, and a model can ask for that (`IsNaN`) and answer by another function there. Bounds see
no such branch. Signs are all that is followed: squares, exponentials and the like never are below zero, and with a positive
number added they are above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node
from mlflow_lipschitz.engine.rules.curves.table import facts_of


class Sign(IntEnum):
    """What is known of all entries of a value, at every input."""

    ANY = 0
    NOT_NEGATIVE = 1
    POSITIVE = 2


_NOT_NEGATIVE = ("abs", "relu", "square")
_POSITIVE = ("exp", "sigmoid", "softplus")  # above zero, and not only at least zero
_SAME_ENTRIES = (ops.Reshape, ops.Transpose, ops.Expand, ops.Select, ops.Sum, ops.Concat)
# These only narrow the bounds of their composition, which is among their operands beside what it is composed of.
_COMPOSED = (ops.LogSoftmax, ops.Normalized)


def is_always_a_number(builder: GraphBuilder, index: int) -> bool:
    """Whether nothing that the value is computed from leaves the domain of its curve, as far as signs tell."""
    signs: dict[int, Sign] = {}
    for number in _behind(builder, index):
        node = builder.node(number)
        sign = _sign(node, [signs[source] for source in _operands(node)])
        if sign is None:
            return False
        signs[number] = sign
    return True


def _behind(builder: GraphBuilder, index: int) -> list[int]:
    """A node and all that it is computed from, operands first."""
    found, pending = {index}, [index]
    while pending:
        for source in _operands(builder.node(pending.pop())):
            if source not in found:
                found.add(source)
                pending.append(source)
    return sorted(found)


def _operands(node: Node) -> Sequence[int]:
    return node.inputs[:1] if isinstance(node.op, _COMPOSED) else node.inputs


def _sign(node: Node, signs: list[Sign]) -> Sign | None:
    """What is known of a node's result; None where it may be no number."""
    op = node.op
    if isinstance(op, ops.Elementwise):
        return _of_curve(op, signs[0])
    if isinstance(op, ops.Normalized):
        return Sign.ANY if op.epsilon > 0 else None
    if isinstance(op, ops.ScaleShift):
        return _of_scale(op, signs[0])
    if isinstance(op, (*_SAME_ENTRIES, ops.Add, ops.Multiply)):
        largest = max(signs) if isinstance(op, ops.Add) and min(signs) else min(signs)
        return Sign(largest)
    return Sign.ANY


def _of_curve(op: ops.Elementwise, source: Sign) -> Sign | None:
    facts = facts_of(op.curve, op.parameters)
    low, high = facts.domain
    if high < math.inf or low not in (0.0, -math.inf) or facts.pole not in (None, 0.0):
        return None
    open_at_zero = facts.pole is not None or (low == 0 and not facts.closed)
    needed = Sign.POSITIVE if open_at_zero else Sign.NOT_NEGATIVE if low == 0 else Sign.ANY
    if source < needed:
        return None
    if facts.range[0] < 0 and op.curve not in _NOT_NEGATIVE:
        return Sign.ANY
    positive = op.curve in _POSITIVE or facts.range[0] > 0 or needed == Sign.POSITIVE
    return Sign.POSITIVE if positive else Sign.NOT_NEGATIVE


def _of_scale(op: ops.ScaleShift, source: Sign) -> Sign:
    scale = math.inf if op.scale is None else float(np.min(op.scale))
    shift = 0.0 if op.shift is None else float(np.min(op.shift))
    if not source or scale < 0 or shift < 0:
        return Sign.ANY
    return Sign.POSITIVE if shift > 0 or (source == Sign.POSITIVE and scale > 0) else Sign.NOT_NEGATIVE
