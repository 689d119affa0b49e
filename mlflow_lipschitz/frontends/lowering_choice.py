"""Lowering of Where with a constant condition; a choice that depends on the model's input is a jump and is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlflow_lipschitz.frontends.definedness import is_always_a_number
from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable
from mlflow_lipschitz.frontends.values import Shape, split_mask


def lower_where(call: Call) -> Value:
    condition = call.constant(0, "the condition").astype(bool)
    chosen, other = call.input(1), call.input(2)
    if chosen is None or other is None:
        call.refuse("it needs two values to choose from")
    full = call.broadcast(
        condition.shape, *(np.shape(v) if isinstance(v, np.ndarray) else v.shape for v in (chosen, other))
    )
    where = np.broadcast_to(condition, full)
    if where.all() or not where.any():
        return _grown(call, chosen if where.all() else other, full)
    parts = [(chosen, where), (other, ~where)]
    variables = [(value, mask) for value, mask in parts if isinstance(value, Variable)]
    constants = [(value, mask) for value, mask in parts if isinstance(value, np.ndarray)]
    numbers, masked = np.zeros(full), np.zeros(full, dtype=bool)
    for value, mask in constants:
        finite, hidden = split_mask(value)
        numbers = np.where(mask, finite, numbers)
        masked |= mask & (False if hidden is None else hidden)
    for variable, mask in variables:
        masked |= mask & (False if variable.masked is None else variable.masked)
    total = _chosen_entries(call, variables[0], masked)
    for pair in variables[1:]:
        total = call.add(total, _chosen_entries(call, pair, masked))
    if numbers.any():
        total = call.scale_shift(total, None, numbers)
    sunk = min(variable.sunk for variable, _ in variables)
    return call.mask(replace(total, sunk=sunk), masked if masked.any() else None)


def _chosen_entries(call: Call, choice: tuple[Variable, np.ndarray], masked: np.ndarray) -> Variable:
    """The variable where it is chosen and 0 elsewhere; where the result is masked any number will do."""
    variable, where = choice
    bare = call.expand(replace(variable, masked=None), where.shape)
    return bare if (where | masked).all() else call.scale_shift(bare, where.astype(np.float64), None)


def _grown(call: Call, value: Value, shape: Shape) -> Value:
    return call.expand(value, shape) if isinstance(value, Variable) else np.broadcast_to(value, shape)


def lower_is_nan(call: Call) -> np.ndarray:
    """Never true, where nothing behind the value can leave the domain of its curve; a choice elsewhere."""
    x = call.variable()
    if x.masked is not None:
        call.refuse("it asks whether masked scores are numbers")
    if not is_always_a_number(call.builder, x.index):
        call.refuse(
            "a logarithm, root, power or quotient behind it may be no number, and then another branch answers",
            "keep what these read above zero (clamp it, or add a small number), and leave the question out",
        )
    return np.zeros(x.shape, dtype=bool)


ROWS = {
    "Where": lower_where,
    "IsNaN": lower_is_nan,
}
