"""Plots as plain values: marks with numbers in them, which one template turns into inline SVG and escapes.

What cannot be drawn is left out or put at the frame: a plot never holds a NaN or an infinite coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

WIDTH, LEFT, RIGHT, TOP = 620.0, 58.0, 8.0, 10.0
_LEAST = 1e-280


@dataclass(frozen=True)
class Mark:
    """One SVG element: its tag, class and attributes; `text` is its content, `title` what a pointer resting on it shows."""

    tag: str
    kind: str
    attributes: Mapping[str, str]
    text: str = ""
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """Marks on a canvas of `width` × `height`; `label` says in words what there is to see."""

    label: str
    marks: tuple[Mark, ...]
    height: float
    width: float = WIDTH


@dataclass(frozen=True)
class Axis:
    """Maps values between `low` and `high` to coordinates between `start` and `end`; values outside stop at the frame."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @staticmethod
    def over(values: np.ndarray, span: tuple[float, float], *, logarithmic: bool = False) -> Axis:
        """An axis that holds every finite one of `values`; a logarithmic one every positive one."""
        finite = np.asarray(values, dtype=np.float64)
        finite = finite[np.isfinite(finite) & ((finite > 0) | (not logarithmic))]
        # Half a maximal float leaves room for differences.
        low, high = (float(np.clip(f(finite), -8e307, 8e307)) if finite.size else 0.0 for f in (np.min, np.max))
        if high - low < _LEAST and max(abs(low), abs(high)) < _LEAST:
            low = high = 0.0  # what is smaller than that is drawn as nothing
        if logarithmic and high > 0:
            low = max(low, high * 1e-6)
            return Axis(low, high if high > low else low * 10, *span, logarithmic=True)
        if not high > low:
            low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
        return Axis(low, high, *span)

    def at(self, value: float) -> float:
        """The coordinate; of a NaN that of the low end."""
        value = self.low if math.isnan(value) else min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """A few round values between the ends."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = [m * 10.0**e for e in range(first, last + 1) for m in (1, 3) if -300 < e < 300]
            inside = [value for value in steps if self.low <= value <= self.high]
            return inside[:: max(1, len(inside) // 5)]
        step = _round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        values = [first * step + i * step for i in range(8)]
        return [0.0 if abs(v) < step * 1e-9 else v for v in values if v <= self.high + step * 1e-9]


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw * 0.999)


def line(kind: str, start: tuple[float, float], end: tuple[float, float], title: str = "") -> Mark:
    attributes = {"x1": _n(start[0]), "y1": _n(start[1]), "x2": _n(end[0]), "y2": _n(end[1])}
    return Mark("line", kind, attributes, title=title)


def words(kind: str, at: tuple[float, float], text: str, anchor: str = "start") -> Mark:
    return Mark("text", kind, {"x": _n(at[0]), "y": _n(at[1]), "text-anchor": anchor}, text=text)


def box(kind: str, corner: tuple[float, float], size: tuple[float, float], title: str = "") -> Mark:
    width, height = (max(value, 0.0) for value in size)
    attributes = {"x": _n(corner[0]), "y": _n(corner[1]), "width": _n(width), "height": _n(height)}
    return Mark("rect", kind, attributes, title=title)


def path(kind: str, points: Iterable[tuple[float, float]], *, closed: bool = False) -> Mark:
    """A line through points; nothing is drawn where there are none."""
    steps = " ".join(f"{'L' if i else 'M'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points))
    return Mark("path", kind, {"d": steps + ("Z" if closed and steps else "")})


def cross(kind: str, at: tuple[float, float], size: float = 3.2) -> Mark:
    """×"""
    (x, y), s = at, size
    strokes = ((x - s, y - s, x + s, y + s), (x - s, y + s, x + s, y - s))
    steps = "".join(f"M{_n(x0)} {_n(y0)}L{_n(x1)} {_n(y1)}" for x0, y0, x1, y1 in strokes)
    return Mark("path", kind, {"d": steps})


def ring(kind: str, at: tuple[float, float], size: float = 2.6) -> Mark:
    """○"""
    return Mark("circle", kind, {"cx": _n(at[0]), "cy": _n(at[1]), "r": _n(size)})


def arrow_up(kind: str, at: tuple[float, float]) -> Mark:
    """▲ where a bar goes on beyond the frame"""
    x, y = at
    return path(kind, [(x - 3.5, y + 5), (x, y), (x + 3.5, y + 5)], closed=True)


def left_axis(axis: Axis, right: float = WIDTH - RIGHT) -> list[Mark]:
    """Horizontal grid lines with their values."""
    marks = []
    for value in axis.ticks():
        y = axis.at(value)
        marks += [line("grid", (LEFT, y), (right, y)), words("tick", (LEFT - 6, y + 4), short(value), "end")]
    return marks


def bottom_axis(axis: Axis, y: float) -> list[Mark]:
    """A horizontal axis with its values below."""
    marks = [line("axis", (axis.start, y), (axis.end, y))]
    for value in axis.ticks():
        x = axis.at(value)
        marks += [line("axis", (x, y), (x, y + 4)), words("tick", (x, y + 16), short(value), "middle")]
    return marks


def short(value: float) -> str:
    """A tick's label."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.1e}"


def _n(value: float) -> str:
    """A coordinate with one digit behind the point, always a number."""
    return f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else "0"
