"""scikit-learn estimators and pipelines: weights exact, classifiers as logits that give their labels and probabilities."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestRegressor, VotingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.svm import LinearSVC, LinearSVR
from sklearn.tree import DecisionTreeRegressor

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.classification import classes_of, probabilities_from
from mlflow_lipschitz.frontends.to_onnx import to_onnx

REGRESSORS = {
    "LinearRegression": LinearRegression(),
    "Ridge": Ridge(),
    "Lasso": Lasso(0.01),
    "ElasticNet": ElasticNet(0.01),
    "SGDRegressor": SGDRegressor(random_state=0),
    "LinearSVR": LinearSVR(random_state=0),
    "MLPRegressor": MLPRegressor(hidden_layer_sizes=(8, 8), max_iter=30, random_state=0),
    "MLPRegressor tanh": MLPRegressor(hidden_layer_sizes=(8,), activation="tanh", max_iter=30, random_state=0),
    "MLPRegressor logistic": MLPRegressor(hidden_layer_sizes=(8,), activation="logistic", max_iter=30, random_state=0),
    "MLPRegressor identity": MLPRegressor(hidden_layer_sizes=(8,), activation="identity", max_iter=30, random_state=0),
    "StandardScaler": make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(8,), max_iter=30, random_state=0)),
    "StandardScaler, centering only": make_pipeline(StandardScaler(with_std=False), Ridge()),
    "MinMaxScaler": make_pipeline(MinMaxScaler((-1, 1)), Ridge()),
    "RobustScaler": make_pipeline(RobustScaler(), Ridge()),
    "MaxAbsScaler": make_pipeline(MaxAbsScaler(), Ridge()),
    "MinMaxScaler, clipping": make_pipeline(MinMaxScaler(clip=True), Ridge()),
    "Normalizer": make_pipeline(Normalizer(), Ridge()),
    "Normalizer l1": make_pipeline(Normalizer("l1"), Ridge()),
    "PCA": make_pipeline(StandardScaler(), PCA(4), Ridge()),
    "PCA, whitened": make_pipeline(StandardScaler(), PCA(4, whiten=True), Ridge()),
    "PolynomialFeatures": make_pipeline(StandardScaler(), PolynomialFeatures(3), Ridge()),
    "PolynomialFeatures, interactions": make_pipeline(
        StandardScaler(), PolynomialFeatures(2, interaction_only=True, include_bias=False), Ridge()
    ),
    "FunctionTransformer without a function": make_pipeline(FunctionTransformer(), Ridge()),
    "SimpleImputer": make_pipeline(SimpleImputer(), StandardScaler(), Ridge()),
    "ColumnTransformer": make_pipeline(
        ColumnTransformer([("a", StandardScaler(), [0, 3, 5]), ("b", MinMaxScaler(), [1, 2])], remainder="passthrough"),
        Ridge(),
    ),
}  # fmt: skip

CLASSIFIERS = {
    "LogisticRegression": LogisticRegression(),
    "LogisticRegressionCV": LogisticRegressionCV(Cs=2, cv=2),
    "RidgeClassifier": RidgeClassifier(),
    "LinearSVC": LinearSVC(random_state=0),
    "SGDClassifier": SGDClassifier(random_state=0),
    "SGDClassifier log loss": SGDClassifier(loss="log_loss", random_state=0),
    "Perceptron": Perceptron(random_state=0),
    "MLPClassifier": MLPClassifier(hidden_layer_sizes=(8, 8), max_iter=30, random_state=0),
    "MLPClassifier logistic": MLPClassifier(
        hidden_layer_sizes=(8,), activation="logistic", max_iter=30, random_state=0
    ),
}


def fitted(estimator: Any, rows: np.ndarray, targets: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return estimator.fit(rows, targets)


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressor(name: str) -> None:
    rows, targets = load_diabetes(return_X_y=True, scaled=False)
    estimator = fitted(REGRESSORS[name], rows, targets)
    graph = trace(estimator)
    assert graph.output_names == ("output[0]",)
    np.testing.assert_allclose(evaluate(graph, rows).numpy()[:, 0], estimator.predict(rows), rtol=1e-9)


def test_pipeline_fitted_on_a_data_frame() -> None:
    frame, targets = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    columns = ColumnTransformer([("a", StandardScaler(), ["bmi", "bp"]), ("b", MinMaxScaler(), ["age"])])
    estimator = make_pipeline(columns, StandardScaler(), Ridge()).fit(frame, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = trace(estimator)
    np.testing.assert_allclose(evaluate(graph, frame.to_numpy()).numpy()[:, 0], estimator.predict(frame), rtol=1e-9)
    assert list(estimator.feature_names_in_) == list(frame.columns)


def test_classifier_fitted_on_a_data_frame() -> None:
    frame, targets = load_iris(return_X_y=True, as_frame=True)
    columns = ColumnTransformer([("a", StandardScaler(), list(frame.columns[:2]))], remainder="passthrough")
    for classifier in (LogisticRegression(), MLPClassifier(hidden_layer_sizes=(8,), max_iter=30, random_state=0)):
        estimator = fitted(make_pipeline(columns, classifier), frame, targets)
        logits = evaluate(trace(estimator), frame.to_numpy()).numpy()
        np.testing.assert_array_equal(logits.argmax(axis=1), estimator.predict(frame))


def test_regressor_of_two_targets() -> None:
    rows, targets = load_diabetes(return_X_y=True)
    estimator = Ridge().fit(rows, np.stack([targets, -targets], axis=1))
    np.testing.assert_allclose(evaluate(trace(estimator), rows).numpy(), estimator.predict(rows), rtol=1e-9)


def assert_logits_of(estimator: Any, rows: np.ndarray) -> None:
    model = to_onnx(estimator)
    graph = trace(estimator)
    logits = evaluate(graph, rows).numpy()
    assert graph.output_names == tuple(f"logit[{i}]" for i in range(len(estimator.classes_)))
    assert classes_of(model) == estimator.classes_.tolist()
    np.testing.assert_array_equal(estimator.classes_[logits.argmax(axis=1)], estimator.predict(rows))
    if hasattr(estimator, "decision_function"):
        scores = estimator.decision_function(rows)
        own = logits[:, 1] if scores.ndim == 1 else logits
        np.testing.assert_allclose(own, scores, rtol=1e-9, atol=1e-9)
    if hasattr(estimator, "predict_proba"):
        softmax, sigmoids = probabilities_from(logits)
        expected = estimator.predict_proba(rows)
        assert np.allclose(softmax, expected, atol=1e-10) or np.allclose(sigmoids, expected, atol=1e-10)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_of_two_classes(name: str) -> None:
    rows, targets = load_breast_cancer(return_X_y=True)
    rows = StandardScaler().fit_transform(rows)
    estimator = fitted(CLASSIFIERS[name], rows, targets)
    assert_logits_of(estimator, rows)
    assert not evaluate(trace(estimator), rows)[:, 0].any()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_of_three_classes_in_a_pipeline(name: str) -> None:
    rows, targets = load_iris(return_X_y=True)
    estimator = fitted(make_pipeline(StandardScaler(), CLASSIFIERS[name]), rows, np.array(["se", "ve", "vi"])[targets])
    assert_logits_of(estimator, rows)


def test_weights_are_exact_and_the_scaler_is_folded() -> None:
    rows, targets = load_diabetes(return_X_y=True, scaled=False)
    estimator = make_pipeline(StandardScaler(), Ridge()).fit(rows, targets)
    graph = trace(estimator)
    linear = next(n.op for n in graph.nodes if isinstance(n.op, ops.Linear))
    np.testing.assert_array_equal(linear.weight[0], estimator[-1].coef_)
    assert {type(n.op) for n in graph.nodes} <= {ops.Input, ops.Reshape, ops.ScaleShift, ops.Linear}


def test_what_cannot_be_certified_is_refused_by_name() -> None:
    rows, targets = load_diabetes(return_X_y=True)
    refused = {
        "trees answer in steps": RandomForestRegressor(3, random_state=0),
        r"DecisionTreeRegressor at node 'estimators_\[0\]'": VotingRegressor(
            [("dt", DecisionTreeRegressor(max_depth=2))]
        ),
        "neighbor": KNeighborsRegressor(3),
        "bins": make_pipeline(KBinsDiscretizer(3, encode="ordinal"), Ridge()),
        "rounds the encodings": make_pipeline(TargetEncoder(), Ridge()),
        "Python function": make_pipeline(FunctionTransformer(np.abs), Ridge()),
    }
    for reason, estimator in refused.items():
        with pytest.raises(UnsupportedOperator, match=reason) as refusal:
            trace(estimator.fit(rows, targets))
        assert refusal.value.remedy


def test_an_imputer_that_replaces_a_number_is_no_identity() -> None:
    rows, targets = load_diabetes(return_X_y=True)
    with pytest.raises(UnsupportedOperator, match="Imputer"):
        trace(make_pipeline(SimpleImputer(missing_values=-1.0), Ridge()).fit(rows, targets))


def test_an_export_that_computes_something_else_is_an_error() -> None:
    rows, targets = load_diabetes(return_X_y=True)
    estimator = Ridge().fit(rows, targets)
    estimator.predict = lambda rows: np.zeros(len(rows))
    with pytest.raises(FidelityError, match="Ridge"):
        trace(estimator)


def test_estimators_that_cannot_be_exported() -> None:
    rows, targets = load_iris(return_X_y=True)
    with pytest.raises(UsageError, match="not fitted"):
        trace(Ridge())
    labels = np.stack([targets == 0, targets == 1], axis=1).astype(int)
    with pytest.raises(UnsupportedOperator, match="one label per row"):
        trace(fitted(MLPClassifier(hidden_layer_sizes=(4,), max_iter=5, random_state=0), rows, labels))

    class Own(Ridge):
        pass

    with pytest.raises(UnsupportedOperator, match="skl2onnx cannot convert it"):
        trace(Own().fit(rows, targets))
