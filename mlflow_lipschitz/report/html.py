"""`report.html`: one file without a link or a script, made for MLflow's narrow artifact viewer.

Every piece of text passes `_text`: feature names, model names and messages are the user's data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd

from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.report.content import NOT_MEANT, ReportContent, number, verdict_word
from mlflow_lipschitz.report.plots import interval_plot

SHOWN_ROWS = 50
_FEW = 6

_STYLE = """
:root{color-scheme:light dark;--good:#1a7f37;--bad:#cf222e;--unsure:#9a6700;--line:#8888}
body{font:14px/1.45 system-ui,sans-serif;margin:0 auto;padding:12px;max-width:660px;overflow-wrap:anywhere}
h1{font-size:18px;border-left:6px solid;padding-left:10px}h2{font-size:15px;margin:22px 0 6px}
.passed,.ok{color:var(--good)}.blocked,.FAIL,.ERROR,.error{color:var(--bad)}.warn,.info{color:var(--unsure)}
table{border-collapse:collapse;width:100%;font-size:12.5px}
th,td{text-align:left;padding:3px 6px;border-bottom:1px solid var(--line);vertical-align:top}
.checks td:not(:last-child),.checks th{overflow-wrap:normal;word-break:keep-all}
.checks td:nth-child(2){overflow-wrap:anywhere;min-width:5em}
.scroll{overflow-x:auto}svg{width:100%;height:auto;font-size:11px;fill:currentColor}
svg line{stroke:var(--line)}svg .certified{stroke:var(--good)}svg .violated,svg .error{stroke:var(--bad)}
svg .undecided{stroke:var(--unsure)}svg .limit{stroke-dasharray:5 4;stroke:var(--bad)}svg text.limit{stroke:none}
summary{cursor:pointer;margin-top:14px}dt{font-weight:600}dd{margin:0 0 6px;white-space:pre-line}
"""


def report_html(content: ReportContent) -> str:
    """The whole report as one HTML document."""
    sections = [
        f'<h1 class="{_text(content.verdict.status)}">{_text(content.headline)}</h1>',
        f"<p>{_text(content.model)}<br>policy {_text(content.policy)}<br>attestation {_text(content.attested)}</p>",
        "<h2>Checks</h2>" + _checks(content),
        _counterexamples(content),
        "<h2>Bounds</h2>" + "".join(_plots(content)),
        _facts(content),
        _explanations(content),
        _rows(content.frame),
        f"<p>{_text(NOT_MEANT)}</p>",
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Lipschitz audit</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _text(text: str) -> str:
    return escape(one_line(text))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(number(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _checks(content: ReportContent) -> str:
    rows = []
    for check in content.verdict.checks:
        word = verdict_word(check)
        cells = (check.id, check.severity, number(check.observed), number(check.threshold), check.message)
        rows.append(
            f'<tr><td class="{word}"><b>{word}</b></td>'
            + "".join(f"<td>{_text(str(cell))}</td>" for cell in cells)
            + "</tr>"
        )
    head = "<tr><th></th><th>check</th><th>severity</th><th>observed</th><th>threshold</th><th></th></tr>"
    counts = ", ".join(f"{count} {status}" for status, count in content.status_counts.items())
    return (
        f'<div class="scroll checks"><table>{head}{"".join(rows)}</table></div>'
        f"<p>{len(content.frame)} rows: {_text(counts)}</p>"
    )


def _counterexamples(content: ReportContent) -> str:
    if not content.counterexamples:
        return ""
    shown = content.leading_examples(SHOWN_ROWS)
    items = [f"<li>{_text(example.check_id)}, {_text(str(example))}</li>" for example in shown]
    more = f"<details><summary>{len(items) - _FEW} more</summary><ul>{''.join(items[_FEW:])}</ul></details>"
    point = _table(list(shown[0].point), [list(shown[0].point.values())])
    return (
        f"<h2>Where it breaks</h2><p>Points near audited rows at which a check is false: {len(content.counterexamples)}.</p>"
        f"<ul>{''.join(items[:_FEW])}</ul><p>All features at the first of them:</p>{point}"
        f"{more if len(items) > _FEW else ''}"
    )


def _plots(content: ReportContent) -> list[str]:
    frame, statuses = content.frame, content.frame["status"].tolist()
    limits = [c.threshold for c in content.verdict.checks if c.type == "lipschitz_at_most"]
    limit = float(limits[0]) if limits and isinstance(limits[0], (int, float)) else None
    label = "Lipschitz bound: attained (bottom) to certified (top)"
    plots = [
        interval_plot(
            frame["lipschitz_lower"].to_numpy(), frame["lipschitz_upper"].to_numpy(), statuses, label=label, limit=limit
        )
    ]
    for name, (lower, upper) in content.derivatives.items():
        label = one_line(f"derivative in {name}: certified range")
        plots.append(interval_plot(lower, upper, _sign_statuses(content, name), label=label))
    return plots


def _sign_statuses(content: ReportContent, feature: str) -> list[str]:
    """Colors of a derivative's bars: broken where a counterexample was met, certified where only one sign is possible."""
    broken = {example.point_id for example in content.counterexamples if example.feature == feature}
    lower, upper = content.derivatives[feature]
    decided = np.where((lower >= 0) | (upper <= 0), "certified", "undecided").tolist()
    ids = content.frame["point_id"].astype(str)
    return ["violated" if point in broken else status for point, status in zip(ids, decided, strict=True)]


def _facts(content: ReportContent) -> str:
    return "<h2>What was proved, and how</h2>" + _table(("", ""), list(content.facts.items()))


def _explanations(content: ReportContent) -> str:
    kinds = dict.fromkeys(check.type for check in content.verdict.checks)
    items = "".join(
        f"<dt>{_text(kind)}</dt><dd>{escape(content.explanations[kind])}</dd>"
        for kind in kinds
        if kind in content.explanations
    )
    return (
        f"<details><summary>What each check means, and does not mean</summary><dl>{items}</dl></details>"
        if items
        else ""
    )


def _rows(frame: pd.DataFrame) -> str:
    order = {"error": 0, "violated": 1, "undecided": 2, "certified": 3}
    worst = frame.assign(_order=frame["status"].map(order)).sort_values(
        ["_order", "lipschitz_upper"], ascending=[True, False], kind="stable"
    )
    columns = [
        c for c in ("point_id", "status", "lipschitz_lower", "lipschitz_upper", "radius", "seconds") if c in frame
    ]
    table = _table(columns, worst[columns].head(SHOWN_ROWS).itertuples(index=False))
    return f"<details><summary>The {min(SHOWN_ROWS, len(frame))} worst rows of {len(frame)}</summary>{table}</details>"
