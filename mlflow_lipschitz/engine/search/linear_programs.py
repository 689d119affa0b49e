"""Parts in which every curve is a line, settled by a linear program: a point inside, or multipliers that prove there is none.

The solver is not trusted: its point is one to try, and its dual numbers are multipliers, of which any that are not negative are
sound (Farkas' lemma).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array, hstack
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.propagation.backward import concretize, upper_form
from mlflow_lipschitz.engine.propagation.multipliers import Condition
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.feasibility import Contradictions, charged_form

# A program that takes longer than this is not worth waiting for; its parts stay as they are.
_SECONDS = 10.0


@dataclass(frozen=True)
class _Lines:
    """Conditions as lines over the unit box, slopes · u + offset ≥ 0: (parts, rows, inputs) and (parts, rows)."""

    slopes: Tensor
    offset: Tensor

    @property
    def size(self) -> Tensor:
        """How far each line ranges; 0 where there is no condition."""
        return self.slopes.abs().sum(-1)


def settled(problem: Problem, bounds: Sequence[NodeBounds], held: dict[int, Condition]) -> Contradictions:
    """As `feasibility.contradictions`, exact where all curves are lines; the corner is the point that keeps most distance."""
    box = problem.region.box
    chosen = {index: _chosen(condition) for index, condition in held.items()}
    lines = _lines(problem, bounds, held, chosen)
    solved = _most_distant(lines)
    proved = torch.zeros(problem.region.points, dtype=torch.bool, device=problem.device)
    if solved is None:
        return Contradictions(proved, box.lower)
    unit, duals = (values.to(problem.device) for values in solved)
    betas, start = {}, 0
    for index, entry in chosen.items():
        own = duals[:, start : start + entry.shape[1]]
        flat = torch.zeros_like(entries(held[index].sign[:, 0], 1)).scatter(1, entry, own)
        betas[index], start = flat.reshape(held[index].sign.shape), start + entry.shape[1]
    bound = concretize(problem, charged_form(problem, bounds, held, betas))[:, 0, 0]
    middle, reach = box.lower / 2 + box.upper / 2, box.upper / 2 - box.lower / 2
    return Contradictions(bound < 0, middle + reach * unit.reshape(middle.shape))


def _chosen(condition: Condition) -> Tensor:
    """(parts, most conditions of any part) entries, those with a condition first."""
    given = entries(condition.sign[:, 0], 1) != 0
    most = int(given.sum(1).amax())
    return given.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]


def _lines(
    problem: Problem, bounds: Sequence[NodeBounds], held: dict[int, Condition], chosen: dict[int, Tensor]
) -> _Lines:
    box = problem.region.box
    middle, reach = (entries(x, 1)[:, None] for x in (box.lower / 2 + box.upper / 2, box.upper / 2 - box.lower / 2))
    slopes, offsets = [], []
    for index, entry in chosen.items():
        condition, shape = held[index], problem.graph.nodes[index].shape
        sign, place = (entries(x[:, 0], 1).gather(1, entry) for x in (condition.sign, condition.place))
        units = torch.zeros((*entry.shape, torch.Size(shape).numel()), dtype=torch.float64, device=entry.device)
        units = units.scatter(2, entry[..., None], sign[..., None])
        form = upper_form(problem, bounds, index, units.reshape(len(entry), 1, -1, *shape))
        level = form.offset[:, 0] - sign * place
        if form.coeffs is None:
            slopes.append(torch.zeros((*entry.shape, middle.shape[-1]), dtype=torch.float64, device=entry.device))
        else:
            on_input = entries(form.coeffs[:, 0], 2)
            level = level + (on_input * middle).sum(-1)
            slopes.append(on_input * reach)
        offsets.append(level)
    return _Lines(torch.cat(slopes, 1), torch.cat(offsets, 1))


def _most_distant(lines: _Lines) -> tuple[Tensor, Tensor] | None:
    """Points of the unit box (parts, inputs) farthest inside all conditions, and the multipliers that say so (parts, rows).

    One program for all parts: maximise Σ t over slopes · u + offset ≥ t · size, where no t depends on another part.
    """
    parts, rows, inputs = lines.slopes.shape
    slopes, offset, size = (x.cpu().numpy() for x in (lines.slopes, lines.offset, lines.size))
    usable = (size > 0) & np.isfinite(slopes).all(-1) & np.isfinite(offset)
    part, row = usable.nonzero()
    scale = size[part, row]  # every row reaches from −1 to 1
    count = len(part)
    columns = part[:, None] * inputs + np.arange(inputs)
    lefts = coo_array(
        ((-slopes[part, row] / scale[:, None]).ravel(), (np.arange(count).repeat(inputs), columns.ravel())),
        shape=(count, parts * inputs),
    )
    distance = coo_array((np.ones(count), (np.arange(count), part)), shape=(count, parts))
    cost = np.concatenate([np.zeros(parts * inputs), -np.ones(parts)])
    limits = np.concatenate([np.tile([[-1.0, 1.0]], (parts * inputs, 1)), np.tile([[-np.inf, 1.0]], (parts, 1))])
    matrix = hstack([lefts, distance], format="csr")
    found = linprog(cost, matrix, offset[part, row] / scale, bounds=limits, options={"time_limit": _SECONDS})
    if found.status != 0:
        return None
    duals = np.zeros((parts, rows))
    duals[part, row] = np.maximum(-found.ineqlin.marginals, 0.0) / scale
    unit = np.clip(found.x[: parts * inputs], -1.0, 1.0).reshape(parts, inputs)
    return torch.from_numpy(unit), torch.from_numpy(np.nan_to_num(duals, posinf=0.0))
