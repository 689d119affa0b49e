"""The way a model takes: pulled, lowered, replayed, bounded, judged, attested, logged. Read this file first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.schema import Certificates
from mlflow_lipschitz.certify.execution import resolve_device
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.errors import AuditError, InvalidData, RegistryError, UsageError
from mlflow_lipschitz.frontends.fidelity import FidelityReport, ReplayOptions, replay
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.gate.verdict import Verdict, judge
from mlflow_lipschitz.mlflow_plugin.logging import log_audit
from mlflow_lipschitz.pipeline.artifacts import facts, resumption, write_artifacts
from mlflow_lipschitz.pipeline.baseline import Baseline, baseline_of, rows_digest
from mlflow_lipschitz.pipeline.insight import Audited, insight_of
from mlflow_lipschitz.pipeline.intake import TracedModel, rows_for, traced_model
from mlflow_lipschitz.pipeline.journal import discard
from mlflow_lipschitz.pipeline.journal_key import journal_key
from mlflow_lipschitz.pipeline.measure import Arrays, MeasureOptions, Progress, counterexamples, measure, seconds_before
from mlflow_lipschitz.pipeline.on_pass import promoted_on_pass, refuse_alias_without_version
from mlflow_lipschitz.pipeline.probes import probe_points
from mlflow_lipschitz.pipeline.proving import region_arrays, second_proof
from mlflow_lipschitz.pipeline.question import Question, question_of
from mlflow_lipschitz.pipeline.row_bounds import table_columns
from mlflow_lipschitz.pipeline.telling import provenance, report_content
from mlflow_lipschitz.pipeline.tracking import audit_run
from mlflow_lipschitz.pipeline.workplace import workplace
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.registry.attestation import Attestation, Evidence, make_attestation
from mlflow_lipschitz.registry.keys import SigningKey, signing_key
from mlflow_lipschitz.registry.loading import Served
from mlflow_lipschitz.registry.promotion import PromotionOptions, PromotionResult
from mlflow_lipschitz.registry.pull import PulledModel, pull
from mlflow_lipschitz.registry.trust import ENVIRONMENT, TrustSources, trust_from
from mlflow_lipschitz.report.content import UNSIGNED, ReportContent
from mlflow_lipschitz.rows import AuditedRows, Data


@dataclass(frozen=True)
class AuditOptions:
    """How an audit runs; none of it changes what is claimed.

    Attributes:
        device: "auto", "cpu" or "cuda".
        trust_pickle: load models whose loading runs code from their files.
        resume: go on from the finished rows that a stopped audit of the same model, policy and rows left in `out`.
        chunk_size: rows worked on at a time; None takes the default.
        tracking_uri: MLflow store; None takes MLflow's current one.
        sign_key: file of the private key; None takes LIPSCHITZ_SIGNING_KEY, and without that the attestation is UNSIGNED.
        trust: whose signatures count, for the baseline and for `gate.on_pass`; by default what the environment says.
    """

    device: str = "auto"
    trust_pickle: bool = False
    resume: bool = False
    chunk_size: int | None = None
    tracking_uri: str | None = None
    sign_key: str | Path | None = None
    trust: TrustSources = ENVIRONMENT


@dataclass(frozen=True)
class AuditResult:
    """What an audit found. `directory` holds all artifacts; `run_id` is None until the audit is logged.

    `promotion` is the alias that the policy asked for and the version got; None when it asked for none or did not pass.
    """

    model: PulledModel
    policy: AuditPolicy
    rows: AuditedRows
    graph_hash: str
    fidelity: FidelityReport
    table: BoundsTable
    verdict: Verdict
    metrics: Mapping[str, float]
    content: ReportContent
    attestation: Attestation
    directory: Path
    run_id: str | None = None
    promotion: PromotionResult | None = None


def audit(
    model_uri: str,
    data: Data | None = None,
    policy: str | Path | AuditPolicy = "policy.yaml",
    *,
    out: str | Path | None = None,
    options: AuditOptions | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit a model against a policy, record the outcome in MLflow, and set the alias that `gate.on_pass` names.

    Args:
        model_uri: `models:/name/3`, `models:/name@alias`, `models:/m-…`, `runs:/…`, or a folder.
        data: rows to audit, see `load_rows`; None takes the model's input example.
        policy: a file, YAML text, or a loaded policy.
        out: directory for the artifacts, emptied of an earlier audit's results; a new temporary one when None.
        progress: called with (rows done, rows in all, median relative gap), first with what is there before any work; the gap
            is infinite while no row is done.
    Raises:
        PolicyError, InvalidData, UsageError, UntrustedModel: nothing was audited; something has to be changed first.
        UnsupportedOperator, FidelityError, RegistryError, AuditError: the audit failed; nothing is logged as passed.
        Interrupted: it was stopped while rows were measured; finished ones are kept for `AuditOptions.resume`.
    """
    options = options or AuditOptions()
    resolve_device(options.device)
    if options.resume and out is None:
        raise UsageError("an audit is resumed in the directory that holds its finished rows: give --out")
    # Keys that cannot be used are said before any work.
    trust_from(options.trust), signing_key(options.sign_key)
    with workplace(out) as directory:
        policy = policy if isinstance(policy, AuditPolicy) else load_policy(policy)
        pulled = pull(model_uri, trust_pickle=options.trust_pickle, tracking_uri=options.tracking_uri)
        refuse_alias_without_version(policy, pulled)
        rows = rows_for(pulled, _data_or_example(data, pulled), policy)
        with audit_run(pulled, options.tracking_uri, directory) as run_id:
            result = audit_rows(pulled, rows, policy, directory, options=options, progress=progress)
            try:
                log_audit(result, tracking_uri=options.tracking_uri, run_id=run_id)
            except RegistryError as error:
                raise AuditError(
                    f"{error}\nThe bounds and reports are kept in {directory}; --resume takes the bounds from there"
                ) from error
            discard(directory)
        passed = result.verdict.status == "passed"
        how = PromotionOptions(tracking_uri=options.tracking_uri, trust=options.trust)
        promotion = promoted_on_pass(policy, pulled, run_id, how) if passed else None
    return replace(result, run_id=run_id, promotion=promotion)


def audit_rows(
    pulled: PulledModel,
    rows: AuditedRows,
    policy: AuditPolicy,
    directory: Path,
    *,
    options: AuditOptions | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """The audit itself, of a pulled model on checked rows. Writes into `directory` only; logs nothing.

    The journal of finished rows stays there, until the caller has the outcome on record and calls `discard`.
    """
    options, started = options or AuditOptions(), time.perf_counter()
    key = signing_key(options.sign_key)
    traced = traced_model(pulled, rows, policy)
    graph, rows, outputs = traced.graph, traced.rows, traced.entries
    policy.bind(rows.feature_names, outputs, fixed=rows.fixed_names, looked_up=rows.looked_up)
    question = question_of(policy, rows, outputs)
    baseline = baseline_of(policy, rows, options.tracking_uri, trust_from(options.trust))
    fidelity = _replayed(traced, _served_by_name(pulled, rows), question)

    arrays = measure(graph, rows, question, directory, _how(options, pulled, policy, key), progress)
    table = BoundsTable.from_columns(*table_columns(rows, question, arrays))
    seconds = time.perf_counter() - started + seconds_before(arrays)
    verdict = _judged(table, policy, rows, baseline, seconds)

    certificates = _certificates(graph, rows, question, arrays, outputs)
    metrics = {**table.metrics(), **verdict.metrics(), "lipschitz/seconds_total": seconds}
    audited = Audited(graph, rows, question, arrays, table, policy)
    insight = insight_of(audited, verdict, baseline, metrics, options.device)
    described = facts(policy, question, graph, fidelity, certificates.method, rows) | _made(arrays, directory)
    described |= provenance(pulled, policy, rows)
    content = replace(
        report_content(pulled, audited, verdict, certificates, described), attested=_signer(key), insight=insight
    )
    hashes = write_artifacts(directory, table, policy, (graph, certificates), content)
    evidence = Evidence(metrics, hashes, graph.content_hash(), rows=rows_digest(rows), method=certificates.method)
    attestation = make_attestation(pulled, policy, verdict, evidence, key)
    (directory / "attestation.json").write_text(attestation.to_json(), encoding="utf-8")
    found = (pulled, policy, rows, graph.content_hash(), fidelity, table, verdict, metrics, content, attestation)
    return AuditResult(*found, directory)


def _data_or_example(data: Data | None, pulled: PulledModel) -> Data:
    if data is not None:
        return data
    if pulled.input_example is None:
        raise InvalidData("the model was logged without an input example: give the rows to audit (--data)")
    return pulled.input_example


def _served_by_name(pulled: PulledModel, rows: AuditedRows) -> Served | None:
    """The served model, handed the audited columns as MLflow hands them over: a column mixed up shows in the replay."""
    served = pulled.served
    if served is None or rows.served_rows is not None:
        return served
    return lambda points: served(rows.served_input(np.asarray(points)))


def _replayed(traced: TracedModel, served: Served | None, question: Question) -> FidelityReport:
    points, asked = traced.rows.points, traced.rows.served_rows
    options = ReplayOptions(traced.output, decides=question.max_radius is not None, served_rows=asked)
    probes = probe_points(question, points)
    return replay(traced.graph, traced.model, points, served, extra_points=probes, options=options)


def _how(options: AuditOptions, pulled: PulledModel, policy: AuditPolicy, key: SigningKey | None) -> MeasureOptions:
    settings: dict[str, Any] = {"chunk_size": options.chunk_size} if options.chunk_size else {}
    fields = journal_key(pulled, policy, options.device)
    return MeasureOptions(device=options.device, resume=options.resume, fields=fields, signer=key, **settings)


def _made(arrays: Arrays, directory: Path) -> dict[str, str]:
    """Facts of this one audit: what was proved a second time, and what is from before a stop."""
    return second_proof(arrays, directory) | resumption(arrays)


def _certificates(
    graph: Graph, rows: AuditedRows, question: Question, arrays: Arrays, outputs: tuple[str, ...]
) -> Certificates:
    claims = ["lipschitz_upper"]
    claims += [] if question.output == "margin" else ["derivative_lower", "derivative_upper"]
    claims += [] if question.max_radius is None else ["radius"]
    known = {"points": rows.points, **region_arrays(question)}
    known |= {name: arrays[name] for name in ("labels", "lipschitz_lower", "served_error") if name in arrays}
    return Certificates(
        graph_hash=graph.content_hash(),
        objective="margin" if question.output == "margin" else outputs[question.output],
        norm=question.norm,
        method=", ".join(np.unique(arrays["method"]).tolist()),
        point_ids=tuple(rows.point_ids.tolist()),
        feature_names=rows.feature_names,
        arrays={**known, **{name: arrays[f"claimed_{name}"] for name in claims}},
        counterexamples=counterexamples(rows, question, arrays),
        output=question.output,
        unproved=tuple(rows.point_ids[~arrays["reproved"]].tolist()),
        radius_arithmetic=question.arithmetic,
    )


def _judged(table: BoundsTable, policy: AuditPolicy, rows: AuditedRows, baseline: Baseline, seconds: float) -> Verdict:
    return judge(
        table,
        policy,
        expected_points=len(rows),
        baseline=baseline.bounds,
        seconds_total=seconds,
        no_baseline=baseline.problem,
    )


def _signer(key: SigningKey | None) -> str:
    return f"signed by {key.public.keyid}" if key else UNSIGNED
