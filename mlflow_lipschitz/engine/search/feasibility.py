"""Parts that hold no point, because their conditions contradict each other.

Σ β s (z − place) with β ≥ 0 is nowhere negative in a part. Where its upper bound over the relaxed region is, the part is empty
(Farkas' lemma; β-CROWN, Wang et al., NeurIPS 2021). Multipliers and slopes are searched for; any of them is sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.rounding import error_bound
from mlflow_lipschitz.engine.propagation.adam import Adam
from mlflow_lipschitz.engine.propagation.backward import InputForm, concretize, upper_form
from mlflow_lipschitz.engine.propagation.multipliers import Condition, charged
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.propagation.slopes import families_of, relaxed
from mlflow_lipschitz.engine.search.splits import Layout, Splits

_RATE = 0.3
# Multipliers are exponentials of what is searched: three times as fast, within what neither overflows nor vanishes.
_LOG_SCALE, _LOG_LIMIT = 3.0, 20.0


@dataclass(frozen=True)
class Contradictions:
    """Per part: whether it was `proved` empty, and the corner (parts, *input shape) that comes closest to its conditions."""

    proved: Tensor
    corner: Tensor


def contradictions(
    problem: Problem, bounds: Sequence[NodeBounds], held: dict[int, Condition], *, steps: int
) -> Contradictions:
    """Try to prove parts empty.

    Args:
        problem: one point per part.
        bounds: per node up to the last one with a condition, with relaxations.
        held: per node, its conditions, (parts, 1, *shape).
    """
    box = problem.region.box
    proved = torch.zeros(problem.region.points, dtype=torch.bool, device=problem.device)
    if not held:
        return Contradictions(proved, box.lower)
    last = max(held)
    families = families_of(problem.graph, bounds[:last])
    slopes = [weight.detach().clone().requires_grad_() for family in families.values() for weight in family.start]
    chosen = dict(zip(families, zip(slopes[::2], slopes[1::2], strict=True), strict=True))
    logs = {index: torch.zeros_like(condition.sign).requires_grad_() for index, condition in held.items()}
    leaves = [*slopes, *logs.values()]
    limits = [(0.0, 1.0)] * len(slopes) + [(-_LOG_LIMIT, _LOG_LIMIT)] * len(logs)
    adam, scale, form = Adam(leaves, limits, _RATE), _scale(bounds, held), None
    for step in range(steps):
        with torch.enable_grad():
            betas = {i: (_LOG_SCALE * log).exp() * scale[i] for i, log in logs.items()}
            form = charged_form(problem, relaxed(problem.graph, bounds, families, chosen), held, betas)
            bound = concretize(problem, form)[:, 0, 0]
            total = bound.sum()  # parts share nothing that is free, so their sum separates
        proved = proved | (bound.detach() < 0)
        if step < steps - 1:
            adam.step(torch.autograd.grad(total, leaves, allow_unused=True))
    corner = box.lower
    if form is not None and form.coeffs is not None:
        corner = torch.where(form.coeffs[:, 0, 0].detach() > 0, box.upper, box.lower)
    return Contradictions(proved, corner)


def conditions_of(layout: Layout, splits: Splits) -> dict[int, Condition]:
    """The conditions as (parts, 1, *shape) per node; of two on one entry, the one above its place."""
    clamps = splits.clamps(layout)
    low, high = layout.per_node(clamps.lower), layout.per_node(clamps.upper)
    cut = set(layout.nodes_of(splits))
    held = {}
    for index in layout.nodes:
        if index in cut:
            above, below = low[index].isfinite(), high[index].isfinite()
            sign = above.to(torch.float64) - (below & ~above).to(torch.float64)
            place = torch.where(above, low[index], torch.where(below, high[index], 0.0))
            held[index] = Condition(sign, place)
    return held


def charged_form(
    problem: Problem, bounds: Sequence[NodeBounds], held: dict[int, Condition], betas: dict[int, Tensor]
) -> InputForm:
    """An upper bound of Σ β s (z − place), one row per part; `betas` (parts, 1, *shape) per node, none negative."""
    more, constant = charged(held, betas)
    last = max(held)
    form = upper_form(problem, bounds, last, more.pop(last), more)
    size = form.offset.detach().abs() + constant.detach().abs()
    return InputForm(form.coeffs, form.offset + constant + error_bound(size, 1))


def _scale(bounds: Sequence[NodeBounds], held: dict[int, Condition]) -> dict[int, Tensor]:
    """Multipliers to start from: every condition weighs as much as any other, relative to the range it is about."""
    scale = {}
    for index in held:
        z = bounds[index].interval
        weight = 1 / (z.upper - z.lower)
        scale[index] = torch.where(weight.isfinite() & (weight > 0), weight, 0.0)
    return scale
