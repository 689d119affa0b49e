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
from mlflow_lipschitz.engine.propagation.backward import InputForm, concretize, upper_form
from mlflow_lipschitz.engine.propagation.multipliers import Condition, weighed_form
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.feasibility import Contradictions, charged_form

# A program that takes longer than this is not worth waiting for; its parts stay as they are.
_SECONDS = 10.0
_LARGEST_LEVEL = 1e12
# What a violated condition costs, where moving the objective over its whole range is worth 2.
_PENALTY = 1e4


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
    found = contradicting(problem, bounds, held)
    if found is None:
        corner = problem.region.box.lower
        return Contradictions(torch.zeros(problem.region.points, dtype=torch.bool, device=problem.device), corner)
    point, betas = found
    bound = concretize(problem, charged_form(problem, bounds, held, betas))[:, 0, 0]
    return Contradictions(bound < 0, point)


def contradicting(
    problem: Problem, bounds: Sequence[NodeBounds], held: dict[int, Condition]
) -> tuple[Tensor, dict[int, Tensor]] | None:
    """The point (parts, *input shape) that keeps most distance from the conditions, and multipliers, per node, which show that
    there is none, where there is none; None where the solver says nothing."""
    chosen = {index: _chosen(condition) for index, condition in held.items()}
    solved = _most_distant(_lines(problem, bounds, held, chosen))
    if solved is None:
        return None
    unit, duals = (values.to(problem.device) for values in solved)
    return _point(problem, unit), _betas(held, chosen, duals)


def extreme(
    problem: Problem, bounds: Sequence[NodeBounds], held: dict[int, Condition], objective: tuple[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """(parts,) upper bounds of an objective, exact where all curves are lines, far below all others where a part is empty.

    Args:
        objective: target and coefficients (parts, 1, 1, *shape of target).

    Returns:
        the bounds, and (parts, *input shape) points at which they are reached, if a part has any.
    """
    chosen = {index: _chosen(condition) for index, condition in held.items()}
    target = _line(problem, upper_form(problem, bounds, *objective))
    solved = _largest(_lines(problem, bounds, held, chosen), target)
    if solved is None:
        nothing = torch.full((problem.region.points,), torch.inf, dtype=torch.float64, device=problem.device)
        return nothing, problem.region.box.lower
    unit, duals = (values.to(problem.device) for values in solved)
    form = weighed_form(problem, bounds, objective, held, _betas(held, chosen, duals))
    return concretize(problem, form)[:, 0, 0], _point(problem, unit)


def _betas(held: dict[int, Condition], chosen: dict[int, Tensor], duals: Tensor) -> dict[int, Tensor]:
    betas, start = {}, 0
    for index, entry in chosen.items():
        own = duals[:, start : start + entry.shape[1]]
        flat = torch.zeros_like(entries(held[index].sign[:, 0], 1)).scatter(1, entry, own)
        betas[index], start = flat.reshape(held[index].sign.shape), start + entry.shape[1]
    return betas


def _point(problem: Problem, unit: Tensor) -> Tensor:
    box = problem.region.box
    middle, reach = box.lower / 2 + box.upper / 2, box.upper / 2 - box.lower / 2
    return middle + reach * unit.reshape(middle.shape)


def _chosen(condition: Condition) -> Tensor:
    """(parts, most conditions of any part) entries, those with a condition first."""
    given = entries(condition.sign[:, 0], 1) != 0
    most = int(given.sum(1).amax())
    return given.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]


def _lines(
    problem: Problem, bounds: Sequence[NodeBounds], held: dict[int, Condition], chosen: dict[int, Tensor]
) -> _Lines:
    found = []
    for index, entry in chosen.items():
        condition, shape = held[index], problem.graph.nodes[index].shape
        sign, place = (entries(x[:, 0], 1).gather(1, entry) for x in (condition.sign, condition.place))
        units = torch.zeros((*entry.shape, torch.Size(shape).numel()), dtype=torch.float64, device=entry.device)
        units = units.scatter(2, entry[..., None], sign[..., None])
        line = _line(problem, upper_form(problem, bounds, index, units.reshape(len(entry), 1, -1, *shape)))
        found.append(_Lines(line.slopes, line.offset - sign * place))
    return _Lines(torch.cat([x.slopes for x in found], 1), torch.cat([x.offset for x in found], 1))


def _line(problem: Problem, form: InputForm) -> _Lines:
    """A form over the unit box."""
    box = problem.region.box
    middle, reach = (entries(x, 1)[:, None] for x in (box.lower / 2 + box.upper / 2, box.upper / 2 - box.lower / 2))
    offset = form.offset[:, 0]
    if form.coeffs is None:
        return _Lines(torch.zeros((*offset.shape, middle.shape[-1]), dtype=torch.float64, device=offset.device), offset)
    on_input = entries(form.coeffs[:, 0], 2)
    return _Lines(on_input * reach, offset + (on_input * middle).sum(-1))


def _most_distant(lines: _Lines) -> tuple[Tensor, Tensor] | None:
    """Points of the unit box (parts, inputs) farthest inside all conditions, and the multipliers that say so (parts, rows).

    Maximise Σ t over slopes · u + offset ≥ t · size: no t depends on another part.
    """
    parts, _, inputs = lines.slopes.shape
    cost = np.concatenate([np.zeros(parts * inputs), -np.ones(parts)])
    return _solved(lines, cost, 1.0, (-np.inf, 1.0))


def _largest(lines: _Lines, target: _Lines) -> tuple[Tensor, Tensor] | None:
    """Points of the unit box where the target is largest inside all conditions, and the multipliers that say so.

    Maximise Σ target · u / size − penalty · s over slopes · u + offset ≥ −s · size, s ≥ 0, so that an empty part spoils no other.
    """
    size = target.size[:, 0].cpu().numpy()
    scale = np.where((size > 0) & np.isfinite(size), size, 1.0)
    aim = np.nan_to_num(target.slopes[:, 0].cpu().numpy() / scale[:, None])
    solved = _solved(lines, np.concatenate([-aim.ravel(), np.full(len(size), _PENALTY)]), -1.0, (0.0, np.inf))
    return None if solved is None else (solved[0], solved[1] * torch.from_numpy(scale)[:, None])


def _solved(lines: _Lines, cost: np.ndarray, sign: float, last: tuple[float, float]) -> tuple[Tensor, Tensor] | None:
    """One program for all parts, in u and one number t more per part, with limits `last`: slopes · u + offset ≥ sign · t · size."""
    parts, rows, inputs = lines.slopes.shape
    slopes, offset, size = (x.cpu().numpy() for x in (lines.slopes, lines.offset, lines.size))
    with np.errstate(all="ignore"):
        level = offset / size
    # A level far outside says nothing: it comes from ranges that nearly overflow.
    usable = (size > 0) & np.isfinite(size) & np.isfinite(slopes).all(-1) & (np.abs(level) < _LARGEST_LEVEL)
    part, row = usable.nonzero()
    scale = size[part, row]  # every row reaches from −1 to 1
    count = len(part)
    columns = part[:, None] * inputs + np.arange(inputs)
    lefts = coo_array(
        ((-slopes[part, row] / scale[:, None]).ravel(), (np.arange(count).repeat(inputs), columns.ravel())),
        shape=(count, parts * inputs),
    )
    further = coo_array((np.full(count, sign), (np.arange(count), part)), shape=(count, parts))
    limits = np.concatenate([np.tile([[-1.0, 1.0]], (parts * inputs, 1)), np.tile([last], (parts, 1))])
    matrix = hstack([lefts, further], format="csr")
    try:
        found = linprog(cost, matrix, level[part, row], bounds=limits, options={"time_limit": _SECONDS})
    except ValueError:  # a solver that refuses its numbers has nothing to say
        return None
    if found.status != 0 or found.x is None:
        return None
    duals = np.zeros((parts, rows))
    duals[part, row] = np.maximum(-found.ineqlin.marginals, 0.0) / scale
    unit = np.clip(found.x[: parts * inputs], -1.0, 1.0).reshape(parts, inputs)
    return torch.from_numpy(unit), torch.from_numpy(np.nan_to_num(duals, posinf=0.0))
