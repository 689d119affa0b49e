"""Name and parameters of a curve → its facts. An explicit table: a duplicate cannot be written, a miss is loud."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from mlflow_lipschitz.engine.rules.curves import gated, periodic, piecewise, powers, sigmoidal
from mlflow_lipschitz.engine.rules.curves.facts import CurveFacts, Parameters

CURVES: dict[str, Callable[..., CurveFacts]] = {
    "relu": piecewise.relu,
    "leaky_relu": piecewise.leaky_relu,
    "abs": piecewise.absolute,
    "step": piecewise.step,
    "clip": piecewise.clip,
    "window": piecewise.window,
    "hard_swish": piecewise.hard_swish,
    "dhard_swish": piecewise.dhard_swish,
    "elu": piecewise.elu,
    "delu": piecewise.delu,
    "celu": piecewise.celu,
    "dcelu": piecewise.dcelu,
    "tanh": sigmoidal.tanh,
    "dtanh": sigmoidal.dtanh,
    "sigmoid": sigmoidal.sigmoid,
    "dsigmoid": sigmoidal.dsigmoid,
    "erf": sigmoidal.erf,
    "derf": sigmoidal.derf,
    "atan": sigmoidal.atan,
    "datan": sigmoidal.datan,
    "softsign": sigmoidal.softsign,
    "dsoftsign": sigmoidal.dsoftsign,
    "softplus": gated.softplus,
    "silu": lambda: gated.SILU.curve("dsilu"),
    "dsilu": gated.SILU.derivative,
    "gelu": lambda: gated.GELU.curve("dgelu"),
    "dgelu": gated.GELU.derivative,
    "gelu_tanh": lambda: gated.GELU_TANH.curve("dgelu_tanh"),
    "dgelu_tanh": gated.GELU_TANH.derivative,
    "mish": lambda: gated.MISH.curve("dmish"),
    "dmish": gated.MISH.derivative,
    "exp": powers.exp,
    "log": powers.log,
    "dlog": powers.dlog,
    "sqrt": powers.sqrt,
    "reciprocal": powers.reciprocal,
    "square": powers.square,
    "power": powers.power,
    "sin": periodic.sin,
    "cos": periodic.cos,
    "minus_sin": periodic.minus_sin,
}


@lru_cache(maxsize=4096)
def facts_of(curve: str, parameters: Parameters = ()) -> CurveFacts:
    """The facts of a curve with its constants.

    Raises:
        KeyError: there is no such curve. TypeError: it takes another number of parameters.
    """
    return CURVES[curve](*parameters)
