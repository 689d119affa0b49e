"""Bounds of a graph over regions: ranges forward, linear forms backward (CROWN, Zhang et al. 2018; Shi et al., NeurIPS 2022).

Every number is worked out here from the graph, the region and the slopes given; nothing that somebody else computed is believed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from mlflow_lipschitz.checker import curves
from mlflow_lipschitz.checker.affine import affine_range, affine_size
from mlflow_lipschitz.checker.arithmetic import known
from mlflow_lipschitz.checker.forms import Bounds, NodeBounds, Problem, upper_bounds
from mlflow_lipschitz.checker.planes import Range, magnitude, planes_of, range_of
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph

# Numbers in the linear forms that are in flight.
_ENTRIES = 1 << 17


def bound_entries(problem: Problem, owner: np.ndarray | None = None) -> Range:
    """Ranges (batch, *output shape) of the output, each entry by a linear form of its own."""
    bounds, problem = bound_nodes(problem, owner)
    output = problem.graph.output
    mask = np.ones(bounds[output].lower.shape, dtype=bool)
    low, high = _refined(problem, bounds, output, mask, last=True)
    # No region is empty: ends that cross would be a mistake of this program, and prove nothing.
    crossed = np.asarray(low > high, dtype=bool)
    return np.where(crossed, -np.inf, low), np.where(crossed, np.inf, high)


def largest(problem: Problem, owner: np.ndarray | None = None) -> np.ndarray:
    """(batch,) upper bounds of coeffs · output; −∞ where the restrictions leave nothing, +∞ where nothing is known."""
    bounds, problem = bound_nodes(problem, owner)
    output = problem.graph.output
    batch = len(bounds[output].lower)
    coeffs = np.ones((batch, 1)) if problem.coeffs is None else problem.coeffs
    c = problem.rounding.array(coeffs)[:, None]
    linear = upper_bounds(problem, _with_last_slopes(problem, bounds), output, c)[:, 0]
    empty = np.zeros(batch, dtype=bool)
    for node in bounds.values():
        empty |= np.asarray(node.lower > node.upper, dtype=bool).reshape(batch, -1).any(1)
    if problem.weight is not None:
        linear = np.where((problem.weight == 0) & (linear < 0), -np.inf, np.where(problem.weight == 1, linear, np.inf))
    return np.where(empty, -np.inf, np.minimum(linear, _by_range(problem, c, bounds[output].range)))


def _by_range(problem: Problem, c: np.ndarray, output: Range) -> np.ndarray:
    """What the output's own range says of coeffs · output; exact for one entry or its negative."""
    with np.errstate(invalid="ignore"):
        terms = np.where(c > 0, c * output[1][:, None], np.where(c < 0, c * output[0][:, None], 0 * c))[:, 0]
    total = terms.sum(1)
    alone = ((np.abs(c) == 1) | (c == 0)).all((1, 2)) & ((c != 0).sum((1, 2)) == 1)
    error = problem.rounding.gamma(terms.shape[1] + 2) * np.abs(terms).sum(1) + problem.rounding.underflow
    total = np.where(alone, total, total + error)
    return np.where(total != total, np.inf, total)


def bound_nodes(problem: Problem, owner: np.ndarray | None) -> tuple[Bounds, Problem]:
    """Bounds of every node; and the problem with a region for each objective.

    What does not depend on the objective is bounded once per region; `owner` (objectives,) is the region of each.
    """
    bounds: Bounds = {}
    done: dict[int, np.ndarray] = {}
    after = behind_objective(problem.graph)
    before = replace(problem, cotangent=None)
    for index in range(len(problem.graph.nodes)):
        if index not in after:
            _bound(before, bounds, index, done)
    if owner is not None:
        bounds = {index: node.select(owner) for index, node in bounds.items()}
        done = {index: mask[owner] for index, mask in done.items()}
        problem = replace(problem, region=problem.region.select(owner))
    for index in sorted(after):
        _bound(problem, bounds, index, done)
    return bounds, problem


def _bound(problem: Problem, bounds: Bounds, index: int, done: dict[int, np.ndarray]) -> None:
    node = problem.graph.nodes[index]
    if isinstance(node.op, ops.Input):
        low, high = (problem.rounding.array(end) for end in problem.region.box)
        bounds[index] = NodeBounds(low, high)
    elif isinstance(node.op, ops.Cotangent):
        assert problem.cotangent is not None
        exactly = problem.rounding.array(problem.cotangent)
        bounds[index] = NodeBounds(exactly, exactly)
    else:
        for position in _operands(node.op, len(node.inputs)):
            _refine_operand(problem, bounds, index, position, done)
        bounds[index] = _enclosed(problem, bounds, index)
    for ends in (problem.known.get(index), problem.held.get(index)):
        if ends is None:
            continue
        low, high = (problem.rounding.array(end) for end in ends)
        both = np.maximum(bounds[index].lower, low), np.minimum(bounds[index].upper, high)
        bounds[index] = replace(bounds[index], lower=both[0], upper=both[1])


def _enclosed(problem: Problem, bounds: Bounds, index: int) -> NodeBounds:
    node, rounding = problem.graph.nodes[index], problem.rounding
    inputs = [bounds[i].range for i in node.inputs]
    chain = problem.chain(index)
    if chain is not None:
        return NodeBounds(*affine_range(chain, inputs[0], rounding), None, affine_size(chain, inputs[0]))
    if isinstance(node.op, ops.Add):
        size = magnitude(inputs[0]) + magnitude(inputs[1])
        low, high = (a + b for a, b in zip(*inputs, strict=True))
        gamma = rounding.gamma(1)
        return NodeBounds(*known(low - gamma * np.abs(low), high + gamma * np.abs(high)), None, size)
    if isinstance(node.op, ops.Concat):
        low, high = (np.concatenate(ends, axis=node.op.axis + 1) for ends in zip(*inputs, strict=True))
        return NodeBounds(low, high, None, magnitude((low, high)))
    planes = planes_of(node.op, inputs, problem.slopes.get(index), rounding)
    seen = inputs
    if (
        isinstance(node.op, ops.Elementwise)
        and node.inputs[0] in problem.held
        and curves.is_flat(node.op.curve, node.op.parameters)
    ):
        seen = [_one_sided(inputs[0], problem.held[node.inputs[0]])]
        # A level plane holds at the place of the split as well, which an open range leaves out.
        level = np.where((seen[0][0] != inputs[0][0]) | (seen[0][1] != inputs[0][1]), 0.0, np.nan)
        planes = planes_of(node.op, seen, ((level,), (level,)), rounding)
    return NodeBounds(*range_of(node.op, seen, rounding), planes, planes.size(inputs))


def _one_sided(z: Range, held: Range) -> Range:
    """The open range: a derivative that jumps at the place of a split takes, in each half, the values of that half.

    Every element of the Clarke Jacobian is a convex combination of such one-sided ones, and what is bounded is convex in each.
    """
    low = np.where(z[0] == held[0], np.nextafter(held[0], np.inf), z[0])
    high = np.where(z[1] == held[1], np.nextafter(held[1], -np.inf), z[1])
    empty = low > high
    return np.where(empty, z[0], low), np.where(empty, z[1], high)


def _operands(op: Any, arity: int) -> tuple[int, ...]:
    """The inputs whose ranges the planes around an op depend on."""
    if isinstance(op, ops.Elementwise):
        return (0,)
    if isinstance(op, ops.Multiply):
        return op.linear_in
    return (0, 1) if isinstance(op, ops.MatMul) else ()


def _refine_operand(
    problem: Problem, bounds: Bounds, consumer: int, position: int, done: dict[int, np.ndarray]
) -> None:
    """Give every entry a form of its own whose range matters and is not the range of a curve, exact already."""
    nodes = problem.graph.nodes
    node = nodes[consumer]
    source = node.inputs[position]
    if isinstance(nodes[source].op, (ops.Input, ops.Cotangent, ops.Elementwise)) or _is_exact(problem, source):
        return
    low, high = bounds[source].range
    if isinstance(node.op, ops.Elementwise):
        mask = ~curves.is_line_on(node.op.curve, node.op.parameters, low.astype(float), high.astype(float))
    else:
        first = bounds[node.inputs[0] if isinstance(node.op, ops.Multiply) else source]
        mask = np.asarray(first.lower < first.upper, dtype=bool)
    if source in problem.held:  # what a cut says of one end says nothing of the other
        low_held, high_held = problem.held[source]
        mask = mask | np.isfinite(low_held) | np.isfinite(high_held)
    wanted = mask & ~done.get(source, np.zeros(low.shape, dtype=bool))
    done[source] = mask | done.get(source, wanted)
    if wanted.any():
        low, high = _refined(problem, bounds, source, wanted)
        bounds[source] = replace(bounds[source], lower=low, upper=high)


def _is_exact(problem: Problem, index: int) -> bool:
    """Whether the node is affine in the entries of a box, or in the objective: its range is exact entry by entry."""
    node = problem.graph.nodes[index]
    if problem.chain(index) is None:
        return False
    source = node.inputs[0]
    op = problem.graph.nodes[source].op
    return isinstance(op, ops.Cotangent) or (isinstance(op, ops.Input) and problem.region.ball is None)


def _refined(problem: Problem, bounds: Bounds, target: int, wanted: np.ndarray, *, last: bool = False) -> Range:
    """The node's range, with a form above and one below for each wanted entry."""
    shape, batch = problem.graph.nodes[target].shape, len(wanted)
    flat = wanted.reshape(batch, -1)
    most, size = int(flat.sum(1).max()), math.prod(shape)
    order = np.argsort(~flat, axis=1, kind="stable")[:, :most]  # the wanted ones first
    low, high = (end.reshape(batch, -1).copy() for end in bounds[target].range)
    used = _with_last_slopes(problem, bounds) if last else bounds
    widest = max(math.prod(node.shape) for node in problem.graph.nodes[: target + 1])
    step = max(1, _ENTRIES // (2 * batch * widest))
    for start in range(0, most, step):
        place = order[:, start : start + step]
        # Rows that are those of every batch entry are pushed back once, up to where the planes differ.
        own = place if (place != place[:1]).any() else place[:1]
        units = problem.rounding.zeros((*own.shape, size))
        np.put_along_axis(units, own[..., None], problem.rounding.array(np.ones(1))[0], axis=2)
        rows = np.concatenate([units, -units], axis=1).reshape(len(own), -1, *shape)
        above, below = np.split(upper_bounds(problem, used, target, rows), 2, axis=1)
        for end, found, keep in ((high, above, np.minimum), (low, -below, np.maximum)):
            np.put_along_axis(end, place, keep(np.take_along_axis(end, place, 1), found), axis=1)
    return low.reshape(bounds[target].lower.shape), high.reshape(bounds[target].upper.shape)


def _with_last_slopes(problem: Problem, bounds: Bounds) -> Bounds:
    changed = dict(bounds)
    for index, slopes in problem.last_slopes.items():
        node = problem.graph.nodes[index]
        inputs = [bounds[i].range for i in node.inputs]
        planes = planes_of(node.op, inputs, slopes, problem.rounding)
        changed[index] = replace(bounds[index], planes=planes, size=planes.size(inputs))
    return changed


def behind_objective(graph: Graph) -> set[int]:
    """The nodes that depend on the `Cotangent`, and itself."""
    found: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, ops.Cotangent) or found.intersection(node.inputs):
            found.add(index)
    return found
