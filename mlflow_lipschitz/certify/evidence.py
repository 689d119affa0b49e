"""What a certification leaves for a second program to re-prove it: slopes of planes, and how regions were cut.

None of it has to be believed: any slope and any cut lead to a bound that holds, and these lead to the one that was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.plan import is_smooth
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.relaxation import Relaxation
from mlflow_lipschitz.engine.search.evidence import SearchEvidence
from mlflow_lipschitz.engine.search.splits import depend_on_objective

Slopes = dict[str, np.ndarray]


@dataclass(frozen=True)
class Evidence:
    """
    Attributes:
        slopes: `slopes/node/above/operand` and `…/below/…` of planes around nonlinear ops, `last/…` of those for the last linear
            form alone; (points, objectives or 1, *shape).
        trees: how regions were cut, a tree for every point and objective; None without a search.
    """

    slopes: Mapping[str, np.ndarray]
    trees: SearchEvidence | None = None


def slopes_of(problem: Problem, bounds: Sequence[NodeBounds], folder: str, only: type[ops.Op] = ops.Op) -> Slopes:
    """The slopes of all planes for which there is a choice. Customary ones around kinks and their derivatives go without saying."""
    graph, points, objectives = problem.graph, problem.region.points, problem.objectives
    after = depend_on_objective(graph)
    found: Slopes = {}
    for index, node in enumerate(graph.nodes[: len(bounds)]):
        planes = bounds[index].relaxation
        chosen = is_smooth(node.op) or folder == "last"
        if not (chosen and isinstance(node.op, only) and isinstance(planes, Relaxation)):
            continue
        if isinstance(node.op, ops.Elementwise | ops.Multiply):
            for side, slopes in (("above", planes.upper_slopes), ("below", planes.lower_slopes)):
                for operand, slope in zip(planes.operands, slopes, strict=True):
                    lead = (
                        (points, slope.shape[1]) if index not in after or slope.shape[1] > 1 else (points, objectives)
                    )
                    found[f"{folder}/{index}/{side}/{operand}"] = _array(slope.expand(*lead, *slope.shape[2:]))
    return found


def by_point(parts: Sequence[Slopes]) -> Slopes:
    """Slopes of one portion of the points after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def by_objective(parts: Sequence[Slopes]) -> Slopes:
    """Slopes of the same points for one portion of the objectives after the other; what depends on none is the same in each."""
    sizes = {name: max(part[name].shape[1] for part in parts) for name in parts[0]}
    return {
        name: parts[0][name] if sizes[name] == 1 and len(parts) == 1 else _side_by_side([part[name] for part in parts])
        for name in parts[0]
    }


def _side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    same = len(parts) > 1 and all(part.shape[1] == 1 and np.array_equal(part, parts[0]) for part in parts)
    return parts[0] if same else np.concatenate(parts, axis=1)


def _array(slope: Tensor) -> np.ndarray:
    return np.asarray(slope.detach().cpu().numpy())
