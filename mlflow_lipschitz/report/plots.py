"""The plots of a report. Shape tells what color tells: crosses for what is broken, dashes and rings for what is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.report.drawing import (
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Mark,
    Plot,
    arrow_up,
    bottom_axis,
    box,
    cross,
    left_axis,
    line,
    path,
    ring,
    short,
    words,
)
from mlflow_lipschitz.report.insight import BROKEN, OPEN, PROVED, RadiusCurve, Response, Sensitivity

MOST_BARS, MOST_WORST = 240, 60
_SPREAD = 30.0  # how many times the median the largest bound is before the axis becomes logarithmic
_BINS = 90


STATUS_MEANINGS: Mapping[str, str] = {
    "certified": "certified",
    "violated": "violated: a contradicting point was found",
    "undecided": "undecided",
    "error": "error",
}


@dataclass(frozen=True)
class Rows:
    """Intervals to be drawn, one per row, all (P,).

    `lower` and `upper` may be infinite or NaN: what is unknown goes on to the frame. `ids` and `statuses` are text;
    `meanings` says what each status stands for in this plot.
    """

    ids: Sequence[str]
    statuses: Sequence[str]
    lower: np.ndarray
    upper: np.ndarray
    meanings: Mapping[str, str] = field(default_factory=lambda: STATUS_MEANINGS)


def thinned(rows: Rows) -> tuple[np.ndarray, str]:
    """Which rows are drawn, from the smallest upper end to the largest, and how they were chosen, in words.

    Of many rows: the worst ones (broken first, then those with the largest ends), and evenly spaced ones of the others.
    """
    upper = np.where(np.isnan(rows.upper), np.inf, rows.upper)
    order = np.argsort(upper, kind="stable")
    total = len(order)
    if total <= MOST_BARS:
        return order, f"all {total:,} rows, sorted"
    rank = np.array([{"error": 0, "violated": 1}.get(word, 2) for word in rows.statuses])
    worst = np.lexsort((-upper, rank))[:MOST_WORST]
    others = order[~np.isin(order, worst)]
    spaced = others[np.unique(np.linspace(0, len(others) - 1, MOST_BARS - MOST_WORST).round().astype(int))]
    kept = order[np.isin(order, np.concatenate([worst, spaced]))]
    return (
        kept,
        f"{len(kept):,} of {total:,} rows, sorted: the {len(worst)} worst, and evenly spaced ones of the others",
    )


def interval_plot(rows: Rows, *, label: str, limit: float | None = None) -> Plot:
    """One vertical bar per row, from what was attained to what is certified, with the limit as a dashed line."""
    kept, _ = thinned(rows)
    height, floor = 232.0, 190.0
    lower, upper = (np.asarray(end, dtype=np.float64)[kept] for end in (rows.lower, rows.upper))
    shown = np.concatenate([lower, upper, [] if limit is None else [limit]])
    axis = Axis.over(np.append(shown, 0.0), (floor, TOP))
    if _is_spread(lower, upper):
        axis = Axis.over(shown, (floor, TOP), logarithmic=True)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(kept))
    marks = [*left_axis(axis)]
    for position, row in enumerate(kept):
        x = LEFT + (position + 0.5) * step
        marks += _bar(x, (lower[position], upper[position]), axis, (str(rows.ids[row]), str(rows.statuses[row])))
    if axis.low < 0 < axis.high:
        marks.append(line("axis", (LEFT, axis.at(0.0)), (WIDTH - RIGHT, axis.at(0.0))))
    if limit is not None and np.isfinite(limit):
        y = axis.at(limit)
        below = y < TOP + 16
        marks += [
            line("limit", (LEFT, y), (WIDTH - RIGHT, y)),
            words("limit", (LEFT + 6, y + 14 if below else y - 5), f"limit {short(limit)}"),
        ]
    scale = " (logarithmic)" if axis.logarithmic else ""
    marks.append(line("axis", (LEFT, floor), (WIDTH - RIGHT, floor)))
    marks += _legend(rows, floor + 32)
    marks.append(words("tick", (LEFT, floor + 15), f"rows, from the smallest to the largest upper end{scale}"))
    return Plot(one_line(label), tuple(marks), height)


def _is_spread(lower: np.ndarray, upper: np.ndarray) -> bool:
    finite = upper[np.isfinite(upper)]
    positive = bool(finite.size) and bool((finite > 0).all()) and not bool((lower < 0).any())
    return positive and bool(finite.max() / _SPREAD > np.median(finite))


def _bar(x: float, ends: tuple[float, float], axis: Axis, told: tuple[str, str]) -> list[Mark]:
    (lower, upper), (name, status) = ends, told
    low = axis.low if np.isnan(lower) else lower
    high = axis.high if np.isnan(upper) else upper
    bottom, top = axis.at(low), axis.at(high)
    title = one_line(f"row {name}: {short(lower)} to {short(upper)}, {status}")
    marks = [line(f"bar {status}", (x, bottom), (x, min(top, bottom - 1.5)), title)]
    if not np.isfinite(upper):
        marks.append(arrow_up(f"head {status}", (x, top - 4)))
    if status in ("violated", "error"):
        marks.append(cross(f"sign {status}", (x, bottom)))
    elif status == "undecided":
        marks.append(ring(f"sign {status}", (x, top)))
    return marks


def _legend(rows: Rows, y: float) -> list[Mark]:
    x, marks = LEFT, list[Mark]()
    for status, meaning in rows.meanings.items():
        count = sum(word == status for word in rows.statuses)
        if not count:
            continue
        marks.append(line(f"bar {status}", (x + 5, y + 2), (x + 5, y - 10)))
        if status in ("violated", "error"):
            marks.append(cross(f"sign {status}", (x + 5, y + 2)))
        elif status == "undecided":
            marks.append(ring(f"sign {status}", (x + 5, y - 10)))
        text = f"{meaning} ({count:,})"
        marks.append(words("key", (x + 14, y), text))
        x += 30 + 6.1 * len(text)
    return marks


def radius_plot(curve: RadiusCurve, *, asked: Sequence[float] = ()) -> Plot:
    """The certified fraction as steps against the radius, with the asked radii as dashed lines."""
    height, floor = 236.0, 180.0
    x = Axis.over(np.append(curve.radii, [r for r in asked]), (LEFT, WIDTH - RIGHT - 8))
    y = Axis(0.0, 1.0, floor, TOP + 6)
    marks = [mark for mark in left_axis(y)]
    for radius in asked:
        if np.isfinite(radius):
            at = x.at(radius)
            late = at > WIDTH - 120
            marks += [
                line("limit", (at, floor), (at, TOP + 6)),
                words(
                    "limit", (at + (-5 if late else 5), floor - 8), f"asked {short(radius)}", "end" if late else "start"
                ),
            ]
    marks.append(path("curve", _steps(curve.radii, curve.certified, x, y)))
    keys = [("curve", "decision certified")]
    if curve.right is not None:
        marks.append(path("curve second", _steps(curve.radii, curve.right, x, y)))
        keys.append(("curve second", "certified and right"))
    if curve.accuracy is not None:
        at = y.at(curve.accuracy)
        marks.append(line("dots", (LEFT, at), (WIDTH - RIGHT, at)))
        keys.append(("dots", f"right without perturbation: {curve.accuracy:.1%}"))
    marks += bottom_axis(x, floor)
    marks.append(words("tick", (WIDTH - RIGHT, floor + 32), "radius, units of perturbation", "end"))
    return Plot("fraction of the rows against the radius", (*marks, *_keys(keys, floor + 50)), height)


def _steps(radii: np.ndarray, values: np.ndarray, x: Axis, y: Axis) -> list[tuple[float, float]]:
    points = [(x.at(float(radii[0])), y.at(float(values[0])))]
    for i in range(1, len(radii)):
        points += [(x.at(float(radii[i - 1])), y.at(float(values[i]))), (x.at(float(radii[i])), y.at(float(values[i])))]
    return points


def _keys(keys: Sequence[tuple[str, str]], y: float) -> list[Mark]:
    x, marks = LEFT, list[Mark]()
    for kind, text in keys:
        marks += [path(kind, [(x, y - 4), (x + 22, y - 4)]), words("key", (x + 28, y), text)]
        x += 44 + 6.1 * len(text)
    return marks


_LANES = ((PROVED, "certified", "proved"), (OPEN, "undecided", "open"), (BROKEN, "violated", "wrong"))


def response_plot(response: Response) -> Plot:
    """Partial dependence above, what is proved where below: one lane for each of proved, open and wrong."""
    floor, lane = 176.0, 15.0
    x = Axis.over(response.grid, (LEFT, WIDTH - RIGHT))
    y = Axis.over(
        np.concatenate([response.low, response.high, response.mean, response.outputs.reshape(-1)]), (floor - 6, TOP)
    )
    marks = [*left_axis(y)]
    around = [
        *zip(response.grid, response.high, strict=True),
        *zip(response.grid[::-1], response.low[::-1], strict=True),
    ]
    marks.append(path("band", [(x.at(float(a)), y.at(float(b))) for a, b in around], closed=True))
    marks.append(
        path("curve", [(x.at(float(a)), y.at(float(b))) for a, b in zip(response.grid, response.mean, strict=True)])
    )
    kinds = {state: kind for state, kind, _ in _LANES}
    for span, outputs, state in zip(response.spans, response.outputs, response.span_state, strict=True):
        kind = kinds[int(state)]
        at = [(x.at(float(a)), y.at(float(b))) for a, b in zip(span, outputs, strict=True)]
        marks.append(path(f"span {kind}", at))
        if kind == "violated":
            marks.append(cross(f"sign {kind}", at[1]))
        elif kind == "undecided":
            marks.append(ring(f"sign {kind}", at[1]))
    marks += _lanes(response, x, (floor, lane))
    bottom = floor + len(_LANES) * lane + 4
    marks += bottom_axis(x, bottom)
    marks.append(words("tick", (WIDTH - RIGHT, bottom + 32), one_line(response.feature)[:60], "end"))
    label = f"output against {response.feature}, and where its direction is proved"
    return Plot(one_line(label), tuple(marks), bottom + 40)


def _lanes(response: Response, x: Axis, place: tuple[float, float]) -> list[Mark]:
    """A lane per state. Rows are gathered into a few places, where a tick is as high as the share of the place's rows in the state.

    There are as many marks for five rows as for five thousand.
    """
    floor, lane = place
    known = np.isfinite(response.at)
    edges = np.linspace(x.low, x.high, _BINS + 1)
    every, _ = np.histogram(response.at[known], edges)
    marks = []
    for number, (state, kind, word) in enumerate(_LANES):
        top, height = floor + number * lane, lane - 2
        marks.append(box("lane", (LEFT, top), (WIDTH - RIGHT - LEFT, height)))
        marks.append(words("tick", (LEFT - 6, top + 10.5), word, "end"))
        counts, _ = np.histogram(response.at[known & (response.state == state)], edges)
        for i in np.flatnonzero(counts):
            high = max(2.0, float(counts[i] / every[i]) * height)
            title = f"{counts[i]} of {every[i]} row(s) from {short(float(edges[i]))} to {short(float(edges[i + 1]))}"
            corner = (x.at(float(edges[i] + edges[i + 1]) / 2) - 1.5, top + height - high)
            marks.append(box(f"tick-box {kind}", corner, (3.0, high), title))
    return marks


def sensitivity_plot(features: Sequence[Sensitivity]) -> Plot:
    """Horizontal bars: certified (pale, to the end) and attained (dark), per unit of perturbation."""
    moving = [feature for feature in features if feature.unit > 0]
    left, high = 150.0, 18.0
    ends = np.array([value for f in moving for value in (f.upper * f.unit, f.lower * f.unit)])
    x = Axis.over(np.append(ends, 0.0), (left, WIDTH - 70))
    marks = []
    for i, feature in enumerate(moving):
        y = TOP + i * high
        upper, lower = (x.at(value * feature.unit) for value in (feature.upper, feature.lower))
        name = one_line(feature.feature)
        marks.append(words("name", (left - 6, y + 11), name if len(name) <= 22 else f"{name[:21]}…", "end"))
        told = (
            f"{name}: certified {short(feature.upper * feature.unit)}, attained {short(feature.lower * feature.unit)}"
        )
        marks.append(box("certified-bar", (left, y + 2), (upper - left, 11.0), told))
        marks.append(box("attained-bar", (left, y + 5), (lower - left, 5.0), told))
        text = short(feature.upper * feature.unit) if np.isfinite(feature.upper) else "no bound ▸"
        marks.append(words("tick", (min(upper, WIDTH - 70) + 5, y + 11), text))
    bottom = TOP + len(moving) * high + 2
    marks += bottom_axis(x, bottom)
    marks += [
        box("certified-bar", (left, bottom + 26), (18.0, 11.0)),
        words("key", (left + 24, bottom + 35), "certified: it is never more"),
        box("attained-bar", (left + 210, bottom + 29), (18.0, 5.0)),
        words("key", (left + 234, bottom + 35), "attained: it is at least this at some point"),
    ]
    return Plot("largest derivative in each feature, per unit of perturbation", tuple(marks), bottom + 44)


def picture(values: np.ndarray, ends: tuple[float, float], label: str) -> Plot:
    """(height, width) gray values between `ends`, in sixteen shades, each one path."""
    low, high = ends
    span = high - low if np.isfinite(high - low) and high > low else 1.0
    shares = np.nan_to_num((values - low) / span, nan=0.0, posinf=1.0, neginf=0.0)
    shades = (np.clip(shares, 0.0, 1.0) * 15).round().astype(int)
    marks = []
    for shade in np.unique(shades):
        steps = "".join(f"M{column} {row}h1v1h-1z" for row, column in np.argwhere(shades == shade))
        gray = 255 * shade // 15
        marks.append(Mark("path", "pixel", {"d": steps, "style": f"fill:rgb({gray},{gray},{gray})"}))
    return Plot(one_line(label), tuple(marks), float(values.shape[0]), float(values.shape[1]))
