"""Branch and bound over the input: what is said to be covered is covered, and nothing is said that was not proved."""

from __future__ import annotations

import numpy as np
import torch

from mlflow_lipschitz.engine.attack.descent import descend, outputs_at
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.input_splitting import Judged, Pieces, cover


def roots(*boxes: tuple[list[float], list[float]]) -> Pieces:
    lower, upper = (torch.tensor([box[end] for box in boxes], dtype=torch.float64) for end in (0, 1))
    return Pieces(lower, upper, torch.arange(len(boxes)))


class Small:
    """Proves what is at most so wide; remembers what it proved and how many it was asked at a time."""

    def __init__(self, width: float) -> None:
        self.width, self.proved, self.batches = width, [], []

    def __call__(self, pieces: Pieces) -> Judged:
        widths = pieces.upper - pieces.lower
        proved = (widths <= self.width).flatten(1).all(1)
        self.proved += [pieces.chosen(proved)]
        self.batches.append(len(pieces))
        return Judged(proved, widths.flatten(1).amax(1), widths, pieces)


def never() -> bool:
    return False


def test_the_proved_pieces_are_the_whole() -> None:
    judge = Small(0.2)
    start = roots(([0.0, -1.0], [1.0, 2.0]), ([5.0, 5.0], [5.5, 5.0]))
    coverage = cover(start, judge, batch=7, stop=never)
    assert coverage.complete and coverage.reason == ""
    assert coverage.judged == sum(judge.batches) and max(judge.batches) <= 7
    lower, upper, owner = (torch.cat([getattr(p, n) for p in judge.proved]) for n in ("lower", "upper", "owner"))
    for root in range(2):
        own = owner == root
        assert (lower[own] >= start.lower[root]).all() and (upper[own] <= start.upper[root]).all()
        x = start.lower[root] + (start.upper[root] - start.lower[root]) * torch.rand(500, 2, dtype=torch.float64)
        inside = ((lower[own] <= x[:, None]) & (x[:, None] <= upper[own])).all(-1)
        assert inside.any(1).all()
    area = ((upper - lower)[owner == 0]).prod(1).sum()
    assert area == 3.0  # halves of such numbers are exact, so nothing overlaps either


def test_pieces_of_any_rank_are_cut_where_it_is_worth_most() -> None:
    seen = []

    def judge(pieces: Pieces) -> Judged:
        seen.append(pieces)
        worth = torch.zeros_like(pieces.lower)
        worth[:, 1, 0] = 1.0
        return Judged(torch.full((len(pieces),), len(seen) > 1), torch.zeros(len(pieces)), worth, pieces)

    start = Pieces(
        torch.zeros(1, 2, 2, dtype=torch.float64), torch.ones(1, 2, 2, dtype=torch.float64), torch.zeros(1).long()
    )
    assert cover(start, judge, batch=4, stop=never).complete
    halves = seen[1]
    assert halves.upper[0].tolist() == [[1.0, 1.0], [0.5, 1.0]] and halves.lower[1].tolist() == [[0.0, 0.0], [0.5, 0.0]]


def test_a_worth_that_is_no_number_or_points_at_a_point_still_cuts_somewhere() -> None:
    small = Small(0.5)

    def judge(pieces: Pieces) -> Judged:
        worth = torch.full_like(pieces.lower, torch.nan)
        worth[:, 1] = torch.inf  # this direction cannot be cut
        return small(pieces)._replace(worth=worth)

    assert cover(roots(([0.0, 3.0], [1.0, 3.0])), judge, batch=4, stop=never).complete


def test_what_cannot_be_cut_any_smaller_is_not_covered() -> None:
    one = np.nextafter(1.0, 2.0)
    for box in (([1.0], [1.0]), ([1.0], [one])):
        coverage = cover(roots(box), Small(-1.0), batch=4, stop=never)
        assert not coverage.complete and "cut" in coverage.reason


def test_it_stops_when_told_and_says_so() -> None:
    judge = Small(0.0)
    coverage = cover(roots(([0.0], [1.0])), judge, batch=4, stop=lambda: len(judge.batches) >= 5)
    assert coverage == type(coverage)(False, sum(judge.batches), "stopped") and len(judge.batches) == 5


def test_it_walks_towards_what_is_furthest_from_a_proof() -> None:
    target = torch.tensor([0.3], dtype=torch.float64)
    widths = []

    def judge(pieces: Pieces) -> Judged:
        away = (pieces.lower / 2 + pieces.upper / 2 - target).abs().flatten()
        widths.append(float((pieces.upper - pieces.lower).amin()))
        return Judged(torch.zeros(len(pieces), dtype=torch.bool), -away, torch.ones_like(pieces.lower), pieces)

    cover(roots(([0.0], [1.0])), judge, batch=1, stop=lambda: len(widths) == 20)
    assert widths[-1] == 2.0**-19  # one path down, no detours


def quadratic() -> Problem:
    """y = ((x₀ − 0.25)², x₁)."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    shifted = builder.add(ops.ScaleShift(shift=ops.frozen_array([-0.25, 0.0])), x)
    square = builder.add(ops.Elementwise("square"), builder.add(ops.Select(0, (0,)), shifted))
    both = builder.add(ops.Concat(0), square, builder.add(ops.Select(0, (1,)), shifted))
    box = Box(np.array([[-1.0, 0.5], [0.5, -2.0]]), np.array([[1.0, 0.5], [1.0, 1.0]]))
    return Problem.of(builder.build(both), box)


def test_a_descent_stays_inside_and_finds_the_lowest_point() -> None:
    problem = quadratic()
    starts = torch.tensor([[[9.0, 9.0], [9.0, 9.0]], [[-1.0, 0.5], [1.0, 0.0]]], dtype=torch.float64)
    with torch.no_grad():
        x, lowest = descend(problem, lambda y: y.sum(-1), starts, steps=80)
    box = problem.region.box
    assert (x >= box.lower).all() and (x <= box.upper).all()
    assert torch.equal(outputs_at(problem, x[None]).sum(-1)[0], lowest)
    np.testing.assert_allclose(lowest.numpy(), [0.5, 0.0625 - 2.0], atol=1e-3)


def test_a_value_that_is_never_a_number_is_not_low() -> None:
    problem = quadratic()
    with torch.no_grad():
        _, lowest = descend(problem, lambda y: y.sum(-1) * torch.nan, problem.region.box.lower[None], steps=3)
    assert lowest.tolist() == [torch.inf, torch.inf]


def test_a_value_without_a_slope_is_looked_at_once() -> None:
    problem = quadratic()
    with torch.no_grad():
        x, lowest = descend(
            problem, lambda y: torch.zeros(y.shape[:2], dtype=y.dtype), problem.region.box.lower[None], steps=3
        )
    assert lowest.tolist() == [0.0, 0.0] and torch.equal(x, problem.region.box.lower)
