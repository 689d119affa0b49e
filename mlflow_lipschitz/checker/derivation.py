"""From what a certificate states to the bounds that follow from it: one function for each kind of claim.

`stated` are the arrays of a certificate for some points, by name: where the points are, what is asked, and the choices (slopes,
cuts, multipliers) that lead to tight bounds. A choice that is left out is replaced by a customary one; none can make a bound wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlflow_lipschitz.checker.arithmetic import FLOATS, Arithmetic, floats_down, floats_up
from mlflow_lipschitz.checker.differentiation import gradient_graph, norm_graph
from mlflow_lipschitz.checker.forms import Bounds, Problem
from mlflow_lipschitz.checker.planes import Slopes
from mlflow_lipschitz.checker.propagation import bound_entries, bound_nodes, largest
from mlflow_lipschitz.checker.regions import Region
from mlflow_lipschitz.checker.trees import Leaves, leaves_of
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder

# Parts that are bounded at once.
_PARTS = 256

Stated = Mapping[str, np.ndarray]
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


@dataclass(frozen=True)
class Subject:
    """What all points have in common.

    Attributes:
        graph: of the model.
        norm: of the perturbation.
        output: index of the output asked about, or "margin": the label's output minus each other one.
        rounding: how to calculate.
    """

    graph: Graph
    norm: str
    output: int | str
    rounding: Arithmetic = FLOATS


def lipschitz_upper(subject: Subject, stated: Stated) -> np.ndarray:
    """(points,) upper bounds of the dual norm of every gradient, in units of `feature_scale`, of every objective."""
    problem, owner = lipschitz_problem(subject, stated)
    if DUAL[subject.norm] == "linf":
        low, high = bound_entries(problem, owner)
        worst = np.maximum(np.abs(low), np.abs(high)).max(1, initial=0)
    else:
        worst = _over_parts(problem, owner, stated, "lipschitz")
    found = floats_up(worst.reshape(len(stated["points"]), -1).max(1))
    return np.nextafter(np.sqrt(np.maximum(found, 0)), np.inf) if DUAL[subject.norm] == "l2" else found


def lipschitz_problem(subject: Subject, stated: Stated) -> tuple[Problem, np.ndarray]:
    """What is maximised, a question for every point and objective; and the point of each question."""
    graph = norm_graph(subject.graph, stated["feature_scale"], DUAL[subject.norm])
    objectives = _objectives(subject, stated)
    count, each = objectives.shape[:2]
    cotangents = objectives.reshape(count * each, -1)
    problem = _problem(graph, _region(subject, stated), cotangents, stated, "lipschitz")
    return replace(problem, rounding=subject.rounding), np.repeat(np.arange(count), each)


def derivative_range(subject: Subject, stated: Stated) -> tuple[np.ndarray, np.ndarray]:
    """(points, inputs) lower and upper bounds of every partial derivative of the one output."""
    problem = derivative_problem(subject, stated)
    low, high = (end.copy() for end in bound_entries(problem, np.arange(len(stated["points"]))))
    if "derivative/searched" in stated:
        searched, point, entry = searched_problem(problem, stated)
        found = _over_parts(searched, point, stated, "derivative")
        sign = stated["derivative/searched"][:, 2]
        for end, found_end, side, keep in ((high, found, 1, np.minimum), (low, -found, -1, np.maximum)):
            rows = sign == side
            end[point[rows], entry[rows]] = keep(end[point[rows], entry[rows]], found_end[rows])
    return floats_down(low), floats_up(high)


def derivative_problem(subject: Subject, stated: Stated) -> Problem:
    """All derivatives of the one output, for every point."""
    graph = gradient_graph(subject.graph, None)
    problem = _problem(graph, _region(subject, stated), _objectives(subject, stated)[:, 0], stated, "derivative")
    return replace(problem, rounding=subject.rounding)


def searched_problem(problem: Problem, stated: Stated) -> tuple[Problem, np.ndarray, np.ndarray]:
    """The signed derivatives that were searched for one by one: what is maximised, and the point and entry of each."""
    point, entry, sign = stated["derivative/searched"].astype(np.int64).reshape(-1, 3).T
    coeffs = np.zeros((len(point), problem.graph.output_shape[0]))
    coeffs[np.arange(len(point)), entry] = sign
    assert problem.cotangent is not None
    whole = replace(problem, slopes={}, last_slopes={})
    return replace(whole, cotangent=problem.cotangent[point], coeffs=coeffs), point, entry


def radius_holds(subject: Subject, stated: Stated, radius: np.ndarray) -> np.ndarray:
    """(points,) whether no input within `radius` units of `feature_scale`, one number per point, changes the decision `labels`.

    Every margin stays positive, or is larger at the point than the radius times its Lipschitz constant (Hein and Andriushchenko,
    NeurIPS 2017).
    """
    unit = stated["feature_scale"]
    each = radius.reshape(-1, *(1,) * unit.ndim)
    reach = np.where((each == 0) | (unit == 0), 0.0, np.nextafter(each * unit, np.inf))
    ball = {**stated, "radius_per_feature": reach}
    holds = _margins_range(subject, ball)[0] > 0
    rest = np.flatnonzero(~holds)
    if rest.size:
        size = math.prod(subject.graph.output_shape)
        part = {name: ball[name] if name in _COMMON else ball[name][rest] for name in (*_COMMON, *_OWN)}
        slope = lipschitz_upper(replace(subject, output=0 if size == 1 else "margin"), part)
        fall = np.nextafter(slope * np.nextafter(radius[rest], np.inf), np.inf)
        holds[rest] = _margins_range(subject, {**part, "radius_per_feature": 0 * part["points"]})[0] > fall
    return holds


def mislabeled(subject: Subject, stated: Stated) -> np.ndarray:
    """(points,) whether the decision at the point itself is shown to be another one than `labels`."""
    return _margins_range(subject, {**stated, "radius_per_feature": 0 * stated["points"]})[1] < 0


_COMMON = ("feature_scale", "domain_lower", "domain_upper")
_OWN = ("points", "labels", "radius_per_feature")


def _margins_range(subject: Subject, stated: Stated) -> tuple[np.ndarray, np.ndarray]:
    """(points,) lower and upper bounds of the smallest margin of the label over the region."""
    size, labels = math.prod(subject.graph.output_shape), _labels(subject, stated)
    low, high = np.full(len(labels), -np.inf), np.full(len(labels), np.inf)
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        weight = np.full((1, 1), 2.0 * label - 1.0) if size == 1 else np.delete(_margins(size, label), label, axis=0)
        builder = GraphBuilder(subject.graph)
        flat = builder.add(ops.Reshape((size,)), subject.graph.output)
        graph = builder.build(builder.add(ops.Linear(ops.frozen_array(weight)), flat))
        problem = Problem(graph, _region(subject, stated).select(rows), None, subject.rounding)
        ends = bound_entries(problem)
        low[rows], high[rows] = floats_down(ends[0].min(1)), floats_up(ends[1].min(1))
    return low, high


def _problem(graph: Graph, region: Region, cotangent: np.ndarray, stated: Stated, kind: str) -> Problem:
    shape = next(node.shape for node in graph.nodes if isinstance(node.op, ops.Cotangent))
    slopes, last = _slopes(stated, f"{kind}/slopes/"), _slopes(stated, f"{kind}/last/")
    return Problem(graph, region, cotangent.reshape(len(cotangent), *shape), slopes=slopes, last_slopes=last)


def _region(subject: Subject, stated: Stated) -> Region:
    domain = (stated["domain_lower"], stated["domain_upper"])
    return Region.around(stated["points"], stated["radius_per_feature"], subject.norm, domain)


def _objectives(subject: Subject, stated: Stated) -> np.ndarray:
    """(points, objectives, outputs)"""
    size, count = math.prod(subject.graph.output_shape), len(stated["points"])
    if subject.output != "margin":
        return np.broadcast_to(np.eye(size)[int(subject.output)], (count, 1, size))
    labels = _labels(subject, stated)
    return np.stack([np.delete(_margins(size, int(label)), label, axis=0) for label in labels])


def _labels(subject: Subject, stated: Stated) -> np.ndarray:
    """(points,) Raises ValueError unless there is a class for every point."""
    labels, classes = stated["labels"].astype(np.int64), max(2, math.prod(subject.graph.output_shape))
    if labels.shape != (len(stated["points"]),) or not ((labels >= 0) & (labels < classes)).all():
        raise ValueError("a decision needs the label of every point")
    return labels


def _margins(size: int, label: int) -> np.ndarray:
    return np.asarray(np.eye(size)[label] - np.eye(size))


def _slopes(stated: Stated, prefix: str) -> dict[int, Slopes]:
    """Arrays named node / above or below / operand, each (points, objectives or 1, *shape)."""
    found: dict[int, dict[str, dict[int, np.ndarray]]] = {}
    for name, values in stated.items():
        if name.startswith(prefix):
            node, side, operand = name[len(prefix) :].split("/")
            one = np.asarray(values, np.float64).reshape(-1, *values.shape[2:])
            found.setdefault(int(node), {"above": {}, "below": {}})[side][int(operand)] = one
    sides = {i: tuple(tuple(s[k] for k in sorted(s)) for s in (x["above"], x["below"])) for i, x in found.items()}
    return {index: (above, below) for index, (above, below) in sides.items()}


def _over_parts(problem: Problem, owner: np.ndarray, stated: Stated, kind: str) -> np.ndarray:
    """(questions,) the largest bound among the parts of each; without a tree of cuts, a question has one part."""
    whole = largest(problem, owner)
    if f"{kind}/tree/node" not in stated:
        return np.where(whole == -np.inf, np.inf, whole)
    leaves, bounds = part_bounds(problem, owner, stated, kind)
    worst = np.full(len(owner), -np.inf, dtype=bounds.dtype)
    np.maximum.at(worst, leaves.root, bounds)
    found = np.minimum(whole, worst)
    # No region is empty, so some part is not: all of them shown to be would be a mistake of this program, and prove nothing.
    return np.where(found == -np.inf, np.inf, found)


def part_bounds(problem: Problem, owner: np.ndarray, stated: Stated, kind: str) -> tuple[Leaves, np.ndarray]:
    """The parts, and (parts,) bounds."""
    graph, name = problem.graph, f"{kind}/tree/"
    leaves = leaves_of(graph, len(owner), stated[f"{name}node"], stated[f"{name}entry"], stated[f"{name}place"])
    charges = _charges(graph, leaves, stated, name)
    whole, _ = bound_nodes(problem, owner)
    bounds = np.empty(len(leaves.root), dtype=object if problem.rounding.exact else np.float64)
    for index in np.array_split(np.arange(len(leaves.root)), 1 + len(leaves.root) // _PARTS):
        charged = {node: values[index] for node, values in charges.items()}
        without = (
            np.ones(len(index)) if not charged else 1.0 * np.all([~_any(values) for values in charged.values()], axis=0)
        )
        bounds[index] = largest(
            replace(_part((problem, owner), whole, leaves, index), multipliers=charged, weight=without)
        )
        open_ = index[
            (without == 0) & (bounds[index] > -np.inf)
        ]  # not shown to be empty: then bounded like any other part
        if open_.size:
            bounds[open_] = largest(_part((problem, owner), whole, leaves, open_))
    return leaves, bounds


def _part(questions: tuple[Problem, np.ndarray], whole: Bounds, leaves: Leaves, index: np.ndarray) -> Problem:
    """The questions of some leaves; what holds in the whole region holds in its parts."""
    (problem, owner), root = questions, leaves.root[index]
    assert problem.cotangent is not None
    held = {node: (low[index], high[index]) for node, (low, high) in leaves.held.items()}
    known = {node: (bounds.lower[root], bounds.upper[root]) for node, bounds in whole.items()}
    region = problem.region.select(owner[root])
    if problem.graph.input in held:
        region = region.cut(*held[problem.graph.input])
    part = replace(problem, region=region, known=known, held=held, slopes={}, last_slopes={})
    coeffs = None if problem.coeffs is None else problem.coeffs[root]
    return replace(part, cotangent=problem.cotangent[root], coeffs=coeffs)


def _charges(graph: Graph, leaves: Leaves, stated: Stated, name: str) -> dict[int, np.ndarray]:
    """Per graph node, (leaves, *shape) multipliers: positive for the lower end of what is held, negative for the upper one."""
    if f"{name}beta" not in stated:
        return {}
    at, node, entry = (stated[f"{name}beta_{part}"].astype(np.int64) for part in ("at", "node", "entry"))
    leaf = np.searchsorted(leaves.at, at)
    found: dict[int, np.ndarray] = {}
    for index in np.unique(node).tolist():
        low, high = leaves.held[index]
        charge = np.zeros((len(leaves.root), math.prod(graph.nodes[index].shape)))
        own = node == index
        charge[leaf[own], entry[own]] = stated[f"{name}beta"][own]
        charge = charge.reshape(low.shape)
        # A multiplier without a finite condition would weigh nothing known.
        held = np.where(charge > 0, np.isfinite(low), np.where(charge < 0, np.isfinite(high), True))
        found[index] = np.where(held & np.isfinite(charge), charge, 0.0)
    return found


def _any(values: np.ndarray) -> np.ndarray:
    """(leaves,) whether any multiplier is not zero."""
    return np.asarray((values != 0).reshape(len(values), -1).any(1))
