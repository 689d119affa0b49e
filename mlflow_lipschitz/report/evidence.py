"""Which questions of standards and law the bounds are evidence for: short, factual, and no claim of conformity."""

from __future__ import annotations

from mlflow_lipschitz.report.content import ReportContent
from mlflow_lipschitz.report.layout import Table

CAVEAT = (
    "These are references for the reader, not findings: no conformity with a standard or a law follows from this report,"
    " and whether the audited rows, the perturbation and the limits are the right ones is for people to decide."
)

_ROBUSTNESS = ("lipschitz_at_most", "radius_at_least", "sensitivity_at_most", "monotone", "no_regression")

# reference, what it is about, check types that speak to it
_REFERENCES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "ISO/IEC 24029-2:2023",
        "Robustness of neural networks assessed with formal methods: a property, the domain it is about, and a proof over"
        " all of that domain.",
        _ROBUSTNESS,
    ),
    (
        "Regulation (EU) 2024/1689 (AI Act), article 15",
        "Accuracy, robustness and cybersecurity of high-risk systems: behavior under errors and small changes of the input"
        " (paragraphs 4 and 5).",
        ("lipschitz_at_most", "radius_at_least", "sensitivity_at_most", "no_regression"),
    ),
    (
        "NIST AI RMF 1.0, MEASURE 2.5",
        "The system is shown to be valid and reliable, with the limits of what was tested written down.",
        (*_ROBUSTNESS, "points_at_least", "certified_fraction_at_least"),
    ),
    (
        "NIST AI RMF 1.0, MEASURE 2.7",
        "Security and resilience are evaluated and documented.",
        ("radius_at_least", "lipschitz_at_most"),
    ),
)


def evidence_table(content: ReportContent) -> Table:
    """The references that this audit's checks speak to, with the ids of the checks that are proved and that are not."""
    rows = []
    for name, about, kinds in _REFERENCES:
        mine = [check for check in content.verdict.checks if check.type in kinds]
        if not mine:
            continue
        held = ", ".join(check.id for check in mine if check.passed) or "–"
        open_ones = ", ".join(check.id for check in mine if not check.passed) or "–"
        rows.append([name, about, held, open_ones])
    return Table("", ("reference", "what it asks about", "evidence for it: proved", "not proved"), rows)
