"""A draw is one (network, region, objective): what the engine says of it, held against exact arithmetic.

Ten draws share a network, an objective and a norm, and differ in the region; so the engine bounds them in one batch, as an
audit does. Draw number i of a seed is row i mod 10 of network i div 10, whatever else is drawn with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mlflow_lipschitz.certify import Budget, certify_lipschitz, certify_monotonicity, find_violation
from mlflow_lipschitz.certify.objectives import cotangents
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.backward import upper_bounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes, refine_node
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.objectives import flat_output
from tests.soundness import radii
from tests.soundness.claims import Claims, Tally, Violation, violations
from tests.soundness.drafts import Rng
from tests.soundness.networks import Network, random_network
from tests.soundness.probes import Looked, look
from tests.soundness.regions import centers, contains, random_region

PER_NETWORK = 10
# One network in so many is searched by branch and bound; other ones are asked for radii, and for counterexamples.
_BUDGET_EVERY, _RADIUS_EVERY, _COUNTEREXAMPLE_EVERY = 16, 2, 16


@dataclass
class Outcome:
    """What came of some draws: violations with the number of the draw, and what was covered."""

    broken: list[tuple[int, Violation]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Outcome) -> None:
        self.broken += other.broken
        self.counts.update(other.counts)


@dataclass(frozen=True)
class Asked:
    """A network with its regions, and what is asked of it."""

    network: Network
    points: np.ndarray
    region: Region
    forms: list[str]
    norm: str
    outputs: Any
    labels: np.ndarray
    output: int
    budget: Budget | None
    chunk_size: int | None

    @property
    def graph(self) -> Graph:
        return self.network.graph

    @property
    def size(self) -> int:
        return int(np.prod(self.graph.output_shape))


def check_draws(seed: int, start: int, stop: int) -> Iterator[Outcome]:
    """The outcomes of draws start … stop − 1, network by network."""
    for number in range(start // PER_NETWORK, -(-stop // PER_NETWORK)):
        first = number * PER_NETWORK
        rows = range(max(start, first) - first, min(stop, first + PER_NETWORK) - first)
        yield check_network(seed, number, rows)


def draw(rng: Rng, number: int) -> Asked:
    """The network of this number with its regions and questions."""
    network = random_network(rng, number)
    points = centers(rng, network.home, PER_NETWORK)
    region, forms = random_region(rng, points)
    size = int(np.prod(network.graph.output_shape))
    outputs = (None, int(rng.integers(size)), "margin" if size > 1 else None)[int(rng.integers(3))]
    parts = int(rng.choice([2, 6]))
    return Asked(
        network,
        points,
        region,
        forms,
        norm=("linf", "l2", "l1")[int(rng.integers(3))],
        outputs=outputs,
        labels=rng.integers(0, size, PER_NETWORK),
        output=int(rng.integers(size)),
        # No limit of time, so that a draw repeats.
        budget=Budget(1e6, 0.0, parts_per_point=parts) if number % _BUDGET_EVERY == 3 else None,
        chunk_size=int(rng.choice([1, 7, 40])) if rng.random() < 0.1 else None,
    )


def check_network(seed: int, number: int, rows: range = range(PER_NETWORK)) -> Outcome:
    """The draws of one network."""
    with np.errstate(all="ignore"):  # numbers that only choose points may overflow
        return _check_network(seed, number, rows)


def _check_network(seed: int, number: int, rows: range) -> Outcome:
    rng = np.random.default_rng([seed, number])
    asked = draw(rng, number)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    looked = look(asked.graph, asked.region, generator, differentiable=asked.network.differentiable)
    outcome = Outcome(counts=Counter(asked.network.told))
    outcome.counts.update(_questions(asked))
    claims = [Claims(row) for row in range(PER_NETWORK)]
    _values(asked, claims)
    inconsistent = _derivatives(asked, claims) if asked.network.differentiable else []
    outcome.broken += [(number * PER_NETWORK + v.row, v) for v in inconsistent if v.row in rows]
    circle = None
    if number % _RADIUS_EVERY == 0 or not asked.network.differentiable:
        circle = radii.ask(rng, asked.graph, asked.points, asked.norm)
        tried = radii.candidates_of(circle, generator)
    for row in rows:
        own = np.random.default_rng([seed, number, row])
        tally = Tally()
        found = [
            v
            for x in _chosen(asked, claims[row], looked, row)
            for v in violations(asked.graph, claims[row], x, own, tally)
        ]
        if circle is not None:
            found += radii.changes(circle, row, tried[row], tally)
        outcome.broken += [(number * PER_NETWORK + row, v) for v in found]
        outcome.counts.update(tally.counts + Counter(_bounded(claims[row], tally)))
        outcome.counts[asked.forms[row]] += 1
    if asked.network.differentiable and number % _COUNTEREXAMPLE_EVERY == 5:
        outcome.broken += [(number * PER_NETWORK + v.row, v) for v in _counterexamples(asked, rng) if v.row in rows]
    outcome.counts["draws"] += len(rows)
    return outcome


def _questions(asked: Asked) -> Iterator[str]:
    yield f"norm: {asked.norm}"
    yield f"objective: {'margins' if asked.outputs == 'margin' else 'all outputs' if asked.outputs is None else 'one output'}"
    yield "networks" if asked.network.differentiable else "networks without a derivative"
    if asked.budget is not None:
        yield "networks searched with a budget of parts"


def _bounded(claims: Claims, tally: Tally) -> Iterator[str]:
    if claims.lipschitz is not None:
        yield "Lipschitz: draws"
        if np.isfinite(claims.lipschitz[0]).all():
            yield "Lipschitz: finite"
        if tally.half_met:
            yield "Lipschitz: met to 50 %"
        if tally.met:
            yield "Lipschitz: met to 99.9 %"


def _values(asked: Asked, claims: list[Claims]) -> None:
    problem, refinement = Problem.of(flat_output(asked.graph), asked.region), Refinement(asked.chunk_size or 64)
    with torch.no_grad():
        bounds = bound_nodes(problem, refinement)
        tight = refine_node(problem, bounds, problem.graph.output, refinement)
        rows = torch.eye(asked.size, dtype=torch.float64)
        rows = (rows[:, None] - rows[None]).flatten(0, 1)[None, None]
        margins = -upper_bounds(problem, bounds, problem.graph.output, -rows)[:, 0]
    for row, claim in enumerate(claims):
        own = min(row, len(tight.lower) - 1)
        claim.values = tight.lower[own, 0].numpy(), tight.upper[own, 0].numpy()
        claim.margins = margins[min(row, len(margins) - 1)].numpy(), rows[0, 0].numpy()


def _derivatives(asked: Asked, claims: list[Claims]) -> list[Violation]:
    """Puts in what is claimed of derivatives; returns where certificates contradict themselves."""
    settings: dict[str, Any] = {"budget": asked.budget, "device": "cpu", "chunk_size": asked.chunk_size}
    lip = certify_lipschitz(
        asked.graph, asked.points, asked.region, norm=asked.norm, outputs=asked.outputs, labels=asked.labels, **settings
    )
    mono = certify_monotonicity(asked.graph, asked.points, asked.region, output=asked.output, **settings)
    objectives, _ = cotangents(asked.size, asked.outputs, PER_NETWORK, asked.labels)
    wrong = []
    for row, claim in enumerate(claims):
        claim.lipschitz = lip.upper[row], asked.norm, objectives[min(row, len(objectives) - 1)].numpy()
        low, high = mono.lower[row].reshape(-1), mono.upper[row].reshape(-1)
        claim.slopes = low, high, asked.output
        reached = mono.attained_lower[row].reshape(-1), mono.attained_upper[row].reshape(-1)
        sign = mono.sign[row].reshape(-1)
        consistent = {
            "attained Lipschitz constant above its bound": lip.lower[row] <= lip.upper[row],
            "attained Lipschitz constant not a number": np.isfinite(lip.lower[row]) & (lip.lower[row] >= 0),
            "attained derivative above its bound": ~(reached[1] > high),
            "attained derivative below its bound": ~(reached[0] < low),
            "bound of a derivative not a number": ~(np.isnan(low) | np.isnan(high)),
            "status of a Lipschitz constant": (lip.status[row] == "certified") == np.isfinite(lip.upper[row]),
            "sign of a derivative": np.where(sign > 0, low >= 0, np.where(sign < 0, high <= 0, True)),
        }
        wrong += [
            Violation(name, row, (), "consistency", "a contradiction")
            for name, ok in consistent.items()
            if not ok.all()
        ]
    return wrong


def _chosen(asked: Asked, claims: Claims, looked: Looked, row: int) -> list[np.ndarray]:
    """Different points of the region: where float64 comes closest to breaking each kind of claim, and one at random."""
    assert claims.values is not None
    values = looked.values[:, row]
    scale = 1e-300 + np.abs(values)
    excesses = [((values - claims.values[1]) / scale).max(1), ((claims.values[0] - values) / scale).max(1)]
    if looked.jacobian is not None and claims.lipschitz is not None and claims.slopes is not None:
        jacobian = looked.jacobian[:, row]
        slopes = jacobian[:, asked.output]
        scale = 1e-300 + np.abs(slopes)
        excesses += [((slopes - claims.slopes[1]) / scale).max(1), ((claims.slopes[0] - slopes) / scale).max(1)]
        gradients = np.abs(np.einsum("oj,sjn->son", claims.lipschitz[2], jacobian))
        size = {"linf": gradients.sum(-1), "l2": np.square(gradients).sum(-1), "l1": gradients.max(-1)}[asked.norm]
        excesses += [size[:, o] for o in range(size.shape[1])]
    excesses.append(-np.arange(len(values)).astype(float))  # the center
    chosen = [looked.worst(asked.region, row, excess) for excess in excesses]
    return list({x.tobytes(): x for x in chosen if x is not None}.values())


def _counterexamples(asked: Asked, rng: Rng) -> Iterator[Violation]:
    """Where `find_violation` says that a derivative has a wrong sign, and it has not."""
    feature = int(rng.integers(np.prod(asked.graph.input_shape)))
    direction = ("increasing", "decreasing")[int(rng.integers(2))]
    got = find_violation(
        asked.graph, asked.points, asked.region, feature=feature, direction=direction, output=asked.output
    )
    size = int(np.prod(asked.graph.input_shape))
    for row in np.flatnonzero(got.found):
        x, slope = got.point[row], float(got.derivative[row])
        if not contains(asked.region, int(row), x):
            yield Violation(
                "counterexample in the region", int(row), tuple(x.reshape(-1).tolist()), "inside", "outside"
            )
        ends = [np.full(size, end) for end in (-np.inf, np.inf)]
        # An increasing function was to be disproved: the derivative is at most what is reported, and that is negative.
        ends[1 if direction == "increasing" else 0][feature] = slope
        claim = Claims(int(row), slopes=(ends[0], ends[1], asked.output))
        yield from violations(asked.graph, claim, x, rng, Tally())
        if slope != 0 and (slope > 0) == (direction == "increasing"):
            yield Violation("sign of a counterexample", int(row), (), direction, repr(slope))
