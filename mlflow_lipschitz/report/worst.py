"""The section of the rows to look at: their values, and the points found near them."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.report.content import ReportContent, number
from mlflow_lipschitz.report.insight import Absent, Found, WorstRow
from mlflow_lipschitz.report.layout import Figure, Section, Table
from mlflow_lipschitz.report.plots import picture

MOST_FEATURES = 12
UNFOLDED = 2  # rows whose values are shown without a click
_LIKE_NUMBERS = 3  # points side by side in a table


def worst(content: ReportContent) -> Section:
    """The rows that failing checks name, and the worst others, with what was found in their regions."""
    found = content.insight.worst
    title = "Rows to look at"
    if isinstance(found, Absent):
        return Section(title, absent=found.reason)
    lead = (
        "Rows that failing checks name come first, then the worst others. Points near them were found by searching from"
        " the row: facts about the model, computed in float64 on the certified graph."
    )
    return Section(title, lead, parts=[_row(content, row, place) for place, row in enumerate(found)])


def _row(content: ReportContent, row: WorstRow, place: int) -> Section:
    met = [
        Found(
            f"{example.check_id}",
            str(example).removeprefix(f"row {example.point_id}: "),
            _values(content, example.point),
        )
        for example in content.counterexamples
        if example.point_id == row.point_id
    ]
    points = [*met, *row.found]
    notes = [
        f"Status {row.status}. Output change per unit of perturbation: attained {number(row.lower)}, certified never more than"
        f" {number(row.upper)}.",
        "" if row.radius is None else f"The decision is certified within a distance of {number(row.radius)}.",
        *(f"{point.kind}: {point.what}." for point in points),
        row.missing,
    ]
    return Section(
        f"Row {row.point_id}",
        notes=[note for note in notes if note],
        pictures=_pictures(content, row, points),
        tables=[_table(content, row, points, place)],
    )


def _values(content: ReportContent, point: object) -> np.ndarray:
    assert hasattr(point, "values")
    return np.array(list(point.values()), dtype=np.float64)


def _pictures(content: ReportContent, row: WorstRow, points: list[Found]) -> list[Figure]:
    image = content.insight.image
    if image is None:
        return []
    shown = [("the row", row.point), *((point.kind, point.point) for point in points)]
    grays = [(name, values.reshape(image).mean(axis=0)) for name, values in shown]
    everything = np.concatenate([gray.reshape(-1) for _, gray in grays])
    finite = everything[np.isfinite(everything)]
    ends = (float(finite.min(initial=0.0)), float(finite.max(initial=0.0)))
    return [Figure(picture(gray, ends, f"row {row.point_id}, {name}"), name) for name, gray in grays]


def _table(content: ReportContent, row: WorstRow, points: list[Found], place: int) -> Table:
    """The features that moved most, as they are in the row and at each point found."""
    shown = points[:_LIKE_NUMBERS]
    moved = np.zeros(len(row.point))
    for point in shown:
        share = np.abs(point.point - row.point) / np.where(row.reach > 0, row.reach, np.inf)
        moved = np.maximum(moved, np.nan_to_num(share, nan=0.0))
    names = content.insight.feature_names
    order = (
        range(len(names)) if len(names) <= MOST_FEATURES else np.sort(np.argsort(-moved, kind="stable")[:MOST_FEATURES])
    )
    rows = [
        [names[i], float(row.point[i]), f"± {number(float(row.reach[i]))}" if row.reach[i] > 0 else "fixed"]
        + [float(point.point[i]) for point in shown]
        for i in (int(i) for i in order)
    ]
    header = ["feature", "row", "may move by", *(point.kind for point in shown)]
    title = (
        f"The {len(rows)} of {len(names):,} inputs that moved most" if len(names) > len(rows) else "Values of this row"
    )
    return Table(title, header, rows, closed=place >= UNFOLDED or content.insight.image is not None)
