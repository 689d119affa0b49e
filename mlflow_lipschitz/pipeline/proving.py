"""Every bound of an audit is proved a second time, by the independent checker, before it is reported.

Where the second proof comes out a little looser, its number is the one that is reported, so that whoever re-checks the certificates
finds what the report says. Where it comes out much looser, or not at all, the report keeps the first number and says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mlflow_lipschitz.certificates.io import EVIDENCE_FILE
from mlflow_lipschitz.certify.evidence import Evidence
from mlflow_lipschitz.certify.repair import derivative_rows, lipschitz_rows
from mlflow_lipschitz.certify.signs import Searched
from mlflow_lipschitz.checker.derivation import (
    DUAL,
    Subject,
    derivative_problem,
    derivative_range,
    lipschitz_problem,
    lipschitz_upper,
    radius_holds,
    searched_problem,
)
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.parts import Rows
from mlflow_lipschitz.pipeline.question import Question
from mlflow_lipschitz.pipeline.repairing import capped, repaired, tree_arrays

Arrays = dict[str, np.ndarray]

# How much looser the second proof may be for its number to be taken.
_LOOSER = 1e-2
# Sums come out a little different on another machine; a claim leaves room for that.
_ROOM = 2.0**-41
_FORMS = 4096
# Values of a network, all layers together, up to which the checker, on one core, takes seconds a row.
_LARGEST = 15_000


@dataclass(frozen=True)
class Found:
    """What a certification found: bounds of the points, of a margin or a radius also `labels`; and how it found them."""

    arrays: Arrays
    lipschitz: Evidence | None
    derivative: Evidence | None = None
    searched: Searched | None = None


def region_arrays(question: Question) -> Arrays:
    """Where the input ranges, as certificates state it."""
    lower, upper = question.domain
    return {
        "radius_per_feature": question.radius,
        "feature_scale": question.unit,
        "domain_lower": lower,
        "domain_upper": upper,
    }


def proved_again(graph: Graph, points: np.ndarray, question: Question, found: Found) -> tuple[Arrays, Arrays]:
    """The arrays with the numbers that were proved twice, and the evidence for them.

    Of the arrays, `claimed_…` are the numbers that the certificate can hold; `reproved` (P,) tells whether they are those reported.
    """
    arrays = found.arrays
    if _size(graph) > _LARGEST:
        return _unproved(arrays), {}
    stated = {**region_arrays(question), "points": points, **{k: arrays[k] for k in ("labels",) if k in arrays}}
    subject = Subject(graph, question.norm, question.output)
    result, reproved = dict(arrays), np.ones(len(points), dtype=bool)
    limit = None if question.budget is None else question.budget.threshold
    with np.errstate(all="ignore"):
        evidence = _slopes("lipschitz", found.lipschitz)
        evidence |= _lipschitz_trees(subject, {**stated, **evidence}, question, found, limit)
        upper = lipschitz_upper(subject, {**stated, **evidence})
        allowed = _allowed(arrays["lipschitz_upper"], limit, question.lipschitz_limits)
        result["lipschitz_upper"], result["claimed_lipschitz_upper"], agree = _taken(
            arrays["lipschitz_upper"], upper, allowed
        )
        reproved &= agree
        if question.output != "margin":
            more = _slopes("derivative", found.derivative)
            more |= _derivative_trees(subject, {**stated, **more}, question, found)
            reproved &= _take_derivatives(result, arrays, *derivative_range(subject, {**stated, **more}))
            evidence |= more
        if question.max_radius is not None:
            holds = radius_holds(subject, stated, arrays["radius"]) | (arrays["radius"] == 0)
            result["claimed_radius"] = np.where(holds, arrays["radius"], 0.0)
            reproved &= holds
    result["reproved"] = reproved
    return result, evidence


def _size(graph: Graph) -> int:
    return sum(math.prod(node.shape) for node in graph.nodes)


def _unproved(arrays: Arrays) -> Arrays:
    """A network that would take the checker hours: its certificates claim nothing."""
    unknown = np.full(len(arrays["lipschitz_upper"]), np.inf)
    claims = {"lipschitz_upper": unknown, "radius": 0 * arrays["radius"]}
    for end, side in (("lower", -1), ("upper", 1)):
        claims[f"derivative_{end}"] = np.full(arrays[f"derivative_{end}"].shape, side * np.inf)
    named = {f"claimed_{name}": values for name, values in claims.items()}
    return {**arrays, **named, "reproved": np.zeros(len(unknown), dtype=bool)}


def _slopes(kind: str, evidence: Evidence | None) -> Arrays:
    return (
        {} if evidence is None else {f"{kind}/{name}": np.asarray(values) for name, values in evidence.slopes.items()}
    )


def _lipschitz_trees(subject: Subject, stated: Arrays, question: Question, found: Found, limit: float | None) -> Arrays:
    if found.lipschitz is None or found.lipschitz.trees is None:
        return {}
    problem, owner = lipschitz_problem(subject, stated)
    assert problem.cotangent is not None
    objectives = torch.tensor(problem.cotangent.reshape(len(stated["points"]), -1, problem.cotangent.shape[1]))
    region = question.region(stated["points"])
    rows = lipschitz_rows(subject.graph, region, question.norm, objectives, question.unit)
    allowed = _allowed(found.arrays["lipschitz_upper"], limit, question.lipschitz_limits)
    target = allowed[owner] * (1 - _LOOSER / 10)
    target = target * np.abs(target) if DUAL[question.norm] == "l2" else target
    trees = capped(found.lipschitz.trees)
    trees = repaired(rows, (problem, owner), trees, target, Effort(Refinement(_FORMS)))
    return tree_arrays("lipschitz", trees)


def _derivative_trees(subject: Subject, stated: Arrays, question: Question, found: Found) -> Arrays:
    searched = found.searched
    if searched is None:
        return {}
    columns = (searched.point, searched.entry, searched.sign)
    named = {"derivative/searched": np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)}
    problem, point, entry = searched_problem(derivative_problem(subject, stated), {**stated, **named})
    low, high = (found.arrays[f"derivative_{end}"].reshape(len(stated["points"]), -1) for end in ("lower", "upper"))
    bound = np.where(searched.sign > 0, high[point, entry], -low[point, entry])
    size = np.maximum(np.abs(high), np.abs(low))[point, entry]
    target = np.where(bound <= 0, 0.0, bound + _LOOSER / 2 * size)
    assert not isinstance(subject.output, str)
    rows = derivative_rows(subject.graph, question.region(stated["points"]), subject.output, searched)
    cuts: Literal["region", "ranges"] = "region" if _cuts_input(searched, rows) else "ranges"
    effort = Effort(Refinement(_FORMS), cuts=cuts)
    trees = repaired(rows, (problem, point), capped(searched.trees), target, effort)
    return named | tree_arrays("derivative", trees)


def _cuts_input(searched: Searched, rows: Rows) -> bool:
    cut = searched.trees.node[searched.trees.node >= 0]
    return bool((cut == rows.problem.graph.input).all()) if cut.size else False


def _allowed(found: np.ndarray, decided: float | None, limits: tuple[float, ...]) -> np.ndarray:
    """The largest number that may be reported in place of what was found: a limit that is kept has to stay kept.

    `decided`: the limit at which the search stopped, up to which the number says no more anyway.
    """
    allowed = found * (1 + _LOOSER)
    if decided is not None:
        allowed = np.where(found <= decided, decided, allowed)
    for limit in limits:
        allowed = np.where(found <= limit, np.minimum(allowed, limit), allowed)
    return np.asarray(allowed)


def second_proof(arrays: Mapping[str, np.ndarray], directory: Path) -> dict[str, str]:
    """What the report says about it; `directory` holds the evidence that the certificates will take in."""
    path = directory / EVIDENCE_FILE
    size = path.stat().st_size if path.exists() else 0
    return {"second proof": f"{_told(arrays)}; evidence of {math.ceil(size / 1000)} kB"}


def _told(arrays: Mapping[str, np.ndarray]) -> str:
    count, total = int(arrays["reproved"].sum()), len(arrays["reproved"])
    seconds = float(arrays["recheck_seconds"].sum())
    if count == 0:
        return "none: the independent checker proved no row again (a network too large for it, or bounds too close)"
    told = f"the independent checker proved every bound of {count} of {total} rows again, in {seconds:.1f} s"
    return told if count == total else f"{told}; of the others it proves looser bounds, which the certificates hold"


def _take_derivatives(
    result: Arrays, arrays: Mapping[str, np.ndarray], low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    shape = arrays["derivative_lower"].shape
    size = np.maximum(np.abs(arrays["derivative_lower"]), np.abs(arrays["derivative_upper"]))
    agree = []
    for name, side, again in (("derivative_lower", -1, low), ("derivative_upper", 1, high)):
        found = side * arrays[name]
        # A sign that was certified and cannot be proved again is not given up quietly; while it stays, its distance may shrink.
        allowed = np.where(found <= 0, 0.0, found + _LOOSER * size)
        taken, claimed, same = _taken(found, side * again.reshape(shape), allowed)
        result[name], result[f"claimed_{name}"] = side * taken, side * claimed
        agree.append(same.reshape(len(same), -1).all(1))
    return np.asarray(agree[0] & agree[1])


def _taken(found: np.ndarray, again: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upper bounds: what is reported, what is claimed, and whether the two are the same."""
    roomy = np.where(again == 0, 0.0, again + np.abs(again) * _ROOM)
    # Of a number that is none, the table makes an error; a certificate claims nothing of it.
    claimed = np.where(np.isnan(roomy) | np.isnan(found), np.inf, np.maximum(roomy, found))
    # A bound that is not finite claims nothing, and needs no proof.
    agree = (claimed <= allowed) | (claimed == found)
    return np.where(agree, claimed, found), claimed, agree
