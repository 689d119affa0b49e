"""Kernel machines: the fitted parameters bit by bit, every kernel, binary classes; votes and second functions are refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.kernel_ridge import KernelRidge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, NuSVC, NuSVR

from mlflow_lipschitz.certify import certify_lipschitz
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.classification import classes_of
from mlflow_lipschitz.frontends.to_onnx import to_onnx

KERNELS: dict[str, dict[str, Any]] = {
    "linear": {"kernel": "linear"},
    "rbf": {"kernel": "rbf"},
    "rbf, gamma given": {"kernel": "rbf", "gamma": 0.3},
    "poly": {"kernel": "poly", "degree": 2, "coef0": 1.0},
    "poly, odd": {"kernel": "poly", "degree": 3, "coef0": -0.5},
    "sigmoid": {"kernel": "sigmoid", "gamma": 0.01, "coef0": 0.2},
}
REGRESSORS = {"SVR": SVR(C=10.0), "NuSVR": NuSVR(C=10.0), "KernelRidge": KernelRidge(alpha=0.5)}


def patients(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rows, targets = load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(rows[:count]), targets[:count]


def tumors(count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rows, targets = load_breast_cancer(return_X_y=True)
    return rows[:count, :6], np.array(["benign", "malignant"])[targets[:count]]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", REGRESSORS)
def test_regressor(name: str, kernel: str) -> None:
    rows, targets = patients()
    estimator = REGRESSORS[name].set_params(**KERNELS[kernel]).fit(rows, targets)
    values = evaluate(trace(estimator), rows).numpy()[:, 0]
    np.testing.assert_allclose(values, estimator.predict(rows), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("classifier", [SVC(), NuSVC(nu=0.3)])
def test_two_classes_in_a_pipeline(classifier: Any, kernel: str) -> None:
    rows, labels = tumors()
    estimator = make_pipeline(StandardScaler(), classifier.set_params(**KERNELS[kernel])).fit(rows, labels)
    logits = evaluate(trace(estimator), rows).numpy()
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], estimator.decision_function(rows), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(estimator.classes_[logits.argmax(axis=1)], estimator.predict(rows))
    assert classes_of(to_onnx(estimator)) == ["benign", "malignant"]


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_three_classes_one_against_the_rest(kernel: str) -> None:
    rows, targets = load_iris(return_X_y=True)
    estimator = OneVsRestClassifier(SVC(kernel=kernel)).fit(rows, targets)
    logits = evaluate(trace(estimator), rows).numpy()
    np.testing.assert_allclose(logits, estimator.decision_function(rows), rtol=1e-9, atol=1e-9)


def test_the_support_vectors_are_those_of_the_fit() -> None:
    rows, targets = patients()
    estimator = SVR().fit(rows, targets)
    shifts = [n.op.shift for n in trace(estimator).nodes if isinstance(n.op, ops.ScaleShift) and n.op.shift is not None]
    assert any(np.array_equal(np.squeeze(-shift), estimator.support_vectors_) for shift in shifts)


def test_a_machine_fitted_on_sparse_rows() -> None:
    rows, targets = patients()
    estimator = SVR().fit(csr_matrix(rows), targets)
    values = evaluate(trace(estimator), rows).numpy()[:, 0]
    np.testing.assert_allclose(values, SVR().fit(rows, targets).predict(rows), rtol=1e-6)


def test_bounds_lie_above_slopes_and_below_the_global_constant() -> None:
    """Of f = Σ αᵢ exp(−γ‖x − sᵢ‖²) no gradient is longer than Σ |αᵢ| √(2γ/e)."""
    rows, targets = patients(30)
    estimator = SVR(gamma=0.05, C=1.0).fit(rows[:, :3], targets)
    graph, points = trace(estimator), rows[:5, :3]
    found = certify_lipschitz(graph, points, Box.around(points, 0.01), norm="linf")
    random = np.random.default_rng(0)
    near = points[:, None] + random.uniform(-0.01, 0.01, size=(5, 200, 3))
    step = 1e-6
    slopes = [
        (
            estimator.predict((near + step * axis).reshape(-1, 3))
            - estimator.predict((near - step * axis).reshape(-1, 3))
        )
        / (2 * step)
        for axis in np.eye(3)
    ]
    sampled = np.abs(slopes).sum(axis=0).reshape(5, 200).max(axis=1)
    assert (found.upper[:, 0] > sampled * (1 - 1e-6)).all()
    assert (found.upper[:, 0] < 1.2 * sampled + 1e-3).all()
    longest = np.abs(estimator.dual_coef_).sum() * np.sqrt(2 * 0.05 / np.e)
    assert (found.upper[:, 0] <= np.sqrt(3) * longest).all()


@pytest.mark.parametrize(
    ("machine", "reason", "remedy"),
    [
        (SVC(), "vote", "OneVsRestClassifier"),
        (NuSVC(decision_function_shape="ovo"), "vote", "OneVsRestClassifier"),
        (make_pipeline(StandardScaler(), SVC(kernel="linear")), "vote", "OneVsRestClassifier"),
    ],
)
def test_votes_of_three_classes_are_refused(machine: Any, reason: str, remedy: str) -> None:
    rows, targets = load_iris(return_X_y=True)
    with pytest.raises(UnsupportedOperator, match=reason) as refusal:
        trace(machine.fit(rows, targets))
    assert remedy in refusal.value.remedy


def test_probabilities_of_their_own_and_kernels_of_their_own_are_refused() -> None:
    rows, labels = tumors(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions say that this option will go
        second = SVC(probability=True).fit(rows, labels)
    with pytest.raises(UnsupportedOperator, match="two different functions"):
        trace(second)
    with pytest.raises(UnsupportedOperator, match="precomputed"):
        trace(SVC(kernel="precomputed").fit(rows @ rows.T, labels))
    with pytest.raises(UnsupportedOperator, match="function of your own"):
        trace(SVC(kernel=lambda a, b: a @ b.T).fit(rows, labels))
