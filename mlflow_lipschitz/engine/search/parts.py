"""What a search maximises, and what is known of a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.rounding import error_bound
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.splits import Layout, Splits, conditions


@dataclass(frozen=True)
class Rows:
    """What is maximised: coefficients (rows, 1, 1, *shape) on the node `target` of a problem with one point per row.

    `ranges` hold per node over the whole region, (rows, 1, *shape).
    """

    problem: Problem
    ranges: Sequence[Interval]
    target: int
    coeffs: Tensor

    def select(self, owner: Tensor) -> Rows:
        """A row for every number."""
        ranges = [Interval(x.lower[owner], x.upper[owner]) for x in self.ranges]
        problem = self.problem.select(owner, torch.zeros_like(owner))
        return replace(self, problem=problem, ranges=ranges, coeffs=self.coeffs[owner])


@dataclass(frozen=True)
class PartBounds:
    """Per part: `upper`, −∞ where it is empty; a corner to try; the most promising cuts, (parts, cuts) `places` of one entry.

    `promise` is 0 where no cut can help: every curve is a line there.
    """

    upper: Tensor
    corner: Tensor
    promise: Tensor
    entry: Tensor
    places: Tensor


def known_ranges(part: Rows, layout: Layout, splits: Splits) -> dict[int, Interval]:
    """Per node, the row's ranges and what the part's conditions leave of them."""
    known = dict(enumerate(part.ranges))
    for index, interval in conditions(layout, splits.clamps(layout)).items():
        known[index] = known[index].intersect(interval)
    return known


def are_empty(bounds: Sequence[NodeBounds]) -> Tensor:
    """(parts,) whether some value has no range left."""
    crossed = [entries(node.interval.lower > node.interval.upper, 1).any(-1) for node in bounds]
    return torch.stack([mask.expand(max(len(m) for m in crossed)) for mask in crossed]).any(0)


def lowest(coeffs: Tensor, ends: Interval) -> Tensor:
    """(rows,) the smallest coeffs · value, rounded down, for values between the ends; NaN or −∞ where nothing is known."""
    terms = torch.where(coeffs > 0, coeffs * ends.lower, torch.where(coeffs < 0, coeffs * ends.upper, 0.0)).flatten(1)
    slack = error_bound(terms.abs().sum(1), terms.shape[1])
    exact = (coeffs.abs() == 1) | (coeffs == 0)
    single = ((coeffs != 0).flatten(1).sum(1) <= 1) & exact.flatten(1).all(1)
    return terms.sum(1) - torch.where(single, 0.0, slack + 2.0**-960)


def highest(coeffs: Tensor, ends: Interval) -> Tensor:
    """(rows,) the largest coeffs · value, rounded up; +∞ where nothing is known."""
    value = -lowest(-coeffs, ends)
    return torch.where(value.isnan(), torch.inf, value)
