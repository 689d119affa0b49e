"""What every elementwise curve means: a list of pieces, each a line or a smooth expression in jets (checker/jets.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mlflow_lipschitz.checker import jets
from mlflow_lipschitz.checker.jets import Jet, Range

Parameters = tuple[float, ...]
Name = tuple[str, Parameters]
Expression = Callable[[Jet, int], Jet]


class Piece(NamedTuple):
    """A curve up to `end`: slope and height of a line, or an expression (z, order) → its jet."""

    end: float
    line: tuple[float, float] | None = None
    jet: Expression | None = None
    affine: bool = False


class Row(NamedTuple):
    """A curve: two neighbors may differ at their common end, where its value is everything between (Clarke).

    `low`, `high`: numbers it never leaves. `start`, `closed`: where its domain begins. `pole`: no value at 0.
    """

    pieces: tuple[Piece, ...]
    derivative: Name | None = None
    low: float = -math.inf
    high: float = math.inf
    start: float = -math.inf
    closed: bool = False
    pole: bool = False
    jumps: bool = False


def _smooth(jet: Expression, derivative: str | None = None, low: float = -math.inf, high: float = math.inf) -> Row:
    return Row((Piece(math.inf, jet=jet),), (derivative, ()) if derivative else None, low, high)


def _lines(*pieces: tuple[float, float, float], derivative: Name | None = None) -> Row:
    """Of (end, slope, height)."""
    return Row(
        tuple(Piece(end, (slope, height)) for end, slope, height in pieces), derivative, jumps=derivative is None
    )


def _slope(expression: Expression) -> Expression:
    return lambda z, order: jets.derivative_of(expression(z, order + 1))


def _primitive(value: Callable[[Range], Range], slope: Expression) -> Expression:
    """The jet of a function that is 0 order above its derivative."""
    return lambda z, order: jets.integral(value(z[0]), slope(z, order - 1) if order else [], order)


def _rising(function: jets.Function) -> Callable[[Range], Range]:
    return lambda u: jets.rising(function, u)


def _each(function: Callable[[float], float]) -> jets.Function:
    """Of Python's own: NumPy has no error function."""
    return lambda x: np.reshape(np.fromiter(map(function, np.ravel(x).tolist()), np.float64, np.size(x)), np.shape(x))


_ROOT_HALF, _BELL, _DENSITY = (jets.near(x) for x in (math.sqrt(0.5), 2 / math.sqrt(math.pi), math.sqrt(0.5 / math.pi)))
_RATE, _CUBE = jets.near(2 * math.sqrt(2 / math.pi)), jets.near(0.08943 * math.sqrt(2 / math.pi), 4.0)


def _sigmoid(z: Jet, order: int) -> Jet:
    return jets.logistic(z, order)[0]


def _derf(z: Jet, order: int) -> Jet:
    return jets.scaled(_BELL, jets.exponential(jets.opposite(_square(z)), order))


def _square(z: Jet) -> Jet:
    return jets.power(z[0], jets.ONE, 2.0, 2)


def _datan(z: Jet, order: int) -> Jet:
    return jets.reciprocal(jets.total([jets.ONE], _square(z)), order)


def _cdf(z: Jet, order: int) -> Jet:
    density = jets.scaled(_DENSITY, jets.exponential(jets.scaled(jets.exactly(-0.5), _square(z)), order))
    tail = jets.rising(lambda x: _each(math.erfc)(-x), jets.times(_ROOT_HALF, z[0]))
    # An error function may lose what the rounding of its squared argument costs.
    loss = 8 * jets.ULP * np.minimum(np.maximum(np.abs(z[0].low), np.abs(z[0].high)), 40.0) ** 2
    tail = jets.times(jets.limited(tail, 0.0, 2.0), Range(1 - loss, 1 + loss))
    return jets.integral(jets.times(jets.exactly(0.5), tail), density, order)


def _gate_tanh(z: Jet, order: int) -> Jet:
    logit = jets.product(z, jets.total([_RATE], jets.scaled(_CUBE, _square(z))), 3)
    return jets.logistic(logit, order)[0]


def _softplus(z: Jet, order: int) -> Jet:
    return _primitive(_rising(lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))), _sigmoid)(z, order)


def _gated(gate: Expression) -> Expression:
    return lambda z, order: jets.product(z, gate(z, order), order)


_GATED: dict[str, tuple[Expression, float]] = {
    "silu": (_gated(_sigmoid), -0.27847),
    "gelu": (_gated(_cdf), -0.16998),
    "gelu_tanh": (_gated(_gate_tanh), -0.17005),
    "mish": (_gated(lambda z, order: jets.tanh_and_bell(_softplus(z, order), order)[0]), -0.30885),
}


def _tanh(z: Jet, order: int) -> Jet:
    return jets.tanh_and_bell(z, order)[0]


def _dtanh(z: Jet, order: int) -> Jet:
    return jets.tanh_and_bell(z, order)[1]


def _dsigmoid(z: Jet, order: int) -> Jet:
    return jets.scaled(jets.exactly(0.25), jets.tanh_and_bell(jets.scaled(jets.exactly(0.5), z), order)[1])


def _dsoftsign(side: float) -> Expression:
    """1 / (1 + |z|)² right of 0 (side = 1) or left of it."""

    def expression(z: Jet, order: int) -> Jet:
        shrunk = jets.reciprocal(jets.total([jets.ONE], jets.scaled(jets.exactly(side), z)), order)
        return jets.product(shrunk, shrunk, order)

    return expression


def _two_sided(expression: Callable[[float], Expression], derivative: str | None, low: float) -> Row:
    pieces = (Piece(0.0, jet=expression(-1.0)), Piece(math.inf, jet=expression(1.0)))
    return Row(pieces, (derivative, ()) if derivative else None, low, 1.0)


def _softsign(side: float) -> Expression:
    return _primitive(_rising(lambda x: x / (1 + np.abs(x))), _dsoftsign(side))


def _hard_swish(z: Jet, order: int) -> Jet:
    return jets.scaled(jets.near(1 / 6), jets.product(z, jets.total(z, [jets.exactly(3.0)]), order))


def _middle(left: float, jet: Expression, right: tuple[float, float], derivative: Name | None) -> Row:
    """0 up to `left`, a smooth curve up to its opposite, a line from there on."""
    jumps = derivative is None  # then the middle is the derivative of a parabola
    pieces = (Piece(left, (0.0, 0.0)), Piece(-left, jet=jet, affine=jumps), Piece(math.inf, right))
    return Row(pieces, derivative, jumps=jumps)


def _elu(alpha: float, gamma: float) -> Expression:
    steep = jets.times(jets.exactly(alpha), jets.exactly(gamma))
    slope: Expression = lambda z, order: jets.scaled(steep, jets.exponential(z, order))  # noqa: E731
    return _primitive(lambda z: jets.times(steep, jets.rising(np.expm1, z)), slope)


def _celu(alpha: float) -> Expression:
    inverse = jets.falling(np.reciprocal, jets.exactly(alpha))
    slope: Expression = lambda z, order: jets.exponential(jets.scaled(inverse, z), order)  # noqa: E731
    value = lambda z: jets.times(jets.exactly(alpha), jets.rising(np.expm1, jets.times(inverse, z)))  # noqa: E731
    return _primitive(value, slope)


def _power(coefficient: float, exponent: float) -> Row:
    """coefficient · z ** exponent; the coefficient may have been rounded, as may an exponent that is no multiple of 1/2."""
    whole = exponent.is_integer()
    flat = (coefficient * exponent, exponent - 1 if exponent not in (0, 1) else 0.0)
    factor = jets.near(coefficient, 4.0)
    piece = Piece(math.inf, jet=lambda z, order: jets.power(z[0], factor, exponent, order), affine=exponent == 1)
    if exponent == 0 or coefficient == 0:
        piece = Piece(math.inf, (0.0, coefficient if exponent == 0 else 0.0))
    signed = whole and exponent % 2
    return Row(
        (piece,),
        ("power", flat) if abs(exponent) < jets.WHOLE else None,
        low=-math.inf if signed or coefficient < 0 else 0.0,
        high=math.inf if signed or coefficient > 0 else 0.0,
        start=-math.inf if whole else 0.0,
        closed=exponent > 0,
        pole=whole and exponent < 0,
    )


def _wave(quarter: int, derivative: str | None) -> Row:
    def expression(z: Jet, order: int) -> Jet:
        turns = [jets.wave(z[0], (quarter - k) % 4) for k in range(order + 1)]
        return [jets.times(jets.near(1 / math.factorial(k)), turn) if k > 1 else turn for k, turn in enumerate(turns)]

    return _smooth(expression, derivative, -1.0, 1.0)


_HALF_TURN = math.nextafter(math.pi / 2, 2)
_log = _primitive(_rising(np.log), lambda z, order: jets.reciprocal(z, order))

ROWS: dict[str, Callable[..., Row]] = {
    "relu": lambda: _lines((0.0, 0.0, 0.0), (math.inf, 1.0, 0.0), derivative=("step", (0.0, 1.0))),
    "leaky_relu": lambda a: _lines((0.0, a, 0.0), (math.inf, 1.0, 0.0), derivative=("step", (a, 1.0))),
    "abs": lambda: _lines((0.0, -1.0, 0.0), (math.inf, 1.0, 0.0), derivative=("step", (-1.0, 1.0))),
    "step": lambda left, right: _lines((0.0, 0.0, left), (math.inf, 0.0, right)),
    "clip": lambda a, b: _lines((a, 0.0, a), (b, 1.0, 0.0), (math.inf, 0.0, b), derivative=("window", (a, b))),
    "window": lambda a, b: _lines((a, 0.0, 0.0), (b, 0.0, 1.0), (math.inf, 0.0, 0.0)),
    "hard_swish": lambda: _middle(-3.0, _hard_swish, (1.0, 0.0), ("dhard_swish", ())),
    "dhard_swish": lambda: _middle(-3.0, _slope(_hard_swish), (0.0, 1.0), None),
    "elu": lambda a, g: Row((Piece(0.0, jet=_elu(a, g)), Piece(math.inf, (g, 0.0))), ("delu", (a, g))),
    "delu": lambda a, g: Row((Piece(0.0, jet=_slope(_elu(a, g))), Piece(math.inf, (0.0, g))), jumps=True),
    "celu": lambda a: Row((Piece(0.0, jet=_celu(a)), Piece(math.inf, (1.0, 0.0))), ("dcelu", (a,))),
    "dcelu": lambda a: Row((Piece(0.0, jet=_slope(_celu(a))), Piece(math.inf, (0.0, 1.0)))),
    "tanh": lambda: _smooth(_tanh, "dtanh", -1.0, 1.0),
    "dtanh": lambda: _smooth(_dtanh, low=0.0, high=1.0),
    "sigmoid": lambda: _smooth(_sigmoid, "dsigmoid", 0.0, 1.0),
    "dsigmoid": lambda: _smooth(_dsigmoid, low=0.0, high=0.25),
    "erf": lambda: _smooth(_primitive(_rising(_each(math.erf)), _derf), "derf", -1.0, 1.0),
    "derf": lambda: _smooth(_derf, low=0.0),
    "atan": lambda: _smooth(_primitive(_rising(np.arctan), _datan), "datan", -_HALF_TURN, _HALF_TURN),
    "datan": lambda: _smooth(_datan, low=0.0, high=1.0),
    "softsign": lambda: _two_sided(_softsign, "dsoftsign", -1.0),
    "dsoftsign": lambda: _two_sided(_dsoftsign, None, 0.0),
    "softplus": lambda: _smooth(_softplus, "sigmoid", 0.0),
    **{name: lambda name=name, f=f: _smooth(f[0], "d" + name, f[1]) for name, f in _GATED.items()},
    **{"d" + name: lambda f=f: _smooth(_slope(f[0]), low=-0.13, high=1.13) for name, f in _GATED.items()},
    "exp": lambda: _smooth(jets.exponential, "exp", 0.0),
    "log": lambda: _smooth(_log, "dlog")._replace(start=0.0),
    "dlog": lambda: _smooth(jets.reciprocal, low=0.0)._replace(start=0.0),
    "sqrt": lambda: _power(1.0, 0.5)._replace(derivative=("power", (0.5, -0.5))),
    "reciprocal": lambda: _power(1.0, -1.0),
    "square": lambda: _power(1.0, 2.0),
    "power": _power,
    "sin": lambda: _wave(1, "cos"),
    "cos": lambda: _wave(0, "minus_sin"),
    "minus_sin": lambda: _wave(3, None),
}


@lru_cache(maxsize=4096)
def row_of(curve: str, parameters: Parameters = ()) -> Row:
    """The meaning of a curve with its constants.

    Raises:
        KeyError: there is no such curve. TypeError: it takes another number of constants. ValueError: they mean nothing.
    """
    if curve not in ROWS:
        raise KeyError(
            f"the checker knows no curve {curve!r}: the certificate was made by a newer version; update this one"
        )
    bounds = curve in ("clip", "window")  # may be infinite
    if any(math.isnan(p) or (math.isinf(p) and not bounds) for p in parameters) or (
        bounds and parameters[0] > parameters[1]
    ):
        raise ValueError(f"the constants {parameters} of the curve {curve!r} have no meaning: export the model again")
    with np.errstate(all="ignore"):
        return ROWS[curve](*map(float, parameters))
