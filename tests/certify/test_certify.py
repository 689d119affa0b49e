"""The public calls: batches, chunks, regions, arguments, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.certify import certified_radius, certify_lipschitz, certify_monotonicity, find_violation
from mlflow_lipschitz.certify.radius import largest_certified
from mlflow_lipschitz.engine.attack.sampling import sample
from mlflow_lipschitz.engine.domains.region import Box, LpBall
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import InvalidRegion, UsageError
from tests import cases, properties

seeds = st.integers(0, 2**32 - 1)


def mlp(seed: int, curve: str = "relu", outputs: int = 3) -> Graph:
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add(ops.Input((4,)))
    for width in (6, 5):
        shape = builder.shape(x)
        layer = ops.Linear(rng.normal(size=(width, *shape)), rng.normal(size=width))
        x = builder.add(ops.Elementwise(curve), builder.add(layer, x))
    return builder.build(builder.add(ops.Linear(rng.normal(size=(outputs, 5)), rng.normal(size=outputs)), x))


def draw_points(seed: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed + 1).normal(size=(count, 4))


@pytest.mark.parametrize("curve", ["relu", "tanh"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_batch_bounds_each_point_and_objective_as_if_alone(curve: str, norm: str) -> None:
    graph, points = mlp(0, curve), draw_points(0)
    box = Box.around(points, 0.2)
    together = certify_lipschitz(graph, points, box, norm=norm, device="cpu")
    for row in range(len(points)):
        for output in range(3):
            alone = certify_lipschitz(
                graph, points[[row]], box.rows(row, row + 1), norm=norm, outputs=output, device="cpu"
            )
            np.testing.assert_allclose(alone.upper[0, 0], together.upper[row, output], rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 64])
def test_the_chunk_size_changes_nothing(chunk_size: int) -> None:
    graph, points = mlp(1), draw_points(1)
    box = Box.around(points, 0.2)
    whole = certify_lipschitz(graph, points, box, device="cpu")
    chunked = certify_lipschitz(graph, points, box, device="cpu", chunk_size=chunk_size)
    np.testing.assert_allclose(chunked.upper, whole.upper, rtol=1e-9)
    np.testing.assert_allclose(
        certify_monotonicity(graph, points, box, device="cpu", chunk_size=chunk_size).lower,
        certify_monotonicity(graph, points, box, device="cpu").lower,
        rtol=1e-9,
        atol=1e-12,
    )
    labels = evaluate(graph, points).argmax(1).numpy()
    np.testing.assert_allclose(
        certified_radius(graph, points, labels, device="cpu", chunk_size=chunk_size).radius,
        certified_radius(graph, points, labels, device="cpu").radius,
        rtol=1e-6,
    )


@given(seed=seeds, norm=st.sampled_from([1, 2]), radius=st.sampled_from([0.0, 0.1, 2.0]), cut=st.booleans())
def test_balls_and_domains_contain_the_truth(seed: int, norm: int, radius: float, cut: bool) -> None:
    graph, points = cases.draw("relu", seed)
    domain = (points.min(0) - 0.05, points.max(0) + 0.3) if cut else None
    ball = LpBall(points, radius, norm=norm, domain=domain)
    certificate = certify_lipschitz(graph, points, ball, norm={1: "l1", 2: "l2"}[norm], device="cpu")
    mono = certify_monotonicity(graph, points, ball, device="cpu")
    assert (certificate.lower <= certificate.upper).all()
    for candidates in sample(ball, 6, torch.Generator().manual_seed(seed % 1000)):
        for row, point in enumerate(candidates.numpy()):
            properties.lipschitz_is_not_exceeded(graph, certificate, row, point)
            properties.derivatives_lie_within(graph, mono, row, point)


@given(seed=seeds, norm=st.sampled_from(["linf", "l2", "l1"]), single=st.booleans())
def test_no_point_within_a_certified_radius_changes_the_decision(seed: int, norm: str, single: bool) -> None:
    graph, points = mlp(seed, outputs=1 if single else 3), draw_points(seed, 3)
    scale = np.array([1.0, 0.5, 0.0, 2.0])

    def decide(x: np.ndarray) -> np.ndarray:
        y = evaluate(graph, x).numpy()
        return (y[:, 0] > 0).astype(int) if single else y.argmax(1)

    labels = decide(points)
    got = certified_radius(graph, points, labels, norm=norm, max_radius=2.0, feature_scale=scale, device="cpu")
    assert ((got.radius > 0) == (got.status == "certified")).all()
    reach = got.radius[:, None] * scale
    ball = Box.around(points, reach) if norm == "linf" else LpBall(points, reach, norm=2 if norm == "l2" else 1)
    for candidates in sample(ball, 60, torch.Generator().manual_seed(0)):
        assert (decide(candidates.numpy()) == labels).all()


def test_a_wrong_label_has_no_radius_and_is_called_violated() -> None:
    graph, points = mlp(3), draw_points(3)
    wrong = (evaluate(graph, points).argmax(1).numpy() + 1) % 3
    got = certified_radius(graph, points, wrong, device="cpu")
    assert (got.radius == 0).all() and (got.margin < 0).all() and (got.status == "violated").all()


def test_the_radius_search_finds_the_boundary_of_a_yes_no_question() -> None:
    limits = torch.tensor([0.0, 0.1, 0.37, 1.0, 5.0], dtype=torch.float64)
    got = largest_certified(lambda radii: radii <= limits[:, None], 5, 1.0)
    assert bool((got <= limits).all())
    assert bool((limits.clamp(max=1.0) - got <= 9**-4 + 1e-9).all())


def test_the_margin_of_a_linear_model_is_exact() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    graph = builder.build(builder.add(ops.Linear(np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])), x))
    points = np.array([[1.0, 0.0]])
    got = certify_lipschitz(graph, points, Box.around(points, 0.5), outputs="margin", labels=[0], device="cpu")
    # f₀ − f₁ has gradient (1, −2), f₀ − f₂ has (2, 0).
    np.testing.assert_allclose(got.upper, [[3.0, 2.0]], rtol=1e-12)
    np.testing.assert_allclose(got.lower, [[3.0, 2.0]], rtol=1e-12)


def test_the_scale_of_a_feature_is_the_unit_of_its_gradient() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    graph = builder.build(builder.add(ops.Linear(np.array([[3.0, 5.0]])), x))
    points = np.zeros((1, 2))
    expected = {"linf": 3 * 2 + 5 * 0.5, "l2": np.hypot(6, 2.5), "l1": 6.0}
    for norm, value in expected.items():
        got = certify_lipschitz(graph, points, Box.around(points, 1), norm=norm, feature_scale=[2.0, 0.5], device="cpu")
        np.testing.assert_allclose(got.upper, [[value]], rtol=1e-12)


def test_zero_radius_on_a_kink_spans_the_clarke_set() -> None:
    builder = GraphBuilder()
    relu = builder.add(ops.Elementwise("relu"), builder.add(ops.Input((1,))))
    graph = builder.build(builder.add(ops.Linear(np.array([[-3.0]])), relu))
    got = certify_monotonicity(graph, [[0.0]], Box([[0.0]], [[0.0]]), device="cpu")
    assert got.lower[0, 0] <= -3.0 and got.upper[0, 0] >= 0.0
    assert got.sign[0, 0] == -1 and got.upper[0, 0] == 0.0


def test_a_network_of_nonnegative_weights_is_certified_to_rise() -> None:
    # Structural zeros must survive rounding: the third input is not used at all.
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.add(ops.Input((3,)))
    first = rng.random((8, 3)) * [1, 1, 0]
    hidden = builder.add(ops.Elementwise("relu"), builder.add(ops.Linear(first, rng.normal(size=8)), x))
    hidden = builder.add(ops.Elementwise("tanh"), builder.add(ops.Linear(rng.random((8, 8))), hidden))
    graph = builder.build(builder.add(ops.Linear(rng.random((1, 8))), hidden))
    points = rng.normal(size=(20, 3))
    got = certify_monotonicity(graph, points, Box.around(points, 3.0), device="cpu")
    assert (got.sign == 1).all()
    assert (got.lower[:, 2] == 0).all() and (got.upper[:, 2] == 0).all()


def test_a_violation_is_found_and_lies_in_the_region() -> None:
    builder = GraphBuilder()
    graph = builder.build(builder.add(ops.Elementwise("abs"), builder.add(ops.Input((2,)))))
    points = np.array([[0.25, 0.0], [3.0, 0.0]])
    box = Box.around(points, 0.5)
    got = find_violation(graph, points, box, feature=0, direction="increasing")
    assert got.found.tolist() == [True, False]
    # Rounded towards zero: what is reported is surely exceeded.
    assert -1.0 <= got.derivative[0] < -0.999999
    assert box.lower[0, 0] <= got.point[0, 0] < 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l3"}, "choose one of"),
        ({"outputs": 3}, "not indices"),
        ({"outputs": -1}, "not indices"),
        ({"outputs": []}, "not indices"),
        ({"outputs": "all"}, "margin"),
        ({"outputs": "margin"}, "labels are needed"),
        ({"outputs": "margin", "labels": [0]}, "1 labels for 2 points"),
        ({"outputs": "margin", "labels": [0, 3]}, "row 1: label 3"),
        ({"outputs": "margin", "labels": [0, 0.5]}, "class indices"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: dict[str, object], message: str) -> None:
    points = draw_points(0, 2)
    with pytest.raises(UsageError, match=message):
        certify_lipschitz(mlp(0), points, Box.around(points, 0.1), **arguments)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_an_absent_device_is_a_usage_error() -> None:
    points = draw_points(0, 2)
    with pytest.raises(UsageError, match="cuda") as raised:
        certify_lipschitz(mlp(0), points, Box.around(points, 0.1), device="cuda")
    assert raised.value.exit_code == 2


def test_regions_that_make_no_sense_are_refused() -> None:
    points = draw_points(0, 2)
    with pytest.raises(InvalidRegion, match="point 1"):
        Box([[0.0], [1.0]], [[0.0], [0.5]])
    with pytest.raises(InvalidRegion, match="not finite"):
        Box.around([[np.nan]], 1.0)
    with pytest.raises(InvalidRegion, match="negative"):
        Box.around(points, -0.1)
    with pytest.raises(InvalidRegion, match="excludes"):
        Box.around([[5.0]], 0.1, domain=([0.0], [1.0]))
    with pytest.raises(InvalidRegion, match="does not fit"):
        Box.around(points, np.ones(3))
    with pytest.raises(InvalidRegion, match="norms 1 and 2"):
        LpBall(points, 0.1, norm=3)
    with pytest.raises(InvalidRegion, match="excludes the center"):
        LpBall([[2.0]], 1.5, domain=([0.0], [1.0]))
    with pytest.raises(InvalidRegion, match="must both be"):
        certify_lipschitz(mlp(0), points, Box.around(points[:1], 0.1))
    with pytest.raises(InvalidRegion, match="no points"):
        certify_lipschitz(mlp(0), points[:0], Box.around(points[:0], 0.1))
    with pytest.raises(InvalidRegion, match="at least one"):
        certified_radius(mlp(0), points[:0], [], device="cpu")
