"""Properties of a network: is there an input in these boxes whose output is unsafe?

A case {x in a box, Aᵢ·f(x) ≤ bᵢ for all i of one of several conjunctions} is impossible if for every conjunction some i has
min over the box of Aᵢ·f(x) > bᵢ. Boxes for which that cannot be shown are cut into smaller ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mlflow_lipschitz.certify.counterexamples import Counterexample, Hunt, Served
from mlflow_lipschitz.certify.execution import default_chunk_size, halving, resolve_device, rigorous_arithmetic
from mlflow_lipschitz.certify.property_bounds import judge
from mlflow_lipschitz.certify.property_numbers import PropertyNumbers
from mlflow_lipschitz.certify.property_units import is_for_units, prove
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.input_splitting import Coverage, Judged, Pieces, cover
from mlflow_lipschitz.engine.transforms.objectives import flat_output
from mlflow_lipschitz.errors import InvalidRegion
from mlflow_lipschitz.vnnlib.unsafe_set import UnsafeSet

_FIRST_HUNT = 0.1  # of the time, at most, before anything is proved
_HUNTING = 0.2  # of the time, at most, while pieces are proved
_LEAST_HUNT = 0.05  # seconds
_FIRST_BOXES = 0.15  # of the time, at most, before values are cut
_ROWS_PER_PIECE = 8  # of the linear forms in flight


@dataclass(frozen=True)
class PropertyAnswer:
    """Whether the unsafe set is empty.

    Attributes:
        status: `certified`, `violated` or `undecided`.
        counterexample: what contradicts the property, when violated.
        pieces: how many boxes were looked at.
        reason: why it is undecided; empty when it is decided.
        arithmetic: what a certified property is about: `real`, the exact function of the stored weights.
    """

    status: str
    counterexample: Counterexample | None
    pieces: int
    reason: str = ""
    arithmetic: str = "real"


@dataclass(frozen=True)
class ServedModel:
    """The model as it is served.

    Attributes:
        kind: the type its inputs have, np.float32 or np.float64.
        answer: (points, *input shape) float64 → the points in that type, and outputs for them, (ways, points, outputs): the
            model may be served in several ways that round differently, and a counterexample is one in all of them.
    """

    kind: type
    answer: Served


def certify_property(
    graph: Graph,
    unsafe: UnsafeSet,
    served: ServedModel,
    *,
    timeout: float,
    device: str = "auto",
    chunk_size: int | None = None,
) -> PropertyAnswer:
    """Prove that the unsafe set is empty, or find an input in it.

    Args:
        graph: the model.
        unsafe: what must not occur.
        served: decides what is a counterexample.
        timeout: seconds after which no new work begins.
        device: auto, cpu or cuda.
        chunk_size: linear forms in flight; bounds memory.

    Raises:
        InvalidRegion: the property has another number of inputs or outputs than the graph.
        PropertyError: a number cannot be represented. UsageError: unknown device.
    """
    began = time.monotonic()
    place, flat = resolve_device(device), flat_output(graph)
    sizes = (torch.Size(flat.input_shape).numel(), flat.output_shape[0])
    if sizes != (unsafe.inputs, unsafe.outputs):
        raise InvalidRegion(
            f"the property has {unsafe.inputs} inputs and {unsafe.outputs} outputs, the model {sizes[0]} and {sizes[1]}"
        )
    numbers = PropertyNumbers.of(unsafe, flat.input_shape, served.kind, place)
    problem = Problem.of(flat, Box(numbers.lower, numbers.upper), None, place)
    with rigorous_arithmetic():
        hunt = Hunt(problem, unsafe, numbers, served.answer)
        hunt.everywhere(began + _FIRST_HUNT * timeout)
        search = _Search(problem, numbers, hunt, began, timeout)
        size = chunk_size or default_chunk_size(place, flat)
        return halving(size, search.run)


@dataclass(frozen=True)
class _Search:
    problem: Problem
    numbers: PropertyNumbers
    hunt: Hunt
    began: float
    timeout: float

    def run(self, chunk_size: int) -> PropertyAnswer:
        coverage = self._coverage(chunk_size)
        if self.hunt.found is not None:
            return PropertyAnswer("violated", self.hunt.found, coverage.judged)
        if coverage.complete:
            return PropertyAnswer("certified", None, coverage.judged)
        reason = f"no answer within {self.timeout:g} seconds" if coverage.reason == "stopped" else coverage.reason
        return PropertyAnswer("undecided", None, coverage.judged, reason)

    def _coverage(self, chunk_size: int) -> Coverage:
        if not is_for_units(self.numbers):
            return self._by_boxes(chunk_size, self._over)
        # Some properties of many inputs are easy for boxes all the same.
        found = self._by_boxes(chunk_size, lambda: self._over() or self._seconds >= _FIRST_BOXES * self.timeout)
        if not found.complete and not self._over():
            until = self.began + self.timeout
            found = prove(self.problem, self.numbers, self._look, self._over, (chunk_size, until))
        if not found.complete and not self._over():
            found = self._by_boxes(chunk_size, self._over)
        return found

    def _by_boxes(self, chunk_size: int, stop: Callable[[], bool]) -> Coverage:
        batch = max(1, chunk_size // _ROWS_PER_PIECE)
        return cover(self.numbers.roots, partial(self._judge, chunk_size), batch=batch, stop=stop)

    def _look(self, cases: Tensor, points: Tensor) -> None:
        if self.hunt.seconds <= _HUNTING * self._seconds:
            deadline = time.monotonic() + max(_HUNTING * self._seconds - self.hunt.seconds, 0.0) + _LEAST_HUNT
            self.hunt.around(Pieces(points, points, cases), points, deadline)

    def _over(self) -> bool:
        return self.hunt.found is not None or self._seconds >= self.timeout

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _judge(self, chunk_size: int, pieces: Pieces) -> Judged:
        judged, corners = judge(self.problem, self.numbers, pieces, chunk_size)
        rest = ~judged.proved
        if self.hunt.seconds <= _HUNTING * self._seconds and bool(rest.any()):
            # As much time as may be spent by now, and enough for a few steps.
            deadline = time.monotonic() + max(_HUNTING * self._seconds - self.hunt.seconds, 0.0) + _LEAST_HUNT
            self.hunt.around(judged.rest.chosen(rest), corners[rest], deadline)
        return judged
