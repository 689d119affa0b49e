"""What is reported is what the second program proves: its number where it is close, a word where it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.certify import certify_lipschitz, certify_monotonicity
from mlflow_lipschitz.certify.repair import derivative_rows, further_cut
from mlflow_lipschitz.checker.derivation import Subject, derivative_range, lipschitz_upper
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.evidence import SearchEvidence
from mlflow_lipschitz.pipeline import proving, repairing
from mlflow_lipschitz.pipeline.proving import Found, proved_again, region_arrays, second_proof
from mlflow_lipschitz.pipeline.question import Question
from tests.checker.certified import SEARCH, asked, increasing, mlp

POINTS = np.random.default_rng(5).normal(size=(4, 3))


def told(result: dict[str, np.ndarray]) -> str:
    return second_proof({**result, "recheck_seconds": np.zeros(4)}, Path("no such file"))["second proof"]


def found_by(graph: Graph, question: Question) -> Found:
    region = question.region(POINTS)
    bound = certify_lipschitz(graph, POINTS, region, outputs=0, budget=question.budget, device="cpu", evidence=True)
    signs = certify_monotonicity(graph, POINTS, region, budget=question.sign_budget, device="cpu", evidence=True)
    arrays = {
        "lipschitz_upper": bound.upper.max(1),
        "derivative_lower": signs.lower,
        "derivative_upper": signs.upper,
        "radius": np.zeros(4),
    }
    return Found(arrays, bound.evidence, signs.evidence, signs.searched)


@pytest.fixture(scope="module")
def case() -> tuple[Graph, Question, Found]:
    graph, question = mlp("relu", (3, 6, 5, 1), 2), asked((3,), size=0.6, budget=SEARCH, sign_budget=SEARCH)
    return graph, question, found_by(graph, question)


def test_a_search_is_proved_again(case: tuple[Graph, Question, Found]) -> None:
    graph, question, found = case
    assert found.lipschitz is not None and found.lipschitz.trees is not None
    assert (found.lipschitz.trees.node >= 0).any(), "nothing was cut: this shows little"
    result, evidence = proved_again(graph, POINTS, question, found)
    assert result["reproved"].all()
    stated = {**region_arrays(question), "points": POINTS, **evidence}
    assert (lipschitz_upper(Subject(graph, "linf", 0), stated) <= result["claimed_lipschitz_upper"]).all()
    low, high = derivative_range(Subject(graph, "linf", 0), stated)
    assert (low >= result["claimed_derivative_lower"]).all() and (high <= result["claimed_derivative_upper"]).all()
    assert (result["lipschitz_upper"] == result["claimed_lipschitz_upper"]).all()
    assert "4 of 4 rows again, in 0.0 s; evidence of 0 kB" in told(result)


def test_a_bound_too_good_to_be_proved_is_not_taken_back_quietly(case: tuple[Graph, Question, Found]) -> None:
    graph, question, found = case
    arrays = {**found.arrays, "lipschitz_upper": found.arrays["lipschitz_upper"] * np.array([1.0, 0.5, 1.0, 1.0])}
    result, _ = proved_again(graph, POINTS, question, replace(found, arrays=arrays))
    assert result["reproved"].tolist() == [True, False, True, True]
    assert result["lipschitz_upper"][1] == arrays["lipschitz_upper"][1]
    assert result["claimed_lipschitz_upper"][1] > result["lipschitz_upper"][1]
    assert "3 of 4 rows" in told(result) and "looser" in told(result)


def test_of_a_number_that_is_none_nothing_is_claimed(case: tuple[Graph, Question, Found]) -> None:
    graph, question, found = case
    arrays = {**found.arrays, "lipschitz_upper": found.arrays["lipschitz_upper"] * np.array([1.0, np.nan, 1.0, 1.0])}
    result, _ = proved_again(graph, POINTS, question, replace(found, arrays=arrays))
    assert result["claimed_lipschitz_upper"][1] == np.inf and not result["reproved"][1]
    assert np.isnan(result["lipschitz_upper"][1]), "the table has to see it, and make the row an error"


def test_the_looser_number_is_reported_where_it_is_close(case: tuple[Graph, Question, Found]) -> None:
    graph, question, found = case
    arrays = {**found.arrays, "lipschitz_upper": found.arrays["lipschitz_upper"] * 0.995}
    result, _ = proved_again(graph, POINTS, question, replace(found, arrays=arrays))
    assert result["reproved"].all() and (result["lipschitz_upper"] > arrays["lipschitz_upper"]).all()


def test_no_limit_of_the_policy_is_crossed_by_the_looser_number(case: tuple[Graph, Question, Found]) -> None:
    graph, question, found = case
    closer = found.arrays["lipschitz_upper"] * 0.995
    limits = (closer[1] * 0.5, closer[1] * 1.001)  # the second one is kept only by what was found first
    arrays, narrow = {**found.arrays, "lipschitz_upper": closer}, replace(question, lipschitz_limits=limits)
    result, _ = proved_again(graph, POINTS, narrow, replace(found, arrays=arrays))
    assert not result["reproved"][1] and result["lipschitz_upper"][1] == closer[1]


def test_a_sign_that_cannot_be_proved_again_stays_and_is_told() -> None:
    graph, question = mlp("tanh", (3, 6, 1), 4), asked((3,), size=0.3, monotone=(increasing(0),))
    found = found_by(graph, question)
    lower = found.arrays["derivative_lower"]
    assert (lower[:, 0] < 0).any()
    arrays = {**found.arrays, "derivative_lower": np.where(lower < 0, 0.0, lower)}
    result, _ = proved_again(graph, POINTS, question, replace(found, arrays=arrays))
    false = (lower < 0).any(1)
    assert (result["reproved"] == ~false).all()
    assert (result["derivative_lower"][false] >= 0).all() and (result["claimed_derivative_lower"][lower < 0] < 0).all()


def test_a_network_too_large_for_the_checker_claims_nothing(
    case: tuple[Graph, Question, Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, question, found = case
    monkeypatch.setattr(proving, "_LARGEST", 3)
    result, evidence = proved_again(graph, POINTS, question, found)
    assert not result["reproved"].any() and not evidence
    assert (result["claimed_lipschitz_upper"] == np.inf).all() and (result["claimed_derivative_lower"] == -np.inf).all()
    assert (result["lipschitz_upper"] == found.arrays["lipschitz_upper"]).all()
    assert "no row" in told(result)


def test_regions_cut_themselves_and_regions_cut_inside_are_proved_together() -> None:
    graph = mlp("relu", (5, 8, 6, 1), 6)
    points = np.random.default_rng(6).normal(size=(4, 5))
    # In two rows three features move, and their regions are cut themselves; in the others all five do.
    lower, upper = points - 0.8, points + 0.8
    lower[:2, 3:] = upper[:2, 3:] = points[:2, 3:]
    signs = certify_monotonicity(graph, points, Box(lower, upper), budget=SEARCH, device="cpu", evidence=True)
    assert signs.searched is not None
    cut = set(signs.searched.trees.node.tolist()) - {-1}
    assert graph.input in cut and len(cut) > 1, "both ways of cutting have to occur"
    rows = derivative_rows(graph, Box(lower, upper), 0, signs.searched)
    leaves = np.flatnonzero(signs.searched.trees.node < 0).tolist()
    for cuts in ("region", "ranges"):
        more = further_cut(rows, signs.searched.trees, leaves, Effort(Refinement(4096), cuts=cuts))
        assert len(more.node) >= len(signs.searched.trees.node) and more.sizes.sum() == len(more.node)


def test_trees_too_large_for_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = SearchEvidence.uncut(1)
    grown = replace(
        tree, node=np.array([0, -1, -1]), entry=np.zeros(3, np.int64), place=np.zeros(3), sizes=np.array([3]),
        empty=np.zeros(3, dtype=bool),
    )  # fmt: skip
    both = SearchEvidence.joined([grown, tree])
    assert repairing.capped(both) is both
    monkeypatch.setattr(repairing, "_MOST_NODES", 4)
    assert repairing.capped(both).sizes.tolist() == [1, 1]
