"""What is assumed of the elementary functions of the libraries that serve a model, and what follows for a rounded argument.

The standard for floating point does not say how exp or tanh round; libraries do (glibc, SLEEF, Eigen and onnxruntime's MLAS state
or are measured at a few units in the last place, or of an absolute error where they approximate a saturating curve). The table is
generous: several times what their tests and ours find. A curve without a row has no served error but infinity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.rounding import next_down, next_up
from mlflow_lipschitz.engine.ir.ops import Elementwise
from mlflow_lipschitz.engine.rules.curve_enclosure import curve_interval
from mlflow_lipschitz.engine.rules.curves.table import CURVES, facts_of
from mlflow_lipschitz.engine.served.formats import Format


@dataclass(frozen=True)
class Accuracy:
    """|computed f(z) − f(z)| ≤ u (relative |f(z)| + absolute + argument |z|), and what may be flushed to zero.

    `scaled` multiplies `absolute` by the product of the curve's parameters: α and γ of an exponential unit.
    """

    relative: float = 0.0
    absolute: float = 0.0
    argument: float = 0.0
    scaled: bool = False


_EXACT = Accuracy()
# What is x times a gate: a gate that is off by some u makes the product be off by that times |x|.
_GATED = Accuracy(relative=8.0, argument=16.0)
_SATURATING = Accuracy(relative=8.0, absolute=8.0)
_EXPONENTIAL_UNIT = Accuracy(relative=8.0, absolute=8.0, scaled=True)

LIBRARIES: dict[str, Accuracy] = {
    # Comparisons and changes of sign.
    "relu": _EXACT,
    "abs": _EXACT,
    # Limits that the format may have to round; one product.
    "clip": Accuracy(relative=1.0),
    "leaky_relu": Accuracy(relative=3.0),
    "square": Accuracy(relative=4.0),
    "sqrt": Accuracy(relative=4.0),
    "reciprocal": Accuracy(relative=4.0),
    "power": Accuracy(relative=16.0),
    "exp": Accuracy(relative=8.0),
    "log": Accuracy(relative=8.0, absolute=8.0),
    "softplus": _SATURATING,
    "tanh": _SATURATING,
    "sigmoid": _SATURATING,
    "erf": _SATURATING,
    "atan": _SATURATING,
    "softsign": _SATURATING,
    "sin": _SATURATING,
    "cos": _SATURATING,
    "elu": _EXPONENTIAL_UNIT,
    "celu": _EXPONENTIAL_UNIT,
    "hard_swish": _GATED,
    "silu": _GATED,
    "gelu": _GATED,
    "gelu_tanh": _GATED,
    "mish": _GATED,
}


def curve_error(op: Elementwise, z: Interval, error: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """What the library's curve of an argument off by `error` differs from the curve of the exact one, and how large it may be.

    With ẑ the served argument: |f̂(ẑ) − f(z)| ≤ |f(ẑ) − f(z)| + what the library adds at ẑ. The first is at most the steepest slope
    between times the error, and at most all that f does there.
    """
    accuracy, facts = LIBRARIES[op.curve], facts_of(op.curve, op.parameters)
    around = Interval(next_down(z.lower - error), next_up(z.upper + error))
    steepest = curve_interval(facts_of(*facts.derivative), around).magnitude
    values = curve_interval(facts, around)
    rise = torch.where(error == 0, 0.0, steepest * error)
    moved = torch.fmin(rise, values.upper - values.lower)
    absolute = accuracy.absolute
    for parameter in op.parameters if accuracy.scaled else ():
        absolute *= max(1.0, abs(parameter))
    own = accuracy.relative * values.magnitude + absolute + accuracy.argument * around.magnitude
    added = form.roundings(1) * own if accuracy != _EXACT else torch.zeros_like(own)
    return moved + added + form.tiny, values.magnitude + added


def assumed(op: Elementwise, form: Format) -> bool:
    """Whether the table says how a library computes the curve.

    A power is only known where the format holds its exponent: another one's rounding would be multiplied by a logarithm.
    """
    known = op.curve in LIBRARIES and facts_of(op.curve, op.parameters).derivative[0] in CURVES
    return known and (op.curve != "power" or form.holds(op.parameters[1]))
