"""The derandomized slice of the long profile about served programs, and whether it would notice a claim that does not hold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mlflow_lipschitz.certify import RadiusCertificate
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from tests.served import Manner, serve_all
from tests.soundness import long
from tests.soundness.blocks import BLOCKS
from tests.soundness.claims import Violation
from tests.soundness.deployed import Claim, check_network, too_far
from tests.soundness.draws import Outcome
from tests.soundness.exported import LEVELS, NotExported, onnx_model, onnx_session
from tests.soundness.networks import random_network
from tests.soundness.programs import Program
from tests.soundness.radii import RadiusDraw
from tests.soundness.served_radii import disproved

SEED = 2026
# Made of ONNX models; of another scale; asked for radii; in a coarser format too.
NUMBERS = (4, 5, 8, 10, 16, 20, 29)


@pytest.mark.parametrize("number", NUMBERS)
def test_no_served_program_is_farther_than_claimed(number: int) -> None:
    outcome = check_network(SEED, number)
    again = f"python -m tests.soundness.long --claim deployed --seed {SEED} --start {10 * number} --draws 10"
    assert outcome.counts["draws"] == 10 and outcome.broken == [], again


def test_the_slice_covers_every_kind_of_check() -> None:
    counts: Counter[str] = Counter()
    for number in (201, 16, 20):
        counts.update(check_network(SEED, number).counts)
    kinds = (
        "float32: finite",
        "lowered: finite",
        "traced: finite",
        "networks with points of another scale",
        "points within a radius",
    )
    assert all(counts[kind] > 0 for kind in kinds), counts
    assert any(name.startswith(("float16: ", "bfloat16: ")) for name in counts) and counts["answers"] > 50


def test_the_long_profile_tells_of_the_second_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert long.main(["--draws", "2", "--start", "50", "--seed", str(SEED), "--claim", "deployed"]) == 0
    told = capsys.readouterr().out
    assert "float32: finite" in told and "float32, torch: largest error / bound" in told


def test_almost_every_network_runs_on_onnxruntime() -> None:
    refused = Counter(_refusal(number) for number in range(len(BLOCKS)))
    assert refused[""] >= 0.8 * len(BLOCKS), refused


def _refusal(number: int) -> str:
    graph = random_network(np.random.default_rng([SEED, number]), number).graph
    try:
        onnx_model(graph)
    except NotExported as error:
        return str(error)
    return ""


def doubled() -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    weight, bias = ops.frozen_array([[2.0], [-2.0]]), ops.frozen_array([0.1, 0.0])
    return builder.build(builder.add(ops.Linear(weight, bias), x))


def test_a_program_that_is_off_by_more_than_the_bound_is_noticed() -> None:
    region, x = Box.around(np.zeros((1, 1)), 1.0), np.array([0.25])
    claim = Claim(doubled(), region, "float32", np.array([[0.5, np.inf]]))

    def found(*given: float) -> list[str]:
        return [v.claim for v in too_far(claim, 0, x, {"torch": np.array(given)}, Outcome())]

    # 2 x + 0.1 is 0.5 more than the float64 number 0.1, and 1.1 is a little farther.
    assert found(0.1, np.nan) == [] and found(1.1, 0.0) == ["float32: error of output 0 by torch"]
    assert found(np.nan, 0.0) == found(np.inf, 0.0) == ["float32: error of output 0 by torch"]
    outcome = Outcome()
    too_far(claim, 0, x, {"torch": np.array([0.85, 0.0])}, outcome)
    assert outcome.largest["float32, torch: largest error / bound"] == pytest.approx(0.5)


def test_a_claim_about_what_has_no_value_is_noticed() -> None:
    builder = GraphBuilder()
    graph = builder.build(builder.add(ops.Elementwise("log"), builder.add(ops.Input((1,)))))
    claim = Claim(graph, Box.around(np.zeros((1, 1)), 1.0), "float32", np.array([[1.0]]))
    wrong = too_far(claim, 0, -np.ones(1), {"torch": np.array([0.0])}, Outcome())
    assert [v.claim for v in wrong] == ["float32: output 0, which has no value"]


def test_a_decision_that_changes_within_the_radius_is_noticed() -> None:
    graph, point = doubled(), np.array([[0.25]])

    def broken(radius: float, offset: float, error: float = 10.0, margin: float = 0.5) -> list[Violation]:
        status = np.array(["certified"])
        answer = RadiusCertificate(
            np.array([radius]), np.array([margin]), status, "linf", "deployed-float32", np.array([error])
        )
        draw = RadiusDraw(graph, point, np.array([0]), "linf", np.ones(1), None, answer)
        tried = np.array([[[0.25]], [[0.0]], [[-0.1]]])
        program = Program("off", lambda x: np.concatenate([2 * x + 0.1 - offset, -2 * x], 1))
        return list(disproved(draw, [program], tried, range(1), Counter()))

    assert broken(0.25, 0.0) == []
    assert [v.claim for v in broken(0.25, 0.2)] == ["deployed radius, off"]  # at 0: −0.1 against 0
    assert [v.claim for v in broken(0.1, 0.0, error=1e-30)] == ["served error, off"]
    assert [v.claim for v in broken(0.1, 0.0, error=np.inf)] == ["served error of a certified radius"]
    assert [v.claim for v in broken(0.1, 0.0, margin=1.2)] == ["deployed margin, off"]


def test_manners_of_a_simulated_program() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    cancelled = builder.build(
        builder.add(ops.Linear(ops.frozen_array([[1.0, 1.0]]), ops.frozen_array([-(2.0**30)])), x)
    )
    points = np.array([[2.0**30, 1.0]])

    def served(graph: Graph, points: np.ndarray, manner: Manner) -> set[float]:
        return {float(serve_all(graph, points, np.random.default_rng(i), "float32", manner)[0, 0]) for i in range(12)}

    assert served(cancelled, points, Manner()) == {0.0, 1.0}  # the order decides
    assert served(cancelled, points, Manner(wide=True)) == {1.0}
    builder = GraphBuilder()
    square = builder.add(
        ops.Linear(ops.frozen_array([[1 + 2.0**-12]]), ops.frozen_array([-1.0])), builder.add(ops.Input((1,)))
    )
    once, twice = (served(builder.build(square), np.array([[1 + 2.0**-12]]), Manner(fused=f)) for f in (True, False))
    assert twice == {2.0**-11} and 2.0**-11 + 2.0**-24 in once
    scaled = GraphBuilder()
    tiny = scaled.build(scaled.add(ops.ScaleShift(ops.frozen_array(0.5)), scaled.add(ops.Input((1,)))))
    assert served(tiny, np.array([[2.0**-126]]), Manner()) == {2.0**-127}
    assert served(tiny, np.array([[2.0**-126]]), Manner(flush=True)) == {0.0}


def test_an_exported_network_is_the_network() -> None:
    graph, points = doubled(), np.array([[0.5], [-3.0]])
    for level in LEVELS:
        answers = onnx_session(onnx_model(graph), level)(points)
        np.testing.assert_array_equal(answers, np.float32([[1.1, -1.0], [-5.9, 6.0]]))
