"""Certify row after row, chunk after chunk, and keep every finished chunk in the journal: what is lost is at most one chunk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.io import EVIDENCE, EVIDENCE_FILE, write_evidence
from mlflow_lipschitz.certificates.schema import Counterexample
from mlflow_lipschitz.certify import certified_radius, certify_lipschitz, certify_monotonicity, find_violation
from mlflow_lipschitz.certify.monotonicity import MonotonicityCertificate
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import AuditError, Interrupted
from mlflow_lipschitz.pipeline.journal import Journal, opened, spans
from mlflow_lipschitz.pipeline.journal_key import measured_fields
from mlflow_lipschitz.pipeline.partial import how_to_go_on, leave_partial_table
from mlflow_lipschitz.pipeline.proving import Found, proved_again
from mlflow_lipschitz.pipeline.question import Question
from mlflow_lipschitz.pipeline.row_bounds import gap_of
from mlflow_lipschitz.registry.keys import SigningKey
from mlflow_lipschitz.rows import AuditedRows

DEFAULT_CHUNK = 32

Progress = Callable[[int, int, float], None]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class MeasureOptions:
    """How the work is done; none of it changes what is claimed.

    Attributes:
        device: "auto", "cpu" or "cuda".
        chunk_size: rows certified and then saved together.
        resume: take finished rows found in the journal.
        fields: what the numbers depend on besides graph, rows and chunk size, by names for people; see journal_key.py.
        signer: signs the journal's records, and whose signature counts; None: they have none.
    """

    device: str = "auto"
    chunk_size: int = DEFAULT_CHUNK
    resume: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    signer: SigningKey | None = None


def measure(
    graph: Graph,
    rows: AuditedRows,
    question: Question,
    directory: Path,
    options: MeasureOptions,
    progress: Progress | None = None,
) -> Arrays:
    """All bounds of all rows; every array has the rows as its first axis. `resumed` (P,) tells which rows an earlier run measured.

    Finished chunks are kept in the journal in `directory`, which is the caller's to discard once the audit is on record. What leads
    a second program to the same bounds is in `directory`/evidence.npz then. A run that is stopped leaves a partial table.

    Raises:
        Interrupted: the work was stopped; the message says what is kept and how to go on.
        UsageError: the journal is of another audit. AuditError: it cannot be written.
    """
    fields = {**options.fields, **measured_fields(graph, rows), "chunk size": str(options.chunk_size)}
    journal = opened(directory, fields, options.signer, resume=options.resume)
    chunks, done = list(spans(len(rows), options.chunk_size)), {}
    try:
        if options.resume:
            done = _resumed(journal, chunks)
        _tell(progress, done, len(rows))
        for start, stop in chunks:
            if start not in done:
                arrays = _measure_chunk(graph, rows.take(np.arange(start, stop)), question, options.device)
                journal.keep(start, arrays)
                done[start] = _without_evidence(arrays, resumed=False)
                _tell(progress, done, len(rows))
        _gather_evidence(journal, chunks, directory / EVIDENCE_FILE)
    except BaseException as error:
        leave_partial_table(directory, rows, question, done, error)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(how_to_go_on(directory, done, len(rows))) from error
        raise
    parts = [done[start] for start, _ in chunks]
    return {name: np.concatenate([arrays[name] for arrays in parts]) for name in parts[0]}


def seconds_before(arrays: Mapping[str, np.ndarray]) -> float:
    """Time that rows took which an earlier run of the audit measured: a stop does not make an audit faster."""
    return float(arrays["seconds"][arrays["resumed"]].sum())


def _resumed(journal: Journal, chunks: Sequence[tuple[int, int]]) -> dict[int, Arrays]:
    found = {start: journal.kept(start, stop - start) for start, stop in chunks}
    return {start: _without_evidence(arrays, resumed=True) for start, arrays in found.items() if arrays is not None}


def _without_evidence(arrays: Arrays, *, resumed: bool) -> Arrays:
    kept = {name: values for name, values in arrays.items() if not name.startswith(EVIDENCE)}
    return {**kept, "resumed": np.full(len(kept["lipschitz_upper"]), resumed)}


def _tell(progress: Progress | None, done: Mapping[int, Arrays], total: int) -> None:
    if progress:
        gaps = [gap_of(arrays) for arrays in done.values()]
        finished = np.concatenate(gaps) if gaps else np.zeros(0)
        progress(len(finished), total, float(np.median(finished)) if len(finished) else math.inf)


def _gather_evidence(journal: Journal, chunks: Sequence[tuple[int, int]], goal: Path) -> None:
    """One archive of all chunks' evidence, chunk by chunk: memory holds one."""
    goal.unlink(missing_ok=True)
    for start, stop in chunks:
        arrays = journal.kept(start, stop - start)
        if arrays is None:
            raise AuditError(f"finished rows disappeared from {journal.folder} during the audit: go on with --resume")
        evidence = {name[len(EVIDENCE) :]: values for name, values in arrays.items() if name.startswith(EVIDENCE)}
        write_evidence(goal, start, evidence or {"none": np.zeros(0)})


def _measure_chunk(graph: Graph, rows: AuditedRows, question: Question, device: str) -> Arrays:
    started = time.perf_counter()
    points, region = rows.points, question.region(rows.points)
    objective: dict[str, Any] = {"outputs": question.output, "budget": question.budget, "evidence": True}
    decided: Arrays = {}
    if question.output == "margin" or question.max_radius is not None:
        decided["labels"] = _decisions(graph, points)
    if question.output == "margin":
        objective["labels"] = decided["labels"]
    bound = certify_lipschitz(
        graph, points, region, norm=question.norm, feature_scale=question.unit, device=device, **objective
    )
    derivatives, signs = _derivatives(graph, points, region, question, device)
    arrays = {
        "lipschitz_upper": bound.upper.max(axis=1),
        "lipschitz_lower": bound.lower.max(axis=1),
        "method": np.full(len(points), bound.method),
        **derivatives,
        **decided,
        **_radii(graph, points, question, device),
        **_violations(graph, points, region, question),
    }
    certified = time.perf_counter()
    found = Found(arrays, bound.evidence)
    if signs is not None:
        found = replace(found, derivative=signs.evidence, searched=signs.searched)
    arrays, evidence = proved_again(graph, points, question, found)
    arrays["recheck_seconds"] = np.full(len(points), (time.perf_counter() - certified) / len(points))
    arrays["seconds"] = np.full(len(points), (time.perf_counter() - started) / len(points))
    return arrays | {f"{EVIDENCE}{name}": values for name, values in evidence.items()}


def _decisions(graph: Graph, points: np.ndarray) -> np.ndarray:
    """(P,) the class the model decides for: what is certified is that this decision stays, right or wrong."""
    outputs = evaluate(graph, points).flatten(1)
    decided = outputs.argmax(dim=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    return decided.numpy()


def _derivatives(
    graph: Graph, points: np.ndarray, region: Any, question: Question, device: str
) -> tuple[Arrays, MonotonicityCertificate | None]:
    """Bounds of all derivatives, and the certificate they are from."""
    if question.output == "margin":
        unknown = np.full(points.shape, np.inf)
        sign = np.zeros(points.shape, dtype=np.int8)
        return {
            "derivative_lower": -unknown,
            "derivative_upper": unknown,
            "slope_min": unknown,
            "slope_max": -unknown,
            "sign": sign,
        }, None
    features = sorted({asked.feature for asked in question.monotone})
    found = certify_monotonicity(
        graph,
        points,
        region,
        output=question.output,
        features=features,
        budget=question.sign_budget,
        device=device,
        evidence=True,
    )
    return {
        "derivative_lower": found.lower,
        "derivative_upper": found.upper,
        "slope_min": found.attained_lower,
        "slope_max": found.attained_upper,
        "sign": found.sign,
    }, found


def _violations(graph: Graph, points: np.ndarray, region: Any, question: Question) -> Arrays:
    arrays: Arrays = {}
    if question.output == "margin":
        return arrays
    for position, asked in enumerate(question.monotone):
        found = find_violation(
            graph, points, region, feature=asked.feature, direction=asked.direction, output=question.output
        )
        arrays[f"violation_{position}"] = found.found
        arrays[f"violation_point_{position}"] = found.point
        arrays[f"violation_derivative_{position}"] = found.derivative
    return arrays


def _radii(graph: Graph, points: np.ndarray, question: Question, device: str) -> Arrays:
    if question.max_radius is None:
        return {"radius": np.zeros(len(points)), "margin": np.full(len(points), -np.inf)}
    found = certified_radius(
        graph,
        points,
        _decisions(graph, points),
        norm=question.norm,
        max_radius=question.max_radius,
        feature_scale=question.unit,
        domain=question.domain,
        arithmetic=question.arithmetic,
        device=device,
    )
    served = {} if found.served_error is None else {"served_error": found.served_error}
    return {"radius": found.radius, "margin": found.margin, **served}


def counterexamples(rows: AuditedRows, question: Question, arrays: Arrays) -> tuple[Counterexample, ...]:
    """Every violation found, worst derivative first within each check."""
    found = []
    for position, asked in enumerate(question.monotone):
        hits = np.flatnonzero(arrays[f"violation_{position}"])
        slopes = arrays[f"violation_derivative_{position}"]
        for row in hits[np.argsort(-np.abs(slopes[hits]), kind="stable")]:
            point = arrays[f"violation_point_{position}"][row].reshape(-1)
            found.append(
                Counterexample(
                    check_id=asked.check_id,
                    point_id=str(rows.point_ids[row]),
                    feature=rows.feature_names[asked.feature],
                    direction=asked.direction,
                    derivative=float(slopes[row]),
                    point=dict(zip(rows.feature_names, point.tolist(), strict=True)),
                )
            )
    return tuple(found)
