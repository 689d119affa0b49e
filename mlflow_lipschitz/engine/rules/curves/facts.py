"""What has to be known of an elementwise curve; everything else about it is derived (rules/curve_enclosure.py).

To add a curve: add its row to the module of its family, its derivative's row if that is new, its exact meaning to
tests/exact.py and its case to tests/cases.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Curve = Callable[[Tensor], Tensor]
Parameters = tuple[float, ...]
Name = tuple[str, Parameters]

# A derivative of a derivative is only ever guessed, as a slope: it has no row.
UNDEFINED: Name = ("undefined", ())


@dataclass(frozen=True)
class Piece:
    """A closed interval up to `end`, on which the curve is convex (+1), concave (−1) or affine (0).

    `value` and `slope` are the piece's own, where the curve or its slope jumps at an end of it; None: those of the curve.
    """

    curvature: int
    end: float = math.inf
    value: Curve | None = None
    slope: Curve | None = None


@dataclass(frozen=True)
class Period:
    """A curve that repeats: its maximum is reached at `top` + k·`length`, its minimum at `bottom` + k·`length`."""

    length: float
    top: float
    bottom: float


@dataclass(frozen=True)
class CurveFacts:
    """What is known of a curve f: R → R, possibly set-valued at finitely many points (a Clarke derivative at a kink).

    Attributes:
        value: f(z), off by at most `ulps` · 2⁻⁵² · |f(z)| + `absolute`.
        slope: f′ where it exists, off by at most twice that (relative to |f′|); any value at a kink.
        derivative: the row of the Clarke derivative.
        pieces: from −∞ to ∞. Two neighbors may differ at their common end: f's set there is everything between.
        stationary: where f may turn between rising and falling.
        range: values f never leaves; catches underflow and rounding.
        jumps: (place, height) of every jump.
        domain: the open interval on which f is defined; outside nothing is known of it. `closed` adds the lower end.
        pole: a place without a value; of an interval that holds it nothing is known.
        bend: bound of |f″|, in place of `pieces` where there are too many of them; needs `period`.
    """

    value: Curve
    slope: Curve
    derivative: Name
    pieces: tuple[Piece, ...]
    stationary: tuple[float, ...] = ()
    range: tuple[float, float] = (-math.inf, math.inf)
    ulps: int = 0
    absolute: float = 0.0
    jumps: tuple[tuple[float, float], ...] = ()
    domain: tuple[float, float] = (-math.inf, math.inf)
    closed: bool = False
    pole: float | None = None
    bend: float | None = None
    period: Period | None = None

    @cached_property
    def spans(self) -> tuple[tuple[Piece, float, float], ...]:
        """Every piece with its two ends."""
        starts = (-math.inf, *(piece.end for piece in self.pieces[:-1]))
        return tuple((piece, start, piece.end) for piece, start in zip(self.pieces, starts, strict=True))

    @cached_property
    def curved(self) -> bool:
        return self.bend is not None or any(piece.curvature for piece in self.pieces)

    @cached_property
    def flat(self) -> bool:
        """Whether every piece is a constant, as those of a kink's derivative are."""
        return all((piece.slope or self.slope) is zero for piece in self.pieces)

    @cached_property
    def corners(self) -> tuple[float, ...]:
        """Where a polygon around the curve may have corners: kinks between more than two pieces."""
        kinked = not self.curved or any(piece.slope is not None for piece in self.pieces)
        return tuple(piece.end for piece in self.pieces[:-1]) if kinked and len(self.pieces) > 2 else ()

    @cached_property
    def turns(self) -> tuple[float, ...]:
        """Places inside an interval where an extreme value may be reached."""
        return tuple(dict.fromkeys((*self.stationary, *(place for place, _ in self.jumps))))


def constant(height: float) -> Curve:
    return lambda z: torch.full_like(z, height)


def zero(z: Tensor) -> Tensor:
    return torch.zeros_like(z)


def choose(z: Tensor, place: float, below: Tensor, above: Tensor) -> Tensor:
    """`below` left of the place, `above` right of it, and what is between at the place."""
    # Of two Python numbers torch.where makes float32; of tensors of z's type it does not.
    return torch.where(z > place, above, torch.where(z < place, below, (below + above) / 2))
