"""Radii for the program that is served: rounding may flip a decision inside a radius that holds in real arithmetic."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest

import mlflow_lipschitz as ml
from mlflow_lipschitz.certify.deployed import ARITHMETICS
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.frontends.lowering import lower
from tests import exact
from tests.cases import draw, points_of
from tests.frontends.onnx_models import make_model, node, run_onnxruntime
from tests.reference_cases import FOLDER
from tests.served import serve

DEPLOYED = "deployed-float32"


def cancelling() -> onnx.ModelProto:
    """f₀ = relu(x + 10⁸) − 10⁸, that is x; f₁ = 3. In float32 the first is a multiple of 8."""
    constants = {
        "w1": np.array([[1.0, 0.0]], np.float32), "b1": np.array([1e8, 0.0], np.float32),
        "w2": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), "b2": np.array([-1e8, 3.0], np.float32),
    }  # fmt: skip
    nodes = [node("Gemm", "x w1 b1", "h"), node("Relu", "h", "r"), node("Gemm", "r w2 b2", "y")]
    return make_model(nodes, (1,), constants)


def test_a_flip_inside_the_real_radius_is_not_certified_for_the_served_program() -> None:
    model = cancelling()
    graph, point, labels = lower(model), np.array([[8.0]]), np.array([0])
    real = ml.certified_radius(graph, point, labels, max_radius=20.0)
    assert real.arithmetic == "real" and real.served_error is None and real.radius[0] > 4.9
    nearby = np.array([[8.0 - 4.5]], dtype=np.float32)
    value = exact.values_at(graph, nearby[0].astype(np.float64))
    assert value[0] == Fraction(7, 2) > value[1] == 3 and abs(8.0 - 3.5) < real.radius[0]
    assert run_onnxruntime(model, point.astype(np.float32)).argmax(1) == 0
    assert run_onnxruntime(model, nearby).argmax(1) == 1  # the served program decides otherwise
    deployed = ml.certified_radius(graph, point, labels, max_radius=20.0, arithmetic=DEPLOYED)
    assert deployed.arithmetic == DEPLOYED and deployed.radius[0] == 0 and deployed.status[0] == "undecided"
    assert deployed.served_error is not None and 4 < deployed.served_error[0] < 1000


def test_where_the_margin_is_far_above_rounding_the_served_program_is_certified_too() -> None:
    graph = lower(cancelling())
    point = np.array([[4000.0]])
    real, deployed = (ml.certified_radius(graph, point, [0], max_radius=4e3, arithmetic=a) for a in ("real", DEPLOYED))
    assert 0 < real.radius[0] - deployed.radius[0] < 200 and deployed.status[0] == "certified"


def test_the_served_margin_is_the_real_one_less_both_errors() -> None:
    graph, points = draw("relu", seed=4, count=6)
    labels = evaluate(graph, points).argmax(1).numpy()
    real, deployed = (ml.certified_radius(graph, points, labels, arithmetic=a) for a in ("real", DEPLOYED))
    errors = ml.served_error_bounds(graph, ml.Box.around(points, 0.0))
    lost = real.margin - deployed.margin
    assert np.all(lost > 0) and np.all(lost <= 2 * errors.max(1) * (1 + 1e-6) + 1e-12)
    for row, (label, value) in enumerate(zip(labels, [exact.values_at(graph, p) for p in points], strict=True)):
        margin = min(value[label] - v for j, v in enumerate(value) if j != label)
        assert Fraction(deployed.margin[row]) < Fraction(real.margin[row]) <= margin
    assert np.all(deployed.radius <= real.radius)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["relu", "tanh", "softmax", "maximum", "add (two heads)", "gelu"])
def test_no_served_decision_changes_within_the_radius(name: str, norm: str) -> None:
    graph, points = draw(name, seed=9, count=4)
    outputs = evaluate(graph, points).numpy()
    labels = outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).astype(int)
    found = ml.certified_radius(graph, points, labels, norm=norm, max_radius=2.0, arithmetic=DEPLOYED)
    rng = np.random.default_rng(0)
    assert found.served_error is not None
    for row in range(len(points)):
        radius = float(found.radius[row])
        if radius == 0:
            continue
        assert np.isfinite(found.served_error[row])
        reach = radius if norm == "linf" else radius / points[row].size
        for point in points_of(rng, points[row] - reach, points[row] + reach, 12):
            answer = serve(graph, point, rng)
            decided = int(answer.argmax()) if answer.size > 1 else int(answer[0] > 0)
            assert decided == labels[row]
    assert (found.radius > 0).any()


def test_coarser_formats_certify_less() -> None:
    graph, points = draw("relu", seed=11, count=6)
    labels = evaluate(graph, points).argmax(1).numpy()
    radii = [
        ml.certified_radius(graph, points, labels, max_radius=2.0, arithmetic=name).radius
        for name in ("real", DEPLOYED, "deployed-float16", "deployed-bfloat16")
    ]
    assert all(np.all(a >= b) for a, b in itertools.pairwise(radii)) and radii[0].sum() > radii[3].sum()


def test_a_single_output_decides_by_its_sign() -> None:
    model = make_model(
        [node("Gemm", "x w b", "y")], (2,), {"w": np.ones((2, 1), np.float32), "b": np.array([1e-7], np.float32)}
    )
    points = np.array([[0.25, -0.25], [1.0, 1.0], [-1.0, -1.0]])
    found = ml.certified_radius(lower(model), points, [1, 1, 0], arithmetic=DEPLOYED)
    # The first is positive by less than the rounding of 1/4.
    assert found.status.tolist() == ["undecided", "certified", "certified"] and found.radius[0] == 0
    assert ml.certified_radius(lower(model), points, [1, 1, 0], max_radius=1e-6).radius[0] > 0


def test_a_decision_that_is_wrong_beyond_rounding_is_violated() -> None:
    model = make_model([node("Gemm", "x w", "y")], (2,), {"w": np.eye(2, dtype=np.float32)})
    points = np.array([[1.0, 2.0], [1.0, 1.0 + 1e-8]])
    found = ml.certified_radius(lower(model), points, [0, 0], arithmetic=DEPLOYED)
    assert found.status.tolist() == ["violated", "undecided"] and np.all(found.radius == 0)


def test_nothing_is_certified_where_nothing_is_known() -> None:
    nodes = [node("LpNormalization", "x", "n", p=2, axis=-1), node("Gemm", "n w", "y")]
    graph = lower(make_model(nodes, (3,), {"w": np.eye(3, dtype=np.float32)}))
    points = np.array([[1.0, 0.0, -1.0]])
    assert ml.certified_radius(graph, points, [0], max_radius=0.1).radius[0] > 0
    found = ml.certified_radius(graph, points, [0], max_radius=0.1, arithmetic=DEPLOYED)
    assert found.radius[0] == 0 and found.served_error is not None and np.isinf(found.served_error[0])
    assert found.status[0] == "undecided" and found.margin[0] == -np.inf


def test_joined_steps_are_taken_one_by_one() -> None:
    """A normalization that cancels what comes before it: folded, nothing of it is to be seen."""
    big = np.float32(1e8)
    constants = {
        "w": np.eye(2, dtype=np.float32), "b": np.full(2, big), "g": np.ones(2, np.float32), "beta": np.zeros(2, np.float32),
        "mean": np.full(2, big), "var": np.ones(2, np.float32),
    }  # fmt: skip
    model = make_model(
        [node("Gemm", "x w b", "h"), node("BatchNormalization", "h g beta mean var", "y")], (2,), constants
    )
    graph, points = lower(model), np.array([[4.5, 3.0]])
    assert ml.certified_radius(graph, points, [0]).radius[0] > 0.7
    assert np.ptp(run_onnxruntime(model, np.array([[3.9, 3.5]], np.float32))) == 0  # a tie within that radius
    assert ml.certified_radius(graph, points, [0], arithmetic=DEPLOYED).radius[0] == 0


def test_names_of_arithmetics() -> None:
    assert ARITHMETICS == ("real", "deployed-float32", "deployed-bfloat16", "deployed-float16")
    graph, points = draw("relu", seed=0)
    with pytest.raises(UsageError, match=r"arithmetic='float32': choose one of real, deployed-float32"):
        ml.certified_radius(graph, points, [0, 0], arithmetic="float32")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the reference networks are not beside this checkout")
@pytest.mark.parametrize("name", ["digits_mlp3x50", "bc_mlp2x32"])
def test_networks_of_use_lose_little(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    model = onnx.load(path)
    graph = ml.trace(str(path))
    with np.load(FOLDER / f"{name}.npz") as archive:
        points = archive[archive.files[0]].astype(np.float64)[:4]
    labels = evaluate(graph, points).argmax(1).numpy()
    real, deployed = (
        ml.certified_radius(graph, points, labels, max_radius=0.2, arithmetic=a) for a in ("real", DEPLOYED)
    )
    assert deployed.served_error is not None and np.all(deployed.served_error < 0.01)
    assert np.all(real.radius - deployed.radius <= 0.01 * real.radius) and np.all(deployed.radius > 0)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    for point, radius, label in zip(points, deployed.radius, labels, strict=True):
        inside = points_of(rng, point - radius, point + radius, 200).astype(np.float32)
        assert all(session.run(None, {"x": row[None]})[0].argmax() == label for row in inside)
