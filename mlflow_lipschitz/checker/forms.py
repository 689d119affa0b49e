"""Linear forms, pushed backward through a graph to its input and its objective (CROWN, Zhang et al. 2018).

Computed coefficients are *chosen* numbers: what they miss of the exact ones, at most γ |A||W|, is charged against the magnitude of
the values that they multiply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlflow_lipschitz.checker.affine import Chain, chain_of
from mlflow_lipschitz.checker.arithmetic import FLOATS, SLACK, Arithmetic, dot
from mlflow_lipschitz.checker.planes import SUMS, Bilinear, Planes, Range, Slopes, magnitude
from mlflow_lipschitz.checker.regions import Region
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph


@dataclass(frozen=True, eq=False)
class Problem:
    """A batch of questions about one graph.

    Attributes:
        region: of each batch entry.
        cotangent: (batch, *output shape) the objective, None for a graph without one.
        slopes: per node, slopes of planes to use, each array (batch, *shape).
        last_slopes: likewise, for the last form only.
        known: per node, (lower, upper) of its value that were proved already, each (batch, *shape).
        held: per node, (lower, upper) that the questions are restricted to, each (batch, *shape).
        multipliers: per node, (batch, *shape) numbers ≥ 0 for lower minus those for upper ends of `held`.
        weight: (batch,) how much the objective counts beside the multipliers.
        coeffs: (batch, *output shape) of the output in what is maximised; None where that has one entry.
    """

    graph: Graph
    region: Region
    cotangent: np.ndarray | None
    rounding: Arithmetic = FLOATS
    slopes: Mapping[int, Slopes] = field(default_factory=dict)
    last_slopes: Mapping[int, Slopes] = field(default_factory=dict)
    known: Mapping[int, Range] = field(default_factory=dict)
    held: Mapping[int, Range] = field(default_factory=dict)
    multipliers: Mapping[int, np.ndarray] = field(default_factory=dict)
    weight: np.ndarray | None = None
    coeffs: np.ndarray | None = None
    chains: dict[int, Chain | None] = field(default_factory=dict)

    def chain(self, index: int) -> Chain | None:
        """Worked out once for each node."""
        if index not in self.chains:
            node = self.graph.nodes[index]
            shape = self.graph.nodes[node.inputs[0]].shape if len(node.inputs) == 1 else ()
            self.chains[index] = chain_of(node.op, shape) if len(node.inputs) == 1 else None
        return self.chains[index]


@dataclass(frozen=True, eq=False)
class NodeBounds:
    """`lower` ≤ value ≤ `upper`; planes around a nonlinear op; `size`: the absolute terms behind one entry. All (batch, *shape)."""

    lower: np.ndarray
    upper: np.ndarray
    planes: Planes | Bilinear | None = None
    size: np.ndarray | None = None

    @property
    def range(self) -> Range:
        return self.lower, self.upper

    def select(self, index: np.ndarray) -> NodeBounds:
        planes = None if self.planes is None else self.planes.select(index)
        size = None if self.size is None else self.size[index]
        return NodeBounds(self.lower[index], self.upper[index], planes, size)


Bounds = dict[int, NodeBounds]


def upper_bounds(problem: Problem, bounds: Bounds, target: int, coeffs: np.ndarray) -> np.ndarray:
    """(batch, rows) upper bounds of coeffs · value(target), coefficients (batch or 1, rows, *shape of target)."""
    nodes, rounding = problem.graph.nodes, problem.rounding
    pending, on_input = {target: coeffs}, None
    total, error = rounding.zeros(coeffs.shape[:2]), rounding.zeros(coeffs.shape[:2])
    if problem.weight is not None and target == problem.graph.output:
        pending[target] = coeffs * rounding.array(problem.weight).reshape(-1, 1, *(1,) * (coeffs.ndim - 2))
        total, error = _charge(problem, pending, total, error)
    for index in range(max(pending), -1, -1):
        c = pending.pop(index, None)
        if c is None:
            continue
        op, at = nodes[index].op, bounds[index]
        if isinstance(op, ops.Input):
            on_input = c
            continue
        if isinstance(op, ops.Cotangent):
            total = total + dot(c, at.upper)
            error = error + rounding.gamma(_count(c)) * dot(np.abs(c), np.abs(at.upper))
            continue
        passed, constant, terms = _step(problem, index, at, c)
        assert at.size is not None
        total = total + constant
        error = error + rounding.gamma(terms + _count(c)) * dot(np.abs(c), at.size) + rounding.gamma(1) * np.abs(total)
        error = error + rounding.underflow * (1 + sum(_reach(bounds[i]) for i in nodes[index].inputs))
        for position, onward in passed:
            source = nodes[index].inputs[position]
            if source in pending:
                onward = pending[source] + onward
                error = error + rounding.gamma(1) * dot(np.abs(onward), magnitude(bounds[source].range))
            pending[source] = onward
    bound = total + error * (1 if rounding.exact else SLACK)
    if on_input is not None:
        bound = _plus(bound, problem.region.support(on_input, rounding), rounding)
    return np.where((bound != bound) | (bound == -np.inf), np.inf, bound)


def _charge(
    problem: Problem, pending: dict[int, np.ndarray], total: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Add β (z − lower) and β (upper − z), none negative under the restrictions, to the form (Lagrange)."""
    rounding = problem.rounding
    for index, signed in problem.multipliers.items():
        beta = rounding.array(signed)
        low, high = (rounding.array(end) for end in problem.held[index])
        place = np.where(beta > 0, low, np.where(beta < 0, high, 0 * beta))
        term = (beta * place).reshape(len(beta), -1)
        total = total - term.sum(1)[:, None]
        error = error + rounding.gamma(term.shape[1] + 2) * np.abs(term).sum(1)[:, None] + rounding.underflow
        pending[index] = pending[index] + beta[:, None] if index in pending else beta[:, None]
    return total, error


def _step(problem: Problem, index: int, at: NodeBounds, c: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], Any, int]:
    node = problem.graph.nodes[index]
    chain = problem.chain(index)
    if chain is not None:
        constant = 0 if chain.bias is None else dot(c, problem.rounding.array(chain.bias)[None])
        return [(0, chain.transposed(c))], constant, chain.transposed_terms
    if isinstance(node.op, ops.Add):
        return [(0, c), (1, c)], 0, 0
    if isinstance(node.op, ops.Concat):
        ends = np.cumsum([problem.graph.nodes[i].shape[node.op.axis] for i in node.inputs])[:-1]
        return list(enumerate(np.split(c, ends, axis=node.op.axis + 2))), 0, 0
    assert at.planes is not None
    passed, constant = at.planes.pass_on(c)
    return passed, constant, sum(c.shape[-2:]) + 4 if isinstance(at.planes, Bilinear) else 4 + len(SUMS)


def _count(c: np.ndarray) -> int:
    return math.prod(c.shape[2:])


def _reach(node: NodeBounds) -> np.ndarray:
    return magnitude(node.range).reshape(len(node.lower), -1).max(1, initial=0)[:, None]


def _plus(a: np.ndarray, b: np.ndarray, rounding: Arithmetic) -> np.ndarray:
    return a + b + rounding.gamma(1) * (np.abs(a) + np.abs(b))
