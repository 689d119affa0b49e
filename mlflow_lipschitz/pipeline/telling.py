"""From what an audit found to what its reports tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlflow_lipschitz.certificates.schema import Certificates
from mlflow_lipschitz.gate.explain import CHECK_TYPES, advice, explain
from mlflow_lipschitz.gate.verdict import Verdict
from mlflow_lipschitz.pipeline.baseline import rows_digest
from mlflow_lipschitz.pipeline.insight import Audited
from mlflow_lipschitz.policy import AuditPolicy
from mlflow_lipschitz.registry.pull import PulledModel
from mlflow_lipschitz.report.content import ReportContent
from mlflow_lipschitz.rows import AuditedRows


def report_content(
    pulled: PulledModel,
    audited: Audited,
    verdict: Verdict,
    certificates: Certificates,
    described: Mapping[str, str],
) -> ReportContent:
    """What every report is made from, but for the figures that are computed for it."""
    policy = audited.policy
    return ReportContent(
        model=f"models:/{pulled.name}/{pulled.version}" if pulled.name else pulled.uri,
        policy=policy.reference,
        verdict=verdict,
        frame=audited.table.frame,
        counterexamples=certificates.counterexamples,
        derivatives=_derivatives(certificates, policy),
        facts=described,
        explanations={kind: explain(kind) for kind in CHECK_TYPES},
        asked={check.id: check for check in policy.checks},
        advice={check.id: advice(check.type, check.status) for check in verdict.failed},
        unit=unit_in_words(policy),
        norm=audited.question.norm,
    )


def unit_in_words(policy: AuditPolicy) -> str:
    """What one unit of perturbation is."""
    if not isinstance(policy.perturbation.radius, (int, float)):
        return "the given radii of all features together"
    return "one standard deviation of each feature" if policy.perturbation.scale == "standardized" else "one input unit"


def provenance(pulled: PulledModel, policy: AuditPolicy, rows: AuditedRows) -> dict[str, str]:
    """Which files, which rows, which draw: digests and seed."""
    points = policy.inputs.points
    drawn = "all rows given" if points.sample is None else f"at most {points.sample}, seed {points.seed}"
    drawn += f", proportions of {points.stratify} kept" if points.stratify and points.sample else ""
    return {
        "model files": f"{pulled.manifest.digest} ({len(pulled.manifest.files)} files)",
        "rows": f"{len(rows)}; {drawn}; {rows_digest(rows)}",
    }


def _derivatives(certificates: Certificates, policy: AuditPolicy) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Certified range of the derivative in each feature that a check names, to be plotted."""
    if "derivative_lower" not in certificates.arrays:
        return {}
    named = dict.fromkeys(c.feature for c in policy.checks if c.type in ("monotone", "sensitivity_at_most"))
    ranges = {}
    for name in named:
        index = certificates.feature_names.index(name)
        low, high = (certificates.arrays[f"derivative_{end}"] for end in ("lower", "upper"))
        ranges[name] = (low.reshape(len(low), -1)[:, index], high.reshape(len(high), -1)[:, index])
    return ranges
