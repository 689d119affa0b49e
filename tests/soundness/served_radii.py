"""Points within a radius that is certified for the served program, at which some program might decide otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from tests.exact import BeyondTheOracle, number, values_at
from tests.soundness import radii
from tests.soundness.claims import Violation, shown
from tests.soundness.drafts import Rng
from tests.soundness.draws import Asked
from tests.soundness.programs import Program, largest_share

_WITHIN = 3  # points per row that are known to be in the ball, wherever the programs decide


def changed_decisions(
    asked: Asked, programs: Sequence[Program], rng: Rng, rows: range, counts: Counter[str]
) -> Iterator[Violation]:
    """What programs disprove of `certified_radius(..., arithmetic="deployed-float32")`."""
    draw = radii.ask(rng, asked.graph, asked.points, asked.norm, "deployed-float32")
    tried = radii.candidates_of(draw, torch.Generator().manual_seed(int(rng.integers(2**31))))
    tried = np.concatenate([draw.points[:, None], tried], 1).swapaxes(0, 1)
    yield from disproved(draw, programs, tried, rows, counts)


def disproved(
    draw: radii.RadiusDraw, programs: Sequence[Program], tried: np.ndarray, rows: range, counts: Counter[str]
) -> Iterator[Violation]:
    """What the programs disprove at points (samples, rows, *input shape), of which the first are the certified ones."""
    answers = {program.name: program(tried) for program in programs}
    for row in rows:
        own = {name: found[:, row] for name, found in answers.items()}
        yield from _about_the_point(draw, row, own)
        if draw.answer.radius[row] > 0:
            counts["certified radii"] += 1
            yield from _within(draw, row, tried[:, row], own, counts)


def _within(
    draw: radii.RadiusDraw, row: int, tried: np.ndarray, answers: dict[str, np.ndarray], counts: Counter[str]
) -> Iterator[Violation]:
    margins = {name: _margins(found, int(draw.labels[row])) for name, found in answers.items()}
    smallest = np.min([np.nan_to_num(m, nan=-np.inf) for m in margins.values()], axis=0)
    for turn, place in enumerate(np.argsort(smallest, kind="stable")):
        if (turn >= _WITHIN and smallest[place] > 0) or not draw.contains(row, tried[place]):
            continue
        counts["points within a radius"] += 1
        for name, margin in margins.items():
            if not margin[place] > 0:
                point, radius = tuple(tried[place].reshape(-1).tolist()), repr(float(draw.answer.radius[row]))
                yield Violation(f"deployed radius, {name}", row, point, radius, f"margin {float(margin[place])!r}")
    yield from _error_exceeded(draw, row, tried, answers)


def _margins(outputs: np.ndarray, label: int) -> np.ndarray:
    """(samples,) of (samples, outputs): positive exactly where the decision is the label."""
    if outputs.shape[1] == 1:
        return outputs[:, 0] * (2.0 * label - 1.0)
    own, others = outputs[:, label], np.delete(outputs, label, 1).max(1)
    # Of numbers of a format the difference in float64 has the right sign.
    return own - others


def _error_exceeded(
    draw: radii.RadiusDraw, row: int, tried: np.ndarray, answers: dict[str, np.ndarray]
) -> Iterator[Violation]:
    """`served_error`, at the point of the ball where float64 says that programs are farthest from the exact function."""
    assert draw.answer.served_error is not None
    bound = float(draw.answer.served_error[row])
    if not np.isfinite(bound):
        yield Violation("served error of a certified radius", row, (), repr(bound), "unknown")
        return
    truth = evaluate(draw.graph, tried).reshape(len(tried), -1).numpy()
    share = largest_share((a[:, None] for a in answers.values()), truth[:, None], np.full((1, truth.shape[1]), bound))
    order = np.argsort(-share[:, 0], kind="stable")[:4]
    place = next((int(i) for i in order if draw.contains(row, tried[i])), 0)
    exact, x = number(draw.graph), tried[place]
    try:
        values = values_at(draw.graph, x)
    except BeyondTheOracle:
        return
    for name, found in answers.items():
        for given, value in zip(found[place], values, strict=True):
            if not (np.isfinite(given) and abs(exact(float(given)) - value) <= exact(bound)):
                point = tuple(x.reshape(-1).tolist())
                yield Violation(f"served error, {name}", row, point, repr(bound), f"{given!r} of {shown(value)}")


def _about_the_point(draw: radii.RadiusDraw, row: int, answers: dict[str, np.ndarray]) -> Iterator[Violation]:
    point, status = tuple(draw.points[row].reshape(-1).tolist()), str(draw.answer.status[row])
    radius, claimed = float(draw.answer.radius[row]), float(draw.answer.margin[row])
    if np.isnan(radius) or (radius > 0) != (status == "certified"):
        yield Violation("status of the deployed radius", row, (), f"{radius!r}, {status}", "the other")
    for name, found in answers.items():
        if not np.isfinite(found[0]).all():
            if claimed > -np.inf or status == "violated":
                yield Violation(f"deployed margin, {name}", row, point, repr(claimed), "not a number")
            continue
        margin = _exact_margin(found[0], int(draw.labels[row]))
        if claimed > -np.inf and Fraction(claimed) > margin:
            yield Violation(f"deployed margin, {name}", row, point, repr(claimed), str(margin))
        if status == "violated" and margin > 0:
            yield Violation(f"deployed violation, {name}", row, point, status, str(margin))


def _exact_margin(outputs: np.ndarray, label: int) -> Fraction:
    numbers = [Fraction(float(v)) for v in outputs]
    if len(numbers) == 1:
        return numbers[0] if label else -numbers[0]
    return min(numbers[label] - v for j, v in enumerate(numbers) if j != label)
