"""Forward linear propagation: every node as an affine function of the input, plus an error that does not follow it.

One pass costs as many numbers per node as there are inputs, however many entries the node has: the way through graphs whose
products and smooth curves have far too many entries for a backward pass each (attention, normalization). To first order in the
region's radius it is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.linear_form import LinearForm
from mlflow_lipschitz.engine.domains.rounding import error_bound
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.backward import InputForm
from mlflow_lipschitz.engine.propagation.plan import copies_behind
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.forward import lost_to_underflow
from mlflow_lipschitz.engine.rules.registry import rule_for

# The share of an interval that is worth a backward pass.
_NOTICEABLE = 0.5


class ForwardSweep:
    """Forms of the nodes passed so far, dropped after their last use."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        box = problem.region.box
        self._reach = entries(torch.maximum(box.lower.abs(), box.upper.abs()), 1)
        self._forms: dict[int, LinearForm] = {}
        self._last_use = _last_uses(problem.graph)

    def start(self, index: int) -> None:
        """A node that is given: the input or the objective."""
        cotangent = self._problem.cotangent
        if isinstance(self._problem.graph.nodes[index].op, ops.Cotangent):
            assert cotangent is not None
            self._forms[index] = LinearForm(None, cotangent, torch.zeros_like(cotangent))
            return
        shape = self._problem.graph.input_shape
        size = math.prod(shape)
        unit = torch.eye(size, dtype=torch.float64, device=self._reach.device).reshape(1, 1, size, *shape)
        zero = unit.new_zeros((1, 1, *shape))
        self._forms[index] = LinearForm(unit, zero, zero)

    def advance(self, index: int, *inputs: Interval) -> None:
        """The form of the next node, whose inputs have the intervals given."""
        node, weights = self._problem.graph.nodes[index], self._problem.weights[index]
        forms = [self._forms[i] for i in node.inputs]
        self._forms[index] = rule_for(node.op).forward(node.op, weights, inputs, forms, self._reach)
        for source in node.inputs:
            if self._last_use[source] == index:
                self._forms.pop(source, None)

    def is_loose(self, index: int, interval: Interval) -> Tensor:
        """Entries of which a good part of the interval is the form's error: where a backward pass has something to gain."""
        error = self._forms[index].error
        return ~(2 * error <= _NOTICEABLE * (interval.upper - interval.lower))

    def replace(self, index: int, place: Tensor, upper: InputForm) -> None:
        """Take the linear bounds that a backward pass found for some entries, where they are closer than the form.

        Args:
            place: (points, objectives, rows) which entries.
            upper: of +entry for each row, then of −entry.
        """
        form, inputs = self._forms[index], self._reach.shape[1]
        if upper.coeffs is None:
            return
        above, below = entries(upper.coeffs, 3).split(place.shape[2], 2)
        offset_above, offset_below = upper.offset.split(place.shape[2], 2)
        middle, apart = (above - below) / 2, (above + below) / 2
        largest = self._problem.region.support(apart.reshape(*apart.shape[:3], *self._problem.graph.input_shape))
        offset = (offset_above - offset_below) / 2
        size = ((above.abs() + below.abs()) * self._reach[:, None, None]).sum(-1)
        size = size + offset_above.abs() + offset_below.abs() + largest.abs()
        error = largest + (offset_above + offset_below) / 2 + error_bound(size, 8) + lost_to_underflow(self._reach)
        error = torch.where(error.isfinite(), error.clamp(min=0), torch.inf).expand(place.shape)
        known = entries(form.error, 2).expand(*place.shape[:2], -1)
        closer = error < torch.where(known.isnan(), torch.inf, known).gather(2, place)
        shape = form.offset.shape[2:]
        replaced = [
            _put(old, place, closer, new.expand(place.shape)).reshape(*place.shape[:2], *shape)
            for old, new in ((known, error), (entries(form.offset, 2).expand(known.shape), offset))
        ]
        coeffs = entries(form.coeffs_or_zero(inputs), 3).expand(*place.shape[:2], inputs, known.shape[2])
        chosen = middle.transpose(2, 3).expand(*place.shape[:2], inputs, -1)
        at = place[:, :, None].expand(chosen.shape)
        coeffs = _put(coeffs, at, closer[:, :, None].expand(chosen.shape), chosen)
        self._forms[index] = LinearForm(coeffs.reshape(*place.shape[:2], inputs, *shape), replaced[1], replaced[0])

    def interval(self, index: int) -> Interval:
        """What the node's form says of its range over the region."""
        form = self._forms[index]
        if form.coeffs is None:
            slack = error_bound(form.offset.abs() + form.error, 1)
            return Interval.enclosing(form.offset - form.error - slack, form.offset + form.error + slack)
        shape, inputs = form.offset.shape[2:], self._problem.graph.input_shape
        rows = entries(form.coeffs, 3).transpose(2, 3)
        rows = rows.reshape(*rows.shape[:3], *inputs)
        high, low = (entries(self._problem.region.support(side), 2) for side in (rows, -rows))
        offset, error = entries(form.offset, 2), entries(form.error, 2)
        slack = error_bound(offset.abs() + error + high.abs() + low.abs(), 4)
        lower, upper = offset - low - error - slack, offset + high + error + slack
        return Interval.enclosing(lower.reshape(*lower.shape[:2], *shape), upper.reshape(*upper.shape[:2], *shape))


def _last_uses(graph: Graph) -> dict[int, int]:
    """Where each node's form is read last; a copied node's is read again when the node is refined for a reader of the copy."""
    last = {i: index for index, node in enumerate(graph.nodes) for i in node.inputs}
    for index in range(len(graph.nodes) - 1, -1, -1):
        for source in graph.nodes[index].inputs:
            if copies_behind(graph, index)[0]:
                last[source] = max(last[source], last.get(index, index))
    return last


def _put(old: Tensor, place: Tensor, chosen: Tensor, new: Tensor) -> Tensor:
    """`old` with `new` at the places of the last axis where `chosen`."""
    return old.scatter(-1, place, torch.where(chosen, new, old.gather(-1, place)))
