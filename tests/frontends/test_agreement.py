"""A bound on the graph must say something about the served program: nothing large may hide a difference that matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends.agreement import Agreement, Precision, decisions
from mlflow_lipschitz.frontends.fidelity import FidelityReport, ReplayOptions, replay
from mlflow_lipschitz.frontends.lowering import lower
from tests.frontends.onnx_models import make_model, node, run_onnxruntime

SINGLE = Precision(1e-4, 2.0**-24)
DECIDES = ReplayOptions(decides=True)
HUGE = 3e8  # float32 has steps of 32 here


def points(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).uniform(2.0, 4.0, size=(count, 2))


def replayed(
    nodes: list[Any], constants: Mapping[str, Any], rows: np.ndarray, options: ReplayOptions | None = None
) -> FidelityReport:
    single = {name: np.array(value, dtype=np.float32) for name, value in constants.items()}
    model = make_model(nodes, (2,), single)
    return replay(lower(model), model, rows, lambda x: run_onnxruntime(model, x.astype(np.float32)), options=options)


def test_a_large_offset_does_not_hide_that_one_class_is_always_served() -> None:
    constants = {"w": [[0, 0], [0, 1]], "c": [HUGE, HUGE]}
    for options in (DECIDES, None):
        with pytest.raises(FidelityError, match="40 of 40 rows differ"):
            replayed([node("Gemm", "x w c")], constants, points(), options)
    assert replayed([node("Gemm", "x w c")], {"w": constants["w"], "c": [7, 7]}, points(), DECIDES).rows == 40


def test_an_offset_that_moves_with_the_input_does_not_either() -> None:
    """Each logit varies by so much that their difference is lost in it; what is decided is their difference."""
    nodes = [node("Gemm", "x w")]
    constants = {"w": [[HUGE, HUGE], [0, 1]]}
    with pytest.raises(FidelityError, match="leads of the largest"):
        replayed(nodes, constants, points(), DECIDES)
    assert replayed(nodes, constants, points()).rows == 40  # each output alone is served as precisely as it varies


def cancelling(large: float) -> tuple[list[Any], dict[str, Any]]:
    """y = (large * x0 + x1) - large * x0, which is x1 in real numbers."""
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "x v", "b"), node("Sub", "a b", "d")]
    return nodes, {"w": [[large], [1]], "v": [[large], [0]]}


def test_a_large_output_does_not_hide_a_small_one() -> None:
    nodes, constants = cancelling(HUGE)
    nodes = [*nodes, node("Mul", "b one", "e"), node("Concat", "d e", axis=1)]
    with pytest.raises(FidelityError, match="in output 0"):
        replayed(nodes, {**constants, "one": [1]}, points())


@pytest.mark.parametrize("extreme", [0, 1, 9])
def test_some_extreme_rows_do_not_hide_the_others(extreme: int) -> None:
    nodes, constants = cancelling(HUGE)
    rows = np.vstack([points(), np.array([[0.0, 1e9 + i] for i in range(extreme)]).reshape(-1, 2)])
    with pytest.raises(FidelityError, match=f"40 of {len(rows)} rows differ"):
        replayed([*nodes, node("Mul", "d one")], {**constants, "one": [1]}, rows)


def test_an_extreme_row_is_measured_by_its_own_size() -> None:
    """Its rounding alone is larger than what the other rows are allowed."""
    rows = np.vstack([points(), [[1e7 / 3, 0.1]]])
    report = replayed([node("Gemm", "x w")], {"w": [[0.1], [0.1]]}, rows)
    assert (report.worst_row, report.max_difference > 1e-4) == (40, True)


@pytest.mark.parametrize("options", [None, DECIDES])
def test_float32_networks_pass_whatever_their_scale_and_offset(options: ReplayOptions | None) -> None:
    random = np.random.default_rng(1)
    nodes = [
        node("Gemm", "x w b", "h"), node("Relu", "h", "r"), node("Gemm", "r v c"),
    ]  # fmt: skip
    for scale, offset in ((1, 0), (1e-6, 0), (1e6, 0), (1, 1000), (1e-3, 0.5)):
        constants = {
            "w": random.normal(size=(2, 64)), "b": random.normal(size=64),
            "v": scale * random.normal(size=(64, 3)), "c": offset + scale * random.normal(size=3),
        }  # fmt: skip
        replayed(nodes, constants, points(200), options)


def test_a_constant_output_and_one_that_is_mostly_zero() -> None:
    constants = {"w": [[0, 1, 0], [0, 0, 0]], "b": [0.3, -3.8, 0.0]}
    replayed([node("Gemm", "x w b", "h"), node("Relu", "h")], constants, points())


def test_a_sign_that_differs_is_another_decision() -> None:
    agreement = Agreement(np.array([[1.0], [-2.0], [1e-9]]), SINGLE, decides=True)
    own = np.array([[1.0], [1e-9]])
    agreement.compare("graph against itself", own, own)
    with pytest.raises(FidelityError, match=r"1 of 2 rows are decided differently; the first is row 1"):
        agreement.compare("graph against the other", own, np.array([[1.0], [-1e-9]]))
    assert decisions(own).tolist() == [1, 1]


def test_outputs_too_close_to_tell_are_refused_where_they_are_told_apart_differently() -> None:
    own = np.array([[3.0, 1.0], [2.0, 2.0 + 1e-9]])
    other = np.array([[3.0, 1.0], [2.0 + 1e-9, 2.0]])
    with pytest.raises(FidelityError, match="row 1"):
        Agreement(own, SINGLE, decides=True).compare("graph against the other", own, other)
    Agreement(own, SINGLE).compare("graph against the other", own, other)
    with pytest.raises(FidelityError, match="decided differently"):  # a tie, resolved otherwise
        Agreement(own, SINGLE, decides=True).compare("it", np.array([[2.0, 2.0]]), np.array([[2.0, 2.0 + 1e-9]]))


def test_points_of_the_region_show_what_the_rows_cannot() -> None:
    rows = np.random.default_rng(0).uniform(size=(20, 1))
    nodes = [node("Sub", "x one", "d"), node("Relu", "d", "r"), node("Mul", "r k", "b"), node("Add", "x b")]
    honest, other = (
        make_model(nodes, (1,), {"one": np.float32([1.0]), "k": np.float32([slope])}) for slope in (2.0, -2.0)
    )
    graph = lower(other)
    assert replay(graph, honest, rows).compared == ("graph against onnxruntime",)
    with pytest.raises(FidelityError, match=r"more points of the region: 2 of 3 rows differ"):
        replay(graph, honest, rows, extra_points=np.array([[1.5], [0.5], [2.0]]))
    report = replay(lower(honest), honest, rows, extra_points=rows + 1)
    assert report.compared[1] == "graph against onnxruntime on 20 more points of the region"
    assert report.rows == 20
    with pytest.raises(FidelityError, match="NaN or infinity on point 1 of the region"):
        replay(graph, honest, rows, extra_points=np.array([[0.5], [np.inf]]))
    with pytest.raises(FidelityError, match="cannot be replayed"):
        replay(graph, honest, rows, extra_points=np.zeros((3, 2)))


def test_a_model_that_onnxruntime_cannot_run() -> None:
    model = make_model([node("Relu", "x")], (2,))
    graph = lower(model)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(FidelityError, match="onnxruntime cannot run"):
        replay(graph, model, points())


def test_a_band_holds_at_its_own_row_only() -> None:
    own = np.arange(20.0)[:, None]
    band = np.full((20, 1), 1e-6)
    band[3] = 0.5
    agreement = Agreement(own, SINGLE, band=band)
    moved = own.copy()
    moved[3] += 0.4
    agreement.compare("it", own, moved)
    with pytest.raises(FidelityError, match="row 7"):
        elsewhere = own.copy()
        elsewhere[7] += 0.4
        agreement.compare("it", own, elsewhere)
    with pytest.raises(FidelityError):
        agreement.of_rows(slice(4, None)).compare("it", own[4:], own[4:] + 0.4)
