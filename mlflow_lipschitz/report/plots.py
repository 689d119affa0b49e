"""Two plots as inline SVG: bounds of every row, and where each derivative may lie. No script, no link, no font."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 600, 190, 56, 12, 26


def interval_plot(
    lower: np.ndarray, upper: np.ndarray, statuses: Sequence[str], *, label: str, limit: float | None = None
) -> str:
    """One vertical bar per row from lower to upper, rows sorted by upper bound; an infinite end touches the frame.

    Args:
        lower, upper: (P,), may be infinite.
        statuses: (P,) status per row, becomes the bar's CSS class.
        label: what is plotted, with its unit.
        limit: a threshold to draw as a dashed line.
    """
    order = np.argsort(upper, kind="stable")
    low, high = _range(np.concatenate([lower, upper, [0.0 if limit is None else limit]]))
    step = (WIDTH - LEFT - 4) / max(1, len(order))
    bars = []
    for position, row in enumerate(order):
        x = LEFT + (position + 0.5) * step
        y0, y1 = (_height(value, low, high) for value in (lower[row], upper[row]))
        bars.append(
            f'<line class="{escape(str(statuses[row]))}" x1="{x:.1f}" x2="{x:.1f}" y1="{y0:.1f}" '
            f'y2="{min(y1, y0 - 1):.1f}" stroke-width="{max(1.0, min(6.0, 0.7 * step)):.1f}"/>'
        )
    marks = [_mark(value, low, high, "axis") for value in (low, high)]
    if low < 0.0 < high:
        marks.append(_mark(0.0, low, high, "zero"))
    if limit is not None:
        marks.append(_mark(limit, low, high, "limit"))
    title = f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(label)} · {len(order)} rows, sorted</text>'
    body = "".join([*marks, *bars, title])
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    return (low, high) if high > low else (low, low + 1.0)


def _height(value: float, low: float, high: float) -> float:
    share = (min(max(value, low), high) - low) / (high - low)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _mark(value: float, low: float, high: float, kind: str) -> str:
    y = _height(value, low, high)
    return (
        f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - 4}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="{kind}" text-anchor="end" x="{LEFT - 5}" y="{y + 4:.1f}">{value:.3g}</text>'
    )
