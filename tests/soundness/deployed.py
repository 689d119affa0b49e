"""The second claim, `arithmetic: deployed-float32`: what programs give that serve a network, held against exact arithmetic.

The networks, regions and norms are those of draws.py. Of each row the engine says how far the served program may be from the exact
function; programs of many kinds are run at many points of the row's region, and where they come closest to that, the difference is
worked out exactly. No comparison has a tolerance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mpmath
import numpy as np
import torch

import mlflow_lipschitz as ml
from mlflow_lipschitz.certify.deployed import ServedProgram
from mlflow_lipschitz.engine.domains.region import Box, Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.served.analysis import forward_errors
from mlflow_lipschitz.engine.served.formats import format_named
from mlflow_lipschitz.errors import LipschitzError
from mlflow_lipschitz.frontends.lowering import lower
from tests.exact import BeyondTheOracle, is_smooth, number, values_at
from tests.soundness.claims import CONFIRMING_BITS, Violation, shown
from tests.soundness.drafts import Rng
from tests.soundness.draws import PER_NETWORK, Asked, Outcome, draw
from tests.soundness.exported import TorchNetwork
from tests.soundness.programs import Program, largest_share, programs_of, served_points
from tests.soundness.regions import contains
from tests.soundness.served_radii import changed_decisions

# One network in so many has points of another scale; is made of an ONNX model, or a torch module; is asked for radii; is served
# in a coarser format too.
_SCALED_EVERY, _LOWERED_EVERY, _TRACED_EVERY, _RADIUS_EVERY, _COARSE_EVERY = 6, 4, 100, 4, 3
_WORST = 2  # points per row at which the exact values are worked out, besides its center


@dataclass(frozen=True)
class Claim:
    """What is claimed of the served program of a graph over a region: (rows, outputs) bounds of its error."""

    graph: Graph
    region: Region
    format: str
    bounds: np.ndarray


def check_network(seed: int, number: int, rows: range = range(PER_NETWORK)) -> Outcome:
    """The draws of one network."""
    with np.errstate(all="ignore"):  # numbers that only choose points may overflow
        return _check_network(seed, number, rows)


def _check_network(seed: int, number: int, rows: range) -> Outcome:
    asked = draw(np.random.default_rng([seed, number]), number)
    rng = np.random.default_rng([seed, number, PER_NETWORK])
    outcome = Outcome(counts=Counter({"draws": len(rows), f"norm: {asked.norm}": 1}))
    region = asked.region
    if number % _SCALED_EVERY == 4:
        region = _scaled(rng, asked.points)
        outcome.counts["networks with points of another scale"] += 1
    coarse = ["bfloat16", "float16"][number // _COARSE_EVERY % 2 : number // _COARSE_EVERY % 2 + 1]
    for format in ["float32", *(coarse if number % _COARSE_EVERY == 2 else [])]:
        claim = _claim(asked.graph, region, format, asked.chunk_size)
        _tell(claim, rows, outcome)
        if ml.why_unserved(asked.graph, format):
            continue  # nothing is claimed: programs cannot be wrong
        programs = programs_of(asked.graph, rng, format)
        _hold(claim, programs, rng, rows, number, outcome)
        if format != "float32":
            continue
        if number % _RADIUS_EVERY == 0:
            found = changed_decisions(asked, programs, rng, rows, outcome.counts)
            outcome.broken += [(number * PER_NETWORK + v.row, v) for v in found]
        for other in _of_models(asked, region, programs, rng, rows, number):
            outcome.add(other)
    return outcome


def _scaled(rng: Rng, points: np.ndarray) -> Box:
    """Around points of sizes from beneath the smallest denormal float32 to the largest number."""
    size = 10.0 ** rng.choice([-46.0, -42.0, -38.0, -30.0, -10.0, 4.0, 10.0, 20.0, 30.0, 37.0], (len(points), 1))
    middle = points * size.reshape(-1, *[1] * (points.ndim - 1))
    return Box.around(middle, np.abs(middle) * float(rng.choice([0.0, 2.0**-30, 2.0**-10, 0.5])))


def _claim(graph: Graph, region: Region, format: str, chunk_size: int | None) -> Claim:
    return Claim(
        graph, region, format, ml.served_error_bounds(graph, region, format, device="cpu", chunk_size=chunk_size)
    )


def _tell(claim: Claim, rows: range, outcome: Outcome) -> None:
    """Counts what is known, and where something is not, by the operator at which it got lost."""
    finite = np.isfinite(claim.bounds[rows.start : rows.stop]).all(1)
    outcome.counts[f"{claim.format}: finite"] += int(finite.sum())
    reason = ml.why_unserved(claim.graph, claim.format)
    if reason:
        outcome.counts[f"{claim.format}: refused, {reason.split(' ')[0]}"] += len(rows)
    elif not finite.all():
        lost = _first_lost(claim)
        outcome.counts.update(f"{claim.format}: infinite, {lost[row]}" for row in rows if not finite[row - rows.start])


def _first_lost(claim: Claim) -> list[str]:
    """Of each row the first operator of whose served values nothing is known."""
    served = ServedProgram.of(claim.graph, claim.region, format_named(claim.format), torch.device("cpu"))
    with torch.no_grad():
        known = [node.interval for node in bound_nodes(served.problem, Refinement(64))]
        errors, _ = forward_errors(served.problem, known, served.form)
    rows = len(claim.bounds)
    lost = torch.stack([error.flatten(1).isinf().any(1).expand(rows) for error in errors]).int().argmax(0)
    names = [type(node.op).__name__ for node in served.problem.graph.nodes]
    held = [getattr(node.op, "curve", "") for node in served.problem.graph.nodes]
    return [f"{names[i]} {held[i]}".strip() for i in lost.tolist()]


def _hold(claim: Claim, programs: Sequence[Program], rng: Rng, rows: range, number: int, outcome: Outcome) -> None:
    """The claim against all programs at the points where they are farthest from it."""
    if not np.isfinite(claim.bounds[rows.start : rows.stop]).any():
        return
    points = served_points(claim.graph, claim.region, claim.bounds, programs, claim.format, rng)
    answers = {program.name: program(points) for program in programs}
    truth = evaluate(claim.graph, points.reshape(-1, *points.shape[2:])).reshape(*points.shape[:2], -1).numpy()
    share = largest_share(answers.values(), truth, claim.bounds)
    for row in rows:
        if not np.isfinite(claim.bounds[row]).any():
            continue
        for place in _chosen(claim.region, points[:, row], share[:, row], row):
            given = {name: found[place, row] for name, found in answers.items()}
            found = list(_beyond(claim, row, points[place, row], given, outcome))
            outcome.broken += [(number * PER_NETWORK + row, violation) for violation in found]


def _chosen(region: Region, points: np.ndarray, share: np.ndarray, row: int) -> Iterator[int]:
    """The center, and the worst points, all of them in the region."""
    yield 0
    left, seen = _WORST, {points[0].tobytes()}
    for place in np.argsort(-share, kind="stable")[: 4 * _WORST]:
        if left and points[place].tobytes() not in seen and contains(region, row, points[place]):
            seen.add(points[place].tobytes())
            left -= 1
            yield int(place)


def _beyond(
    claim: Claim, row: int, x: np.ndarray, given: dict[str, np.ndarray], outcome: Outcome
) -> Iterator[Violation]:
    try:
        wrong = too_far(claim, row, x, given, outcome)
        if wrong and is_smooth(claim.graph):
            with mpmath.workprec(CONFIRMING_BITS):
                wrong = too_far(claim, row, x, given, outcome)
    except BeyondTheOracle:
        outcome.counts["points beyond the oracle"] += 1
        return
    outcome.counts["points"] += 1
    yield from wrong


def too_far(claim: Claim, row: int, x: np.ndarray, given: dict[str, np.ndarray], outcome: Outcome) -> list[Violation]:
    """The outputs for which a program's answer at a point is not within the claim; `given` are answers by program."""
    exact, wrong, point = number(claim.graph), [], tuple(x.reshape(-1).tolist())
    for j, (bound, value) in enumerate(zip(claim.bounds[row], values_at(claim.graph, x), strict=True)):
        if not np.isfinite(bound):
            continue
        if value != value:
            wrong.append(Violation(f"{claim.format}: output {j}, which has no value", row, point, repr(bound), "none"))
            continue
        high = exact(float(bound))
        for name, found in given.items():
            outcome.counts["answers"] += 1
            claimed = f"{claim.format}: error of output {j} by {name}"
            if not np.isfinite(found[j]):
                wrong.append(Violation(claimed, row, point, repr(bound), repr(found[j])))
                continue
            off = abs(exact(float(found[j])) - value)
            if off > high:
                wrong.append(Violation(claimed, row, point, repr(float(bound)), shown(off)))
            elif high:
                outcome.reach(f"{claim.format}, {name.split(':')[0]}: largest error / bound", float(off / high))
    return wrong


def _of_models(
    asked: Asked, region: Region, programs: Sequence[Program], rng: Rng, rows: range, number: int
) -> Iterator[Outcome]:
    """The same of graphs that are made of a model, whose served steps are the model's own operators."""
    exported = [program for program in programs if program.model is not None]
    if number % _LOWERED_EVERY == 1 and exported:
        yield _of_model("lowered", lambda: lower(exported[0].model), exported, region, rng, rows, number)
    if number % _TRACED_EVERY == 1:
        module, eager = TorchNetwork(asked.graph).eval(), [p for p in programs if p.name == "torch"]
        example = asked.points.astype(np.float32)
        yield _of_model("traced", lambda: ml.trace(module, example), eager, region, rng, rows, number)


def _of_model(
    kind: str,
    make: Callable[[], Graph],
    programs: Sequence[Program],
    region: Region,
    rng: Rng,
    rows: range,
    number: int,
) -> Outcome:
    outcome = Outcome()
    try:
        graph = make()
    except LipschitzError:
        outcome.counts[f"{kind}: networks refused"] += 1
        return outcome
    claim = _claim(graph, region, "float32", None)
    outcome.counts[f"{kind}: draws"] += len(rows)
    outcome.counts[f"{kind}: finite"] += int(np.isfinite(claim.bounds[rows.start : rows.stop]).all(1).sum())
    _hold(claim, programs, rng, rows, number, outcome)
    return outcome
