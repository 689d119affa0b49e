"""Everything an audit leaves behind, written into one directory before anything is sent to MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.audited_rows import AuditedRows
from mlflow_lipschitz.certificates.io import EVIDENCE_FILE, write_certificates
from mlflow_lipschitz.certificates.schema import Certificates
from mlflow_lipschitz.certify.budget import Budget
from mlflow_lipschitz.certify.deployed import REAL, why_unserved
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.pipeline.question import NO_LIMIT_S, Question
from mlflow_lipschitz.policy import AuditPolicy
from mlflow_lipschitz.registry.manifest import sha256_of
from mlflow_lipschitz.report.content import ReportContent
from mlflow_lipschitz.report.html import report_html
from mlflow_lipschitz.report.junit import junit_xml
from mlflow_lipschitz.report.sarif import sarif_json
from mlflow_lipschitz.report.summary import summary_markdown

ARITHMETIC = "real: bounds hold for the exact function of the stored weights, not for its float32 evaluation"
_SERVED = (
    "{arithmetic} for radii: they hold for the program that evaluates the function in {format}, of any input within the radius"
    " rounded to {format}; Lipschitz bounds and derivatives are real: of the exact function of the stored weights"
)


def write_artifacts(
    directory: Path,
    table: BoundsTable,
    policy: AuditPolicy,
    certified: tuple[Graph, Certificates],
    content: ReportContent,
) -> dict[str, str]:
    """Write every artifact but the attestation and return file name -> SHA-256, what the attestation binds."""
    table.to_parquet(directory / "points.parquet")
    table.to_json(directory / "points.json")
    graph, certificates = certified
    files = write_certificates(certificates, directory, graph, directory / EVIDENCE_FILE)
    texts = {
        "policy.yaml": policy.text,
        "suite.json": _json(content.verdict.suite_json),
        "validation.json": _json(content.verdict.validation_json),
        "summary.md": summary_markdown(content),
        "report.html": report_html(content),
        "junit.xml": junit_xml(content),
        "audit.sarif": sarif_json(content),
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    written = [*texts, "points.parquet", "points.json", *files]
    return {name: sha256_of(directory / name) for name in sorted(written)}


def facts(
    policy: AuditPolicy, question: Question, graph: Graph, fidelity: Any, method: str, rows: AuditedRows
) -> dict[str, str]:
    """What a reader needs to judge and to repeat the audit."""
    perturbation = policy.perturbation
    radius = perturbation.radius
    described = (
        ", ".join(f"{k} {v:g}" for k, v in radius.items()) if not isinstance(radius, (int, float)) else f"{radius:g}"
    )
    domain = ", ".join(f"{name} [{low:g}, {high:g}]" for name, (low, high) in policy.inputs.domain.items())
    return {
        "perturbation": f"norm {perturbation.norm}, radius {described} ({perturbation.scale} units)",
        "domain": domain or "none",
        "does not move": ", ".join(policy.inputs.immutable) or "–",
        "judged output": str(policy.model.output),
        "columns": rows.order,
        **({"looked up": _looked_up(rows)} if rows.looked_up else {}),
        "effort": _effort(question),
        "method": f"{method}; sound, incomplete: a bound may be larger than the truth, never smaller",
        "arithmetic": arithmetic_in_words(graph, question),
        "graph": f"sha256 {graph.content_hash()}",
        "graph against the model": f"largest difference {fidelity.max_difference:.3g} on {fidelity.rows} rows"
        f" ({', '.join(fidelity.compared)})",
        "policy": policy.reference,
        "versions": ", ".join(f"{name} {_version(name)}" for name in ("mlflow-lipschitz", "torch", "onnx", "mlflow")),
    }


def resumption(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Said of an audit that was stopped and resumed: how many rows are from before."""
    before, total = int(arrays["resumed"].sum()), len(arrays["resumed"])
    return {"resumed": f"{before} of {total} rows are from the journal of an earlier run"} if before else {}


def arithmetic_in_words(graph: Graph, question: Question) -> str:
    """What each kind of bound is about: the exact function, or the program that is served; and why nothing is known of that one."""
    if question.arithmetic == REAL or question.max_radius is None:
        return ARITHMETIC
    name = question.arithmetic.removeprefix("deployed-")
    reason = why_unserved(graph, name)
    unknown = f". No radius is certified: {reason}" if reason else ""
    return _SERVED.format(arithmetic=question.arithmetic, format=name) + unknown


def _effort(question: Question) -> str:
    bound, signs = question.budget, question.sign_budget
    if bound is None and signs is None:
        return "one propagation pass; no check asks for a search, or engine.budget_per_point_s is null"
    told = ["one propagation pass, then branch and bound"]
    if bound is not None:
        until = f"the bounds are within {bound.target_gap:g} of each other"
        if bound.threshold is not None:
            until += f", or it is known on which side of {bound.threshold:g} the constant lies"
        told.append(f"up to {_work(bound)} a row for the Lipschitz constant, until {until}")
    if signs is not None:
        told.append(f"up to {_work(signs)} a row for the signs that checks name")
    return "; ".join(told)


def _work(budget: Budget) -> str:
    limits = [] if budget.seconds_per_point >= NO_LIMIT_S else [f"{budget.seconds_per_point:g} s"]
    limits += [] if budget.parts_per_point is None else [f"{budget.parts_per_point} parts"]
    return " and ".join(limits)


def _looked_up(rows: AuditedRows) -> str:
    moving = "their embeddings move" if len(rows.fixed_names) == 0 else "each row keeps its encoding"
    return f"{', '.join(rows.looked_up)}: by the model itself, before the perturbation begins; {moving}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
