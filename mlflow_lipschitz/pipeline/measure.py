"""Certify row after row, chunk after chunk, and keep every finished chunk on disk.

An interrupted audit loses at most one chunk; `resume` goes on after the last one if graph, policy and rows are the
same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.io import EVIDENCE, EVIDENCE_FILE, read_arrays, write_arrays, write_evidence
from mlflow_lipschitz.certificates.schema import Counterexample
from mlflow_lipschitz.certify import certified_radius, certify_lipschitz, certify_monotonicity, find_violation
from mlflow_lipschitz.certify.monotonicity import MonotonicityCertificate
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.pipeline.proving import Found, proved_again
from mlflow_lipschitz.pipeline.question import Question
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
        resume: take finished chunks found in the directory.
        key: digest of what the rows are judged by; chunks of another key are not taken.
    """

    device: str = "auto"
    chunk_size: int = DEFAULT_CHUNK
    resume: bool = False
    key: str = ""


def measure(
    graph: Graph,
    rows: AuditedRows,
    question: Question,
    directory: Path,
    options: MeasureOptions,
    progress: Progress | None = None,
) -> Arrays:
    """All bounds of all rows; every array has the rows as its first axis.

    Finished chunks are kept in `directory`/chunks and removed when all rows are done. What leads a second program to the same
    bounds is in `directory`/evidence.npz then.
    """
    folder = directory / "chunks"
    folder.mkdir(parents=True, exist_ok=True)
    key = _key(graph, rows, options.key)
    done, start = [], 0
    while start < len(rows):
        path = folder / f"{start:08d}.npz"
        arrays = _finished(path, key) if options.resume else None
        if arrays is None:
            part = rows.take(np.arange(start, min(start + options.chunk_size, len(rows))))
            arrays = _measure_chunk(graph, part, question, options.device)
            write_arrays(path, {**arrays, "key": np.array(key)})
        done.append({name: values for name, values in arrays.items() if not name.startswith(EVIDENCE)})
        start += len(arrays["lipschitz_upper"])
        if progress:
            progress(start, len(rows), float(np.median(np.concatenate([gap_of(a) for a in done]))))
    _gather_evidence(folder, directory / EVIDENCE_FILE)
    merged = {name: np.concatenate([arrays[name] for arrays in done]) for name in done[0]}
    _remove_chunks(folder)
    return merged


def gap_of(arrays: Arrays) -> np.ndarray:
    """(P,) relative gap (upper − lower) / upper: 0 where both are zero, infinite where there is no upper bound."""
    upper, lower = arrays["lipschitz_upper"], arrays["lipschitz_lower"]
    safe = np.where(np.isfinite(upper) & (upper > 0), upper, 1.0)
    gap = np.maximum(np.where(upper > 0, (np.where(np.isfinite(upper), upper, 0.0) - lower) / safe, 0.0), 0.0)
    return np.where(np.isfinite(upper), gap, np.inf)


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


def _gather_evidence(folder: Path, goal: Path) -> None:
    """One archive of all chunks' evidence, chunk by chunk: memory holds one."""
    goal.unlink(missing_ok=True)
    for path in sorted(folder.glob("*.npz")):
        arrays = read_arrays(path)
        evidence = {name[len(EVIDENCE) :]: values for name, values in arrays.items() if name.startswith(EVIDENCE)}
        write_evidence(goal, int(path.stem), evidence or {"none": np.zeros(0)})


def _remove_chunks(folder: Path) -> None:
    """Our own files only; a file that somebody else put there stays, and the folder with it."""
    for pattern in ("*.npz", "*.partial"):
        for path in folder.glob(pattern):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _finished(path: Path, key: str) -> Arrays | None:
    if not path.is_file():
        return None
    arrays = read_arrays(path)
    return arrays if str(arrays.pop("key", "")) == key else None


def _key(graph: Graph, rows: AuditedRows, extra: str) -> str:
    digest = hashlib.sha256(f"{graph.content_hash()} {extra} {rows.points.shape} {rows.feature_names}".encode())
    digest.update(np.ascontiguousarray(rows.points).tobytes())
    digest.update(np.ascontiguousarray(rows.scale).tobytes())
    return digest.hexdigest()
