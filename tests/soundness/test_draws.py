"""The derandomized slice of the long profile, and whether its oracle would notice a bound that is too small."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mlflow_lipschitz.certify import RadiusCertificate
from mlflow_lipschitz.engine.domains.region import Box, LpBall
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from tests.soundness import long
from tests.soundness.blocks import BLOCKS, MODEL_CURVES
from tests.soundness.claims import Claims, Tally, Violation, violations
from tests.soundness.draws import Outcome, check_draws, check_network
from tests.soundness.exact import Toward, value_and_jacobian, values_at
from tests.soundness.networks import random_network
from tests.soundness.radii import RadiusDraw, changes
from tests.soundness.regions import contains, in_ball

SEED = 2026


@pytest.mark.parametrize("number", range(0, 48, 3))
def test_no_bound_is_violated(number: int) -> None:
    outcome = check_network(SEED, number)
    assert outcome.counts["draws"] == 10
    assert outcome.counts["points"] + outcome.counts["points beyond the oracle"] >= 10
    assert outcome.broken == [], f"python -m tests.soundness.long --seed {SEED} --start {10 * number} --draws 10"


def test_the_networks_hold_every_operator_and_curve() -> None:
    held: Counter[str] = Counter()
    for number in range(3 * len(BLOCKS)):
        held.update(random_network(np.random.default_rng([SEED, number]), number).told)
    assert {f"curve: {name}" for name in MODEL_CURVES} <= set(held)
    sources = {"Op", "Cotangent", "Remainder"}  # a Remainder arises in the Jacobian of a Maximum only
    every = {name for name, value in vars(ops).items() if isinstance(value, type) and issubclass(value, ops.Op)}
    assert {f"op: {name}" for name in every - sources} <= set(held)


def test_a_draw_is_the_same_alone_as_among_others() -> None:
    (alone,) = check_draws(SEED, 23, 24)
    together = list(check_draws(SEED, 15, 25))
    assert [outcome.counts["draws"] for outcome in together] == [5, 5]
    assert alone.counts == check_network(SEED, 2, range(3, 4)).counts


def test_the_long_profile_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert long.main(["--draws", "3", "--start", "20", "--seed", str(SEED)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith("3 draws, 0 violations, ")
    assert any(line.split() == ["draws", "3"] for line in told)


def test_the_long_profile_fails_with_a_command_that_repeats(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Outcome([(17, Violation("bound", 7, (0.5,), "1.0", "2.0"))], Counter(draws=1))
    monkeypatch.setattr(long, "check_draws", lambda seed, start, stop: iter([wrong]))
    assert long.main(["--draws", "1", "--start", "17", "--seed", "4"]) == 1
    assert "python -m tests.soundness.long --seed 4 --start 17 --draws 1" in capsys.readouterr().out


def test_an_interrupted_long_profile_says_where_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seed: int, start: int, stop: int) -> Iterator[Outcome]:
        yield Outcome([], Counter(draws=10))
        raise KeyboardInterrupt

    monkeypatch.setattr(long, "check_draws", interrupted)
    assert long.main(["--draws", "50", "--start", "30", "--seed", "4"]) == 130
    assert "stopped; go on with --seed 4 --start 40" in capsys.readouterr().out

    def failing(seed: int, start: int, stop: int) -> Iterator[Outcome]:
        yield Outcome([], Counter(draws=20))
        raise RuntimeError("the engine failed")

    monkeypatch.setattr(long, "check_draws", failing)
    with pytest.raises(RuntimeError):
        long.main(["--draws", "50", "--start", "30", "--seed", "4"])
    assert "stopped; go on with --seed 4 --start 50" in capsys.readouterr().out


def linear(*rows: list[float], curve: str | None = None) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((len(rows[0]),)))
    if curve:
        x = builder.add(ops.Elementwise(curve), x)
    return builder.build(builder.add(ops.Linear(ops.frozen_array(rows)), x))


def broken(graph: Graph, claims: Claims, *x: float) -> list[str]:
    found = violations(graph, claims, np.array(x), np.random.default_rng(0), Tally())
    return sorted({violation.claim for violation in found})


@pytest.mark.parametrize("curve", [None, "tanh"])
@pytest.mark.parametrize(("norm", "truth"), [("linf", 2.0), ("l2", math.sqrt(2.0)), ("l1", 1.0)])
def test_a_bound_one_bit_too_small_is_noticed(norm: str, truth: float, curve: str | None) -> None:
    graph = linear([1.0, -1.0], curve=curve)
    one = np.ones((1, 1))
    # The root of 2 as a float64 is above the root of 2.
    low, high = math.nextafter(truth, 0.0), truth
    assert broken(graph, Claims(0, (np.array([high]), norm, one)), 0.0, 0.0) == []
    assert broken(graph, Claims(0, (np.array([low]), norm, one)), 0.0, 0.0) == [f"Lipschitz constant ({norm}) of [1.0]"]


def test_every_other_claim_one_bit_too_narrow_is_noticed() -> None:
    graph = linear([1.0], [-2.0])
    slopes = np.array([-2.0]), np.array([-2.0]), 1
    values = np.array([0.5, -1.0]), np.array([0.5, -1.0])
    margins = np.array([1.5]), np.array([[1.0, -1.0]])
    assert broken(graph, Claims(0, None, slopes, values, margins), 0.5) == []
    above = np.array([math.nextafter(-2.0, 0.0)])
    assert broken(graph, Claims(0, None, (above, above, 1)), 0.5) == ["lower bound of the derivative of output 1 by 0"]
    assert broken(graph, Claims(0, None, (-slopes[0] - 5, above - 1e-15, 1)), 0.5) == [
        "upper bound of the derivative of output 1 by 0"
    ]
    off = values[0] + [1e-300, 1e-15]
    assert broken(graph, Claims(0, values=(off, off)), 0.5) == ["lower bound of output 1"]
    assert broken(graph, Claims(0, values=(-off, -off)), 0.5) == ["lower bound of output 1", "upper bound of output 0"]
    assert broken(graph, Claims(0, margins=(margins[0] + 1e-15, margins[1])), 0.5) == [
        "lower bound of margin [1.0, -1.0]"
    ]


def test_what_has_no_value_may_not_be_bounded() -> None:
    graph = linear([1.0], [0.0], curve="log")
    row = np.array([[1.0, -1.0]])
    finite = Claims(0, (np.ones(1), "linf", row), (np.zeros(1), np.ones(1), 0), None, (np.zeros(1), row))
    assert [claim.split(", which ")[1] for claim in broken(graph, finite, -1.0)] == ["has no value"] * 3
    inf = np.array([np.inf])
    assert broken(graph, Claims(0, (inf, "linf", row), (-inf, inf, 0), None, (-inf, row)), -1.0) == []


def test_a_radius_beyond_the_boundary_is_noticed() -> None:
    graph = linear([1.0, 0.0], [-1.0, 0.0])
    point = np.array([[0.25, 3.0]])

    def found(radius: float, status: str = "certified") -> list[str]:
        answer = RadiusCertificate(np.array([radius]), np.array([0.5]), np.array([status]), "linf")
        draw = RadiusDraw(graph, point, np.array([0]), "linf", np.ones(2), None, answer)
        return [v.claim for v in changes(draw, 0, np.array([[0.0, 3.0], [0.2, 3.0]]), Tally())]

    assert found(0.2) == []
    assert found(0.25) == ["certified radius"]
    assert found(0.0) == ["status of the radius"]
    assert found(0.0, "violated") == ["violated"]


def test_both_sides_of_a_kink_are_met_and_no_others() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    twice = [builder.add(ops.Elementwise("relu"), x) for _ in range(2)]
    opposite = builder.add(ops.ScaleShift(scale=ops.frozen_array(-1.0)), twice[1])
    both = builder.add(ops.Concat(0), twice[0], builder.add(ops.Add(), twice[0], opposite))
    graph = builder.build(both)
    met = set()
    for way in (3, -3):
        toward = Toward(np.array([way], dtype=object))
        _, jacobian = value_and_jacobian(graph, np.zeros(1), toward)
        assert toward.ties == 2
        met.add(tuple(jacobian[:, 0]))
    # relu − relu is zero next to the kink too: its two derivatives go together.
    assert met == {(0, 0), (1, 0)}
    assert Toward(np.ones(1, dtype=object)).side(1, 1, np.ones(1)) == 1


def test_values_without_a_value_are_not_numbers() -> None:
    assert math.isnan(values_at(linear([1.0], curve="reciprocal"), np.zeros(1))[0])
    assert math.isnan(values_at(linear([1.0], curve="sqrt"), -np.ones(1))[0])
    assert values_at(linear([2.0], curve="reciprocal"), np.array([4.0]))[0] == 0.5


def test_membership_is_exact() -> None:
    x = np.array([3.0, 4.0])
    assert in_ball(np.zeros(2), np.full(2, 5.0), 2, x)
    assert not in_ball(np.zeros(2), np.full(2, np.nextafter(5.0, 0)), 2, x)
    assert in_ball(np.zeros(2), np.array([3.0, 0.0]), 1, np.array([3.0, 0.0]))
    assert not in_ball(np.zeros(2), np.array([3.0, 0.0]), 1, np.array([0.0, 5e-324]))
    ball = LpBall(np.zeros((1, 2)), 5.0, domain=([-9.0, -9.0], [9.0, 3.5]))
    assert contains(ball, 0, np.array([3.0, 3.5])) and not contains(ball, 0, x)
    assert not contains(Box(np.zeros((1, 2)), np.ones((1, 2))), 0, np.array([0.5, 1.5]))
    assert torch.equal(ball.center, torch.zeros((1, 2), dtype=torch.float64))
