"""The parts of a report below its checks: what each shows, in which order, and how plots become tables as well."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.report.content import ReportContent
from mlflow_lipschitz.report.insight import BROKEN, OPEN, PROVED, Absent, LayerTable, RadiusCurve
from mlflow_lipschitz.report.layout import Figure, Section, Table
from mlflow_lipschitz.report.plots import Rows, interval_plot, radius_plot, response_plot, sensitivity_plot, thinned
from mlflow_lipschitz.report.worst import worst

_TABLE_RADII = 11
SHOWN_ROWS = 50


def sections(content: ReportContent) -> list[Section]:
    """Everything below the checks, in the order of reading; figures that there are none of come last, with their reasons."""
    made = [
        bounds(content),
        radius(content),
        directions(content),
        sensitivities(content),
        worst(content),
        comparison(content),
        layers(content),
    ]
    missing = [f"{section.title}: {section.absent}." for section in made if section.absent]
    shown = [section for section in made if not section.absent]
    return [*shown, Section("Not in this report", notes=missing)] if missing else shown


def bounds(content: ReportContent) -> Section:
    """Bounds of every row, with the threshold."""
    limits = [c.threshold for c in content.verdict.checks if c.type == "lipschitz_at_most" and c.threshold is not None]
    limit = min(limits, default=None)
    rows = _bounded_rows(content, limit)
    _, how = thinned(rows)
    plot = interval_plot(rows, label="Lipschitz bounds per row: attained to certified", limit=limit)
    lead = (
        "How fast the output can change around each row. The upper end is certified: nowhere in the row's region is the"
        " output faster. The lower end was attained at a point. What lies between is not known."
    )
    return Section(
        "Bounds per row", lead, figures=[Figure(plot, f"Output change per {content.unit}; {how}.", row_table(content))]
    )


_AGAINST_LIMIT = {
    "certified": "proved within the limit",
    "undecided": "not proved within",
    "violated": "attained above",
    "error": "error",
}
_SIGN_MEANINGS = {"certified": "one sign proved", "undecided": "open", "violated": "wrong direction met"}


def _bounded_rows(content: ReportContent, limit: float | None) -> Rows:
    """The rows' bounds; with a limit, each row's status is about that limit alone."""
    frame = content.frame
    ids, statuses = frame["point_id"].astype(str).tolist(), frame["status"].tolist()
    lower, upper = (frame[f"lipschitz_{end}"].to_numpy(dtype=np.float64) for end in ("lower", "upper"))
    if limit is None:
        return Rows(ids, statuses, lower, upper)
    kinds = np.select(
        [frame["status"] == "error", lower > limit, ~(upper <= limit)], ["error", "violated", "undecided"], "certified"
    )
    return Rows(ids, kinds.tolist(), lower, upper, _AGAINST_LIMIT)


def row_table(content: ReportContent) -> Table:
    """The worst rows of the bounds table."""
    order = {"error": 0, "violated": 1, "undecided": 2, "certified": 3}
    frame = content.frame
    worst = frame.assign(_order=frame["status"].map(order)).sort_values(
        ["_order", "lipschitz_upper"], ascending=[True, False], kind="stable"
    )
    names = {
        "point_id": "row",
        "status": "status",
        "lipschitz_lower": "attained",
        "lipschitz_upper": "certified",
        "radius": "radius",
        "seconds": "seconds",
    }
    shown = [name for name in names if name in frame]
    title = f"The {min(SHOWN_ROWS, len(frame))} worst of {len(frame):,} rows (all of them: points.parquet)"
    rows = [list(row) for row in worst[shown].head(SHOWN_ROWS).itertuples(index=False)]
    return Table(title, [names[name] for name in shown], rows, closed=True)


def radius(content: ReportContent) -> Section:
    """Certified fraction against the radius."""
    curve = content.insight.radius_curve
    title = "How far the decision holds"
    if isinstance(curve, Absent):
        return Section(title, absent=curve.reason)
    asked = sorted({float(c.threshold) for c in content.verdict.checks if c.type == "radius_at_least" and c.threshold})
    caption = f"Fraction of the {len(content.frame):,} rows whose decision is proved not to change within a radius. {curve.labels}"
    lead = (
        "A radius is certified, or nothing is: a decision that changes just beyond it, or not at all, looks the same."
    )
    figure = Figure(radius_plot(curve, asked=asked), caption, _radius_table(curve))
    return Section(title, lead, figures=[figure])


def _radius_table(curve: RadiusCurve) -> Table:
    chosen = np.unique(np.linspace(0, len(curve.radii) - 1, _TABLE_RADII).round().astype(int))
    header = ["radius", "decision certified"] + ["certified and right"] * (curve.right is not None)
    rows = []
    for i in chosen:
        row = [float(curve.radii[i]), f"{curve.certified[i]:.1%}"]
        rows.append(row if curve.right is None else [*row, f"{curve.right[i]:.1%}"])
    return Table("The same as a table", header, rows, closed=True)


def directions(content: ReportContent) -> Section:
    """Features with a direction: computed response, and the certified range of the derivative."""
    found = content.insight.responses
    title = "Directions"
    figures = [] if isinstance(found, Absent) else [_response(content, name) for name in found]
    figures += [_derivative(content, name) for name in content.derivatives]
    if not figures:
        return Section(title, absent=found.reason if isinstance(found, Absent) else "no check names a feature")
    lead = (
        "The curve is the mean output while one feature moves and the others stay, the band holds four fifths of the rows:"
        " computed at some values, not proved. Short pieces are single rows within their regions. The lanes below say"
        " what is proved of the direction in each row's whole region; the higher a tick, the more of the rows at that place."
    )
    return Section(title, lead, figures=figures)


def _response(content: ReportContent, check_id: str) -> Figure:
    found = content.insight.responses
    assert not isinstance(found, Absent)
    response = found[check_id]
    counts = {state: int(np.sum(response.state == state)) for state in (PROVED, OPEN, BROKEN)}
    caption = (
        f"{check_id}: {response.feature} proved {response.direction} for {counts[PROVED]:,} rows, open for"
        f" {counts[OPEN]:,}, wrong direction met for {counts[BROKEN]:,}. Curve over {response.averaged} rows, pieces of"
        f" {len(response.spans)}; upwards the output, to the right {response.feature}."
    )
    rows = [
        [float(v) for v in line]
        for line in zip(response.grid[::4], response.mean[::4], response.low[::4], response.high[::4], strict=True)
    ]
    header = [response.feature, "mean output", "10th percentile", "90th percentile"]
    return Figure(response_plot(response), caption, Table("The curve as a table", header, rows, closed=True))


def _derivative(content: ReportContent, feature: str) -> Figure:
    lower, upper = content.derivatives[feature]
    broken = {example.point_id for example in content.counterexamples if example.feature == feature}
    decided = np.where((lower >= 0) | (upper <= 0), "certified", "undecided").tolist()
    ids = content.frame["point_id"].astype(str).tolist()
    statuses = ["violated" if point in broken else word for point, word in zip(ids, decided, strict=True)]
    rows = Rows(ids, statuses, lower, upper, _SIGN_MEANINGS)
    kept, how = thinned(rows)
    plot = interval_plot(rows, label=f"certified range of the derivative in {feature}")
    spaced = kept[np.unique(np.linspace(0, len(kept) - 1, 9).round().astype(int))] if len(kept) else kept
    table = [[ids[i], statuses[i], float(lower[i]), float(upper[i])] for i in spaced]
    header = ["row", "sign", "at least", "at most"]
    caption = f"Certified range of the derivative in {feature}, output per unit of it; {how}."
    return Figure(plot, caption, Table("Some rows as a table", header, table, closed=True))


def sensitivities(content: ReportContent) -> Section:
    """Which features move the output most."""
    found = content.insight.sensitivities
    title = "Sensitivity to each feature"
    if isinstance(found, Absent):
        return Section(title, absent=found.reason)
    rows = [
        [
            f.feature,
            f.lower,
            f.upper,
            f.upper * f.unit if f.unit > 0 else "does not move",
            f.unit if f.unit > 0 else "–",
        ]
        for f in found
    ]
    header = [
        "feature",
        "attained per unit of the feature",
        "certified",
        "certified per unit of perturbation",
        "that unit",
    ]
    table = Table("The same as a table", header, rows, closed=True)
    lead = "The largest size of the derivative in one feature, over all rows and their regions. It is no feature importance."
    moving = sum(f.unit > 0 for f in found)
    if not moving:
        return Section(title, lead, tables=[table])
    caption = f"The {moving} features with the largest bounds, per {content.unit}."
    return Section(title, lead, figures=[Figure(sensitivity_plot(found), caption, table)])


def comparison(content: ReportContent) -> Section:
    """This model against the baseline."""
    found = content.insight.comparison
    title = "Against the baseline"
    if isinstance(found, Absent):
        return Section(title, absent=found.reason)
    words = {True: "better", False: "worse", None: "–"}
    rows = [
        [f.metric.removeprefix("lipschitz/"), f.baseline, f.now, _change(f.baseline, f.now), words[f.better]]
        for f in found.figures
    ]
    lead = f"Attested bounds of {found.uri}, on the same rows. Bounds are compared, not the true constants."
    return Section(title, lead, tables=[Table("", ["figure", "baseline", "this model", "change", ""], rows)])


def _change(before: float | None, now: float | None) -> str:
    if not before or now is None:
        return "–"
    return f"{(now - before) / before:+.1%}"


def layers(content: ReportContent) -> Section:
    """Where the size of a bound, and its looseness, come from."""
    found = content.insight.layers
    title = "Where the bound comes from"
    if isinstance(found, Absent):
        return Section(title, absent=found.reason)
    header = ["layer", "kind", "size", "norm", "condition", "stable rank", "open units"]
    rows = [
        [
            layer.name or "–",
            layer.kind,
            layer.size,
            layer.norm,
            layer.condition,
            layer.stable_rank,
            "–" if layer.unstable is None else "all (smooth)" if layer.smooth else f"{layer.unstable:.0%}",
        ]
        for layer in found.layers
    ]
    return Section(title, _layers_lead(found), tables=[Table("", header, rows)])


def _layers_lead(found: LayerTable) -> str:
    which = "" if len(found.layers) == found.total else f" {len(found.layers)} of {found.total} layers are shown."
    return (
        "Norms say how much a layer can stretch distances; a large one makes a large bound. Open units are those whose side of a"
        f" kink is not known over the region (mean of {found.rows} rows); many of them make a loose bound. Norms are"
        f" computed, not proved.{which}"
    )
