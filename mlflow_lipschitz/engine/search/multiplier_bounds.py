"""Bounds of parts whose conditions weigh in by multipliers (β-CROWN, Wang et al., NeurIPS 2021), with free slopes (α-CROWN).

Every setting of slopes and multipliers is sound; the best of a few gradient steps is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.propagation.adam import Adam
from mlflow_lipschitz.engine.propagation.backward import InputForm, concretize
from mlflow_lipschitz.engine.propagation.multipliers import weighed_form
from mlflow_lipschitz.engine.propagation.pre_activation import inherited_bounds
from mlflow_lipschitz.engine.propagation.slopes import families_of, relaxed
from mlflow_lipschitz.engine.search.feasibility import conditions_of
from mlflow_lipschitz.engine.search.parts import PartBounds, Rows, are_empty, known_ranges
from mlflow_lipschitz.engine.search.promise import Sensitivity, promises, sensitivity
from mlflow_lipschitz.engine.search.splits import Layout, Splits

_RATE, _DECAY = 0.3, 0.9
# Multipliers in units of what moves the whole objective when a value crosses its whole range, and the largest that is tried.
_UNIT, _LARGEST = 0.1, 1e4


def bound_by_multipliers(part: Rows, layout: Layout, splits: Splits, steps: int) -> PartBounds:
    """Bound parts; see `bounding.bound_parts`."""
    held = conditions_of(layout, splits)
    bounds = inherited_bounds(part.problem, known_ranges(part, layout, splits), stop=part.target)
    graph = part.problem.graph
    families = families_of(graph, bounds)
    slopes = [weight.detach().clone().requires_grad_() for family in families.values() for weight in family.start]
    chosen = dict(zip(families, zip(slopes[::2], slopes[1::2], strict=True), strict=True))
    weights = {index: torch.zeros_like(condition.sign).requires_grad_() for index, condition in held.items()}
    scale = _scale(part, bounds[part.target].interval, {i: bounds[i].interval for i in held})
    leaves = [*slopes, *weights.values()]
    limits = [(0.0, 1.0)] * len(slopes) + [(0.0, _LARGEST)] * len(weights)
    adam, best = Adam(leaves, limits, _RATE, _DECAY), torch.full_like(part.coeffs[:, 0, 0].flatten(1)[:, 0], torch.inf)
    felt: Sensitivity = {}
    form: InputForm | None = None
    for step in range(steps + 1):
        with torch.enable_grad():
            planes = relaxed(graph, bounds, families, chosen)
            betas = {i: w * scale[i] for i, w in weights.items()}
            form = weighed_form(part.problem, planes, (part.target, part.coeffs), held, betas)
            bound = concretize(part.problem, form)[:, 0, 0]
            total = bound.sum()  # parts share nothing that is free, so their sum separates
        best = torch.minimum(best, bound.detach())
        if not total.requires_grad:
            break
        if step == steps:
            felt = sensitivity(planes, total)
        else:
            adam.step(torch.autograd.grad(total, leaves, allow_unused=True))
    best = torch.where(are_empty(bounds), -torch.inf, best)
    promise, place = promises(layout, bounds, felt)
    most, entry = promise.max(1)
    return PartBounds(best, _corner(part, form), most, entry, place.gather(1, entry[:, None]))


def _corner(part: Rows, form: InputForm | None) -> Tensor:
    """Where the last linear bound is largest."""
    box = part.problem.region.box
    if form is None or form.coeffs is None:
        return box.lower
    return torch.where(form.coeffs[:, 0, 0].detach() > 0, box.upper, box.lower)


def _scale(part: Rows, target: Interval, cut: dict[int, Interval]) -> dict[int, Tensor]:
    """What a multiplier of 1 stands for, per node: (parts, 1, *shape)."""
    width = (part.coeffs[:, 0].abs() * (target.upper - target.lower)).flatten(1).sum(1)
    scale = {}
    for index, z in cut.items():
        weight = _UNIT * width.reshape(-1, *(1,) * (z.lower.dim() - 1)) / (z.upper - z.lower)
        scale[index] = torch.where(weight.isfinite(), weight, 0.0)
    return scale
