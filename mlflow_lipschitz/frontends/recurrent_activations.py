"""The activations that RNN, GRU and LSTM name in a list, with their constants in two more lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mlflow_lipschitz.frontends.lowering_context import Call, Variable

Activation: TypeAlias = Callable[[Call, Variable], Variable]


@dataclass(frozen=True)
class _Row:
    """How an activation is made of its constants. `alpha` and `beta` are their defaults; absent: it takes none, NaN: no default."""

    make: Callable[[float, float], Activation]
    alpha: float | None = None
    beta: float | None = None


def _curve(name: str, *constants: float) -> Activation:
    return lambda call, x: call.curve(name, x, *constants)


def _scaled(call: Call, x: Variable, scale: float, shift: float = 0.0) -> Variable:
    return call.scale_shift(x, np.array(scale), np.array(shift))


_NONE = float("nan")
_TABLE = {
    "relu": _Row(lambda a, b: _curve("relu")),
    "tanh": _Row(lambda a, b: _curve("tanh")),
    "sigmoid": _Row(lambda a, b: _curve("sigmoid")),
    "softsign": _Row(lambda a, b: _curve("softsign")),
    "softplus": _Row(lambda a, b: _curve("softplus")),
    "leakyrelu": _Row(lambda a, b: _curve("leaky_relu", a), 0.01),
    "elu": _Row(lambda a, b: _curve("elu", a, 1.0), 1.0),
    "affine": _Row(lambda a, b: lambda call, x: _scaled(call, x, a, b), _NONE, _NONE),
    "scaledtanh": _Row(
        lambda a, b: lambda call, x: _scaled(call, call.curve("tanh", _scaled(call, x, b)), a), _NONE, _NONE
    ),
    "hardsigmoid": _Row(lambda a, b: lambda call, x: call.curve("clip", _scaled(call, x, a, b), 0.0, 1.0), 0.2, 0.5),
}


def activations(call: Call, defaults: Sequence[str]) -> list[Activation]:
    """The node's activations, or `defaults`. Refuses one that is not continuous or not known, or lacks its constants."""
    names = [str(name) for name in call.attribute("activations", ())] or list(defaults)
    if len(names) != len(defaults):
        call.refuse(f"it names {len(names)} activations, {len(defaults)} are expected")
    alphas, betas = (iter(call.attribute(f"activation_{name}", ())) for name in ("alpha", "beta"))
    found = []
    for name in names:
        row = _TABLE.get(name.lower())
        if row is None:
            call.refuse(f"no lowering for its activation {name}", "a continuous one such as Tanh has one")
        # The lists have entries only for the activations that take them.
        alpha, beta = (
            0.0 if default is None else float(next(given, np.float32(default)))
            for default, given in ((row.alpha, alphas), (row.beta, betas))
        )
        if np.isnan(alpha) or np.isnan(beta):
            call.refuse(f"its activation {name} needs activation_alpha and activation_beta")
        found.append(row.make(alpha, beta))
    return found
