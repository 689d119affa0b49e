"""Which boxes hold no unsafe input, what the bounds rule out of the others, and where to cut them."""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_lipschitz.certify.property_numbers import PropertyNumbers
from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.domains.rounding import next_down
from mlflow_lipschitz.engine.propagation.backward import InputForm, concretize, upper_form
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.half_spaces import HalfSpaces, leave_nothing, shrunk
from mlflow_lipschitz.engine.search.input_splitting import Judged, Pieces


def judge(problem: Problem, numbers: PropertyNumbers, pieces: Pieces, chunk_size: int) -> tuple[Judged, Tensor]:
    """One pass of bounds over all pieces.

    Returns:
        what is known of the pieces, and (pieces, *input shape) corners at which the bound that is nearest to a proof is worst.
    """
    part = problem.with_region(Box(pieces.lower, pieces.upper))
    bounds = bound_nodes(part, Refinement(chunk_size))
    limits = numbers.limits[pieces.owner]
    rows = numbers.rows[pieces.owner].flatten(1, 2)[:, None]
    form = upper_form(part, bounds, problem.graph.output, torch.cat([-rows, rows], 2))
    lower = -concretize(part, form)[:, 0, : rows.shape[2]].reshape(limits.shape)
    # Unknown is −∞, so that it is never above a limit. A conjunction that is only there to fill up is impossible already.
    impossible = ((lower > limits) | (limits == -torch.inf)).any(-1)
    gap, row = torch.where(limits.isfinite(), limits - lower, torch.inf).min(-1)
    if form.coeffs is None:
        distance = torch.where(impossible, -torch.inf, gap).amax(-1)
        return Judged(impossible.all(-1), distance, pieces.upper - pieces.lower, pieces), pieces.upper
    rest, impossible = _rest(pieces, limits, form, impossible)
    distance, conjunction = torch.where(impossible, -torch.inf, gap).max(-1)
    place = conjunction * limits.shape[2] + row.gather(1, conjunction[:, None]).squeeze(1)
    slopes = form.coeffs[:, 0].expand(len(pieces), *form.coeffs.shape[2:])
    every = torch.arange(len(place), device=place.device)
    down, up = slopes[every, place], slopes[every, place + rows.shape[2]]
    # The plane below may be level where the value is not: what lies between both planes is what a cut can gain.
    worth = (down.abs() + up.abs()) * (rest.upper - rest.lower)
    return Judged(impossible.all(-1), distance, worth, rest), torch.where(down > 0, rest.upper, rest.lower)


def _rest(pieces: Pieces, limits: Tensor, form: InputForm, impossible: Tensor) -> tuple[Pieces, Tensor]:
    """Boxes around where an unsafe input can still be, and which conjunctions the planes show to be impossible."""
    count, conjunctions, halves = limits.shape
    assert form.coeffs is not None
    every = conjunctions * halves
    coeffs = entries(form.coeffs[:, 0, :every], 2).expand(count, -1, -1).reshape(count * conjunctions, halves, -1)
    offset = form.offset[:, 0, :every].expand(count, -1).reshape(limits.shape)
    # −row · y ≤ coeffs · x + offset, so row · y ≤ limit needs coeffs · x ≥ −limit − offset.
    threshold = next_down(-limits - offset)
    # An offset that overflowed, to either side, says nothing.
    known = offset.isfinite() & limits.isfinite() & ~impossible[..., None]
    threshold = torch.where(known, threshold, -torch.inf).reshape(-1, halves)
    lower, upper = (entries(end, 1).repeat_interleave(conjunctions, 0) for end in (pieces.lower, pieces.upper))
    spaces = HalfSpaces(coeffs, threshold)
    low, high, empty = shrunk(lower, upper, spaces)
    if halves > 1:
        empty = empty | leave_nothing(lower, upper, spaces)
    gone = impossible | empty.reshape(count, conjunctions)
    # The box around what any conjunction leaves; where none leaves anything the piece is proved, and stays as it is.
    keep = gone.reshape(-1, 1)
    low = torch.where(keep, torch.inf, low).reshape(count, conjunctions, -1).amin(1)
    high = torch.where(keep, -torch.inf, high).reshape(count, conjunctions, -1).amax(1)
    done = gone.all(-1)[:, None]
    low = torch.where(done, entries(pieces.lower, 1), low).reshape(pieces.lower.shape)
    high = torch.where(done, entries(pieces.upper, 1), high).reshape(pieces.upper.shape)
    return Pieces(low, high, pieces.owner), gone
