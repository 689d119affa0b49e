"""Lowering of Einsum: every equation is a chain of contractions of two operands, each a product of stacks of matrices."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable
from mlflow_lipschitz.frontends.matrix_products import contract, reshaped


@dataclass(frozen=True)
class Operand:
    """A value whose axes have names, one letter each."""

    value: Value
    axes: str

    def length(self, name: str) -> int:
        return self.value.shape[self.axes.index(name)] if name in self.axes else 1


def lower_einsum(call: Call) -> Value:
    operands, result = _parsed(call)
    operands = [_without_repeats(call, operand) for operand in operands]
    product = operands[0]
    for position, operand in enumerate(operands[1:], start=2):
        later = result + "".join(other.axes for other in operands[position:])
        product = _contracted(call, product, operand, later)
    product = _summed(call, product, result)
    missing = [name for name in result if name not in product.axes]
    if missing:
        call.refuse(f"its output has axes {missing} that no operand has")
    return _ordered(call, product, result).value


def _parsed(call: Call) -> tuple[list[Operand], str]:
    """Operands with an ellipsis written out in letters, and the axes of the result."""
    equation = call.attribute("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    values = [value for value in call.inputs if value is not None]
    if len(terms) != len(values):
        call.refuse(f"its equation {equation!r} has {len(terms)} terms for {len(values)} operands")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    covered = {len(v.shape) - len(t) + 3 for t, v in zip(terms, values, strict=True) if "..." in t}
    if len(covered) > 1:
        call.refuse(
            f"the ellipsis of its equation {equation!r} stands for different numbers of axes, {sorted(covered)}"
        )
    dots = "".join(free[: max(covered, default=0)])
    operands = []
    for term, value in zip(terms, values, strict=True):
        axes = term.replace("...", dots)
        if len(axes) != len(value.shape) or not axes.isascii() or not (axes.isalpha() or not axes):
            call.refuse(f"the term {term!r} of its equation does not fit an operand of shape {value.shape}")
        operands.append(Operand(value, axes))
    if arrow:
        return operands, right.replace("...", dots)
    named = left.replace("...", "").replace(",", "")
    return operands, dots + "".join(sorted(name for name in set(named) if named.count(name) == 1))


def _without_repeats(call: Call, operand: Operand) -> Operand:
    """The diagonal along each axis that is named more than once."""
    for name in sorted(set(operand.axes)):
        while operand.axes.count(name) > 1:
            first = operand.axes.index(name)
            second = operand.axes.index(name, first + 1)
            operand = _diagonal(call, operand, first, second)
    return operand


def _diagonal(call: Call, operand: Operand, first: int, second: int) -> Operand:
    shape = operand.value.shape
    length = shape[first]
    if shape[second] != length:
        call.refuse(f"axes of {length} and {shape[second]} entries have one name in its equation")
    rest = [i for i in range(len(shape)) if i not in (first, second)]
    moved = _transposed(call, operand.value, (*rest, first, second))
    flat = reshaped(call, moved, (*(shape[i] for i in rest), length * length))
    positions = range(0, length * length, length + 1)
    if isinstance(flat, Variable):
        taken: Value = call.select(flat, len(rest), positions)
    else:
        taken = np.take(flat, positions, axis=-1)
    return Operand(taken, "".join(operand.axes[i] for i in rest) + operand.axes[first])


def _transposed(call: Call, value: Value, axes: Sequence[int]) -> Value:
    return call.transpose(value, axes) if isinstance(value, Variable) else np.transpose(value, axes)


def _ordered(call: Call, operand: Operand, axes: str) -> Operand:
    """The operand with its axes in the order of `axes`, which names each of them once."""
    if sorted(axes) != sorted(operand.axes):
        call.refuse(f"its output axes {axes!r} are not those that remain, {operand.axes!r}")
    return Operand(_transposed(call, operand.value, [operand.axes.index(name) for name in axes]), axes)


def _summed(call: Call, operand: Operand, kept: str) -> Operand:
    """The sum over every axis that is not in `kept`."""
    dropped = tuple(i for i, name in enumerate(operand.axes) if name not in kept)
    if not dropped:
        return operand
    remaining = "".join(name for name in operand.axes if name in kept)
    if isinstance(operand.value, Variable):
        return Operand(call.sum(operand.value, dropped, keepdims=False), remaining)
    return Operand(np.asarray(operand.value.sum(axis=dropped)), remaining)


def _contracted(call: Call, a: Operand, b: Operand, later: str) -> Operand:
    """The product of two operands, summed over what only they have: a stack of matrix products."""
    a, b = _summed(call, a, later + b.axes), _summed(call, b, later + a.axes)
    shared = [name for name in a.axes if name in b.axes]
    stacked = "".join(name for name in shared if name in later)
    summed = "".join(name for name in shared if name not in later)
    rows = "".join(name for name in a.axes if name not in shared)
    columns = "".join(name for name in b.axes if name not in shared)
    lengths = {name: _joint_length(call, name, a, b) for name in a.axes + b.axes}
    left = _matrices(call, a, (stacked, rows, summed), lengths)
    right = _matrices(call, b, (stacked, columns, summed), lengths)
    shape = tuple(lengths[name] for name in stacked + rows + columns)
    return Operand(reshaped(call, contract(call, left, right), shape), stacked + rows + columns)


def _joint_length(call: Call, name: str, a: Operand, b: Operand) -> int:
    """Axes of one name have one length, or broadcast from length 1."""
    found = {a.length(name), b.length(name)} - {1}
    if len(found) > 1:
        call.refuse(f"axes of {a.length(name)} and {b.length(name)} entries have one name in its equation")
    return found.pop() if found else 1


def _matrices(call: Call, operand: Operand, groups: tuple[str, str, str], lengths: dict[str, int]) -> Value:
    """The operand as (*stacked, rows, summed): one axis for each of the last two groups of names."""
    stacked, rows, summed = groups
    ordered = _ordered(call, operand, stacked + rows + summed).value
    shared = stacked + summed
    full = tuple(lengths[name] if name in shared else operand.length(name) for name in stacked + rows + summed)
    ordered = call.expand(ordered, full) if isinstance(ordered, Variable) else np.broadcast_to(ordered, full)
    count = [int(np.prod([lengths[name] for name in names], dtype=int)) for names in (rows, summed)]
    return reshaped(call, ordered, (*(lengths[name] for name in stacked), *count))
