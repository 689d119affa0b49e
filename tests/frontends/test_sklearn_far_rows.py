"""Exported estimators answer as the fitted ones also on rows that lie far outside the example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, OneHotEncoder

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends import sklearn_converters, trace

RANDOM = np.random.default_rng(5)
ROWS = RANDOM.uniform(0.2, 1.0, size=(80, 3))
FAR = RANDOM.normal(size=(50, 3)) * 4
TARGETS = ROWS @ [1.0, 2.0, -3.0]


def clips() -> MaxAbsScaler:
    try:
        return MaxAbsScaler(clip=True)
    except TypeError:
        pytest.skip("the installed scikit-learn's MaxAbsScaler does not clip")


@pytest.mark.parametrize("scaler", [MinMaxScaler(clip=True), MaxAbsScaler()])
def test_scalers_outside_of_what_they_were_fitted_on(scaler: Any) -> None:
    estimator = make_pipeline(scaler, LinearRegression()).fit(ROWS, TARGETS)
    np.testing.assert_allclose(
        evaluate(trace(estimator, ROWS[:20]), FAR).numpy()[:, 0], estimator.predict(FAR), rtol=1e-9, atol=1e-9
    )


def test_a_scaler_that_clips_at_the_largest() -> None:
    estimator = make_pipeline(clips(), LinearRegression()).fit(ROWS, TARGETS)
    np.testing.assert_allclose(
        evaluate(trace(estimator, ROWS[:20]), FAR).numpy()[:, 0], estimator.predict(FAR), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("final", [LinearRegression(), LogisticRegression(), "passthrough"])
def test_an_option_that_a_converter_drops_is_noticed_far_outside(final: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = make_pipeline(clips(), final).fit(ROWS, (ROWS[:, 0] > 0.6).astype(int))
    monkeypatch.delitem(sklearn_converters.CONVERTERS, MaxAbsScaler)  # then skl2onnx's own is taken, which drops it
    monkeypatch.delitem(sklearn_converters.SHAPES, MaxAbsScaler)
    with pytest.raises(FidelityError, match="far outside the example"):
        trace(estimator, ROWS[:20])


def test_columns_that_are_looked_up_stay_what_they_are() -> None:
    frame = pd.DataFrame({"kind": RANDOM.choice(["a", "b"], len(ROWS)), "u": ROWS[:, 0], "yes": ROWS[:, 1] > 0.5})
    columns = make_column_transformer((OneHotEncoder(), ["kind"]), (clips(), ["u", "yes"]))
    estimator = make_pipeline(columns, LinearRegression()).fit(frame, TARGETS)
    assert trace(estimator, frame.iloc[:20]).input_shape == (4,)


def test_an_estimator_that_takes_no_negative_rows_is_compared_on_positive_ones() -> None:
    class Positive(LinearRegression):
        def predict(self, X: np.ndarray) -> np.ndarray:
            if np.min(X) < 0:
                raise ValueError("negative rows")
            return np.minimum(super().predict(X), TARGETS.max())

    with pytest.raises(FidelityError, match="far outside the example"):
        trace_as_linear(Positive().fit(ROWS, TARGETS))
    assert trace(PoissonRegressor().fit(ROWS, np.abs(TARGETS)), ROWS).output_shape == (1,)


def trace_as_linear(estimator: Any) -> None:
    """Exported as what its parent is: the export knows nothing of the limits it has."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_regressor_output_shapes
    from skl2onnx.operator_converters.linear_regressor import convert_sklearn_linear_regressor

    update_registered_converter(
        type(estimator), "Positive", calculate_linear_regressor_output_shapes, convert_sklearn_linear_regressor
    )
    trace(estimator, ROWS)
