"""Looking for an input that contradicts a property, and making sure of it.

Candidates come from descents on the graph in float64 and from the pieces of the search. One counts only if the model as it is
served, in its own type, gives outputs that are unsafe exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.property_numbers import PropertyNumbers
from mlflow_lipschitz.engine.attack.descent import descend, outputs_at
from mlflow_lipschitz.engine.attack.sampling import sample
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.input_splitting import Pieces
from mlflow_lipschitz.vnnlib.unsafe_set import UnsafeSet

_ENTRIES = 1 << 22  # numbers in one tensor
_SURE = 12  # candidates per batch that the served model is asked about
_NEAR = 1e-4  # relative: float32 may see an unsafe output where float64 sees one that is almost
_STEPS = 40
_STARTS = (2, 8)  # per box and conjunction, at least and at most
_FEW = 1 << 10  # starts of one round, over all boxes
_SEEDS = 8  # pieces of the search from which a descent starts

Served = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # see ServedModel.answer


@dataclass(frozen=True)
class Counterexample:
    """An input that contradicts a property.

    Attributes:
        point: (*input shape), in the model's own type.
        outputs: (outputs,), what the served model answers.
        nearest: whether for some entry the box holds no number of that type, so that the nearest was taken.
    """

    point: np.ndarray
    outputs: np.ndarray
    nearest: bool


class Hunt:
    """Keeps the first counterexample in `found`; everything else it is told is a candidate."""

    def __init__(self, problem: Problem, unsafe: UnsafeSet, numbers: PropertyNumbers, served: Served) -> None:
        self._problem, self._unsafe, self._numbers, self._served = problem, unsafe, numbers, served
        self._widest = max(math.prod(node.shape) for node in problem.graph.nodes)
        self._generator = torch.Generator().manual_seed(0)
        self.found: Counterexample | None = None
        self.seconds = 0.0

    def everywhere(self, deadline: float) -> None:
        """One round of descents in every box, towards every conjunction of it, until the deadline."""
        cases, conjunctions = (self._numbers.limits > -torch.inf).all(-1).nonzero().T
        starts = min(max(_FEW // len(cases), _STARTS[0]), _STARTS[1])
        step = max(1, _ENTRIES // (starts * self._widest))
        for first in range(0, len(cases), step):
            if self.found is not None or time.monotonic() >= deadline:
                return
            part = slice(first, first + step)
            self._descend(cases[part], conjunctions[part], starts, None, deadline)

    def around(self, pieces: Pieces, corners: Tensor, deadline: float) -> None:
        """Look at centers and `corners`, (pieces, *input shape), of pieces, and walk on from the best of them."""
        x = torch.stack([pieces.lower / 2 + pieces.upper / 2, corners])
        distance = self._distance(x, pieces.owner)
        self._check(x.flatten(0, 1), pieces.owner.repeat(2), distance.amin(-1).flatten())
        if self.found is not None:
            return
        lowest, sample_of = distance.amin(-1).min(0)
        best = lowest.argsort()[:_SEEDS]
        start = x[sample_of[best], best]
        conjunction = distance[sample_of[best], best].argmin(-1)
        self._descend(pieces.owner[best], conjunction, _STARTS[0], start, deadline)

    def _descend(self, cases: Tensor, conjunctions: Tensor, starts: int, given: Tensor | None, deadline: float) -> None:
        began = time.monotonic()
        numbers = self._numbers
        box = Box(numbers.served_lower[cases], numbers.served_upper[cases])
        x = sample(box, starts, self._generator)
        x = x if given is None else torch.cat([given[None], x[1:]])
        rows, limits = numbers.rows[cases, conjunctions], numbers.limits[cases, conjunctions]
        problem = self._problem.with_region(box)
        x, distance = descend(
            problem, lambda y: _worst(y, rows, limits), x, steps=_STEPS, stop=lambda: time.monotonic() >= deadline
        )
        self._check(x, cases, distance)
        self.seconds += time.monotonic() - began

    def _distance(self, x: Tensor, owner: Tensor) -> Tensor:
        """(samples, points, conjunctions): ≤ 0 where the outputs are unsafe, in float64."""
        numbers = self._numbers
        y = outputs_at(self._problem, x)
        distance = _worst(y[:, :, None], numbers.rows[owner], numbers.limits[owner])
        return torch.where(distance.isnan(), torch.inf, distance)

    def _check(self, x: Tensor, owner: Tensor, distance: Tensor) -> None:
        """Ask the served model about the most promising of (points, *input shape) candidates."""
        limits = self._numbers.limits[owner].flatten(1)
        size = torch.where(limits.isfinite(), limits.abs(), 0.0).amax(1)
        near = (distance <= _NEAR * (1 + size)).nonzero().squeeze(1)
        near = near[distance[near].argsort()[:_SURE]]
        if near.numel() == 0 or self.found is not None:
            return
        numbers, owner = self._numbers, owner[near]
        served = torch.minimum(torch.maximum(x[near], numbers.served_lower[owner]), numbers.served_upper[owner])
        points, answers = self._served(served.cpu().numpy())
        # Rounding to the served type is monotone, and the ends are numbers of that type: rounded, a point is still inside.
        inside = torch.minimum(torch.maximum(served, numbers.lower[owner]), numbers.upper[owner])
        exact = (self._distance(inside[None], owner)[0].amin(-1) <= 0).tolist()
        for i, case in enumerate(owner.tolist()):
            nearest = bool(numbers.nearest[case])
            # Off the box by a rounding, the served model alone proves nothing about the box.
            if (exact[i] or not nearest) and all(self._is_unsafe(case, answer) for answer in answers[:, i]):
                self.found = Counterexample(points[i], answers[0, i], nearest)
                return

    def _is_unsafe(self, case: int, outputs: np.ndarray) -> bool:
        return bool(np.isfinite(outputs).all()) and self._unsafe.cases[case].is_unsafe(outputs.tolist())


def _worst(y: Tensor, rows: Tensor, limits: Tensor) -> Tensor:
    """How far outputs (…, outputs) are from lying in all half-spaces (…, half-spaces, outputs): ≤ 0 inside."""
    return ((rows * y[..., None, :]).sum(-1) - limits).amax(-1)
