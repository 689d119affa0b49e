"""Columns in any order, nesting and notation: the exported model computes with the columns the estimator computes with."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline, make_union
from sklearn.preprocessing import (
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import InvalidData, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends import trace
from mlflow_lipschitz.frontends.discrete import divide
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.sklearn_columns import fitted_columns
from mlflow_lipschitz.frontends.to_onnx import to_onnx


def people(count: int = 80) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "region": random.choice(["north", "east", "west"], count),
            "age": random.uniform(18, 90, count),
            "grade": random.integers(1, 5, count),
            "income": random.uniform(1e4, 2e5, count),
            "debt": random.normal(0, 2e4, count),
        }
    )


def answers(frame: pd.DataFrame) -> np.ndarray:
    place = frame["region"].map({"north": 1.0, "east": -2.0, "west": 0.5}).to_numpy()
    return np.asarray(3 * frame["income"] / 1e5 - frame["age"] / 50 + place * frame["grade"] + frame["debt"] / 1e4)


def assert_exported(estimator: Any, table: Any) -> None:
    divided = divide(to_onnx(estimator, table), table)
    values = evaluate(lower(divided.body), divided.points(table)).numpy()
    np.testing.assert_allclose(values[:, 0], estimator.predict(table), rtol=1e-8, atol=1e-8)


NUMBERS = ["age", "income", "debt"]
ORDERS = {
    "all, another order": [("a", StandardScaler(), ["debt", "age", "income"])],
    "all, by position": [("a", StandardScaler(), [2, 0, 1])],
    "all, counted from the end": [("a", StandardScaler(), [-1, -3, -2])],
    "some, another order": [("a", StandardScaler(), ["debt", "age"]), ("b", "passthrough", ["income"])],
    "a slice of names": [("a", StandardScaler(), slice("age", "income")), ("b", MinMaxScaler(), slice("debt", None))],
    "a slice of positions": [("a", StandardScaler(), slice(1, None)), ("b", MinMaxScaler(), slice(0, 1))],
    "a mask": [("a", StandardScaler(), [True, False, True])],
    "one name": [("a", StandardScaler(), make_column_selector("^a")), ("b", "drop", ["debt"])],
    "passed on in another order": [("a", "passthrough", ["income", "debt", "age"])],
    "nested": [
        (
            "a",
            make_pipeline(ColumnTransformer([("x", StandardScaler(), ["debt", "age"])]), RobustScaler()),
            ["age", "debt"],
        )
    ],
    "nested behind a scaler": [
        ("a", make_pipeline(StandardScaler(), ColumnTransformer([("x", MinMaxScaler(), [1, 2, 0])])), NUMBERS[::-1])
    ],
}


@pytest.mark.parametrize("rest", ["drop", "passthrough"])
@pytest.mark.parametrize("name", ORDERS)
def test_numbers_in_any_order(name: str, rest: str) -> None:
    """skl2onnx hands over the whole tensor where a list names as many columns as there are: the weights would be mixed up."""
    frame = people()[NUMBERS]
    columns = ColumnTransformer(ORDERS[name], remainder=rest)
    estimator = make_pipeline(columns, LinearRegression()).fit(frame, answers(people()))
    assert_exported(estimator, frame)
    assert_exported(estimator, frame[::-1])


def test_numbers_in_any_order_without_names() -> None:
    frame = people()[NUMBERS].to_numpy()
    for first in ([2, 0], [2, 0, 1], [2, 0, 0], [1, 1, 0, 2]):
        columns = ColumnTransformer([("a", StandardScaler(), first), ("b", MinMaxScaler(), [1])])
        assert_exported(make_pipeline(columns, LinearRegression()).fit(frame, answers(people())), frame)


def encoder(**options: Any) -> OneHotEncoder:
    return OneHotEncoder(sparse_output=False, **options)


MIXED = {
    "one encoder, two columns": [("n", StandardScaler(), ["income", "age"]), ("c", encoder(), ["grade", "region"])],
    "two encoders": [("c", OneHotEncoder(), ["region"]), ("n", StandardScaler(), ["age"]), ("d", encoder(), ["grade"])],
    "first category dropped": [("c", encoder(drop="first"), ["region"]), ("n", StandardScaler(), ["age"])],
    "binary dropped": [("c", encoder(drop="if_binary"), ["region", "grade"]), ("n", MinMaxScaler(), ["debt"])],
    "ordinal": [("c", OrdinalEncoder(), ["region", "grade"]), ("n", StandardScaler(), NUMBERS)],
    "ordinal, then scaled": [
        ("c", make_pipeline(OrdinalEncoder(), StandardScaler()), ["region"]),
        ("n", StandardScaler(), NUMBERS[::-1]),
    ],
    "imputed, then encoded": [
        ("c", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["region"]),
        ("n", make_pipeline(SimpleImputer(), StandardScaler()), ["debt", "age"]),
    ],
    "nested over both kinds": [
        (
            "all",
            ColumnTransformer([("c", OneHotEncoder(), ["grade"]), ("n", StandardScaler(), ["income", "age"])]),
            ["income", "grade", "age"],
        )
    ],
    "nested over both kinds, then scaled": [
        ("n", MinMaxScaler(), ["debt", "age"]),
        (
            "all",
            make_pipeline(
                ColumnTransformer(
                    [("c", OneHotEncoder(), ["grade", "region"]), ("n", "passthrough", ["income", "age"])]
                ),
                StandardScaler(with_mean=False),
            ),
            ["region", "income", "grade", "age"],
        ),
    ],
    "unknown ones ignored": [("c", OneHotEncoder(handle_unknown="ignore"), ["region"]), ("n", "passthrough", ["age"])],
    "rare ones together": [
        ("c", OneHotEncoder(min_frequency=26), ["region", "grade"]),
        ("n", StandardScaler(), ["age"]),
    ],
    "unknown ones coded": [
        ("c", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["region"]),
        ("n", StandardScaler(), ["age"]),
    ],
    "weights": [("c", OneHotEncoder(), ["region"]), ("n", StandardScaler(), ["age"])],
}


@pytest.mark.parametrize("name", MIXED)
def test_categories_beside_numbers(name: str) -> None:
    frame = people()
    weights = {"c": 0.5, "n": 2.0} if name == "weights" else None
    columns = ColumnTransformer(MIXED[name], transformer_weights=weights)
    estimator = make_pipeline(columns, LinearRegression()).fit(frame, answers(frame))
    assert_exported(estimator, frame)


def test_categories_beside_columns_that_pass() -> None:
    frame = people()
    columns = ColumnTransformer([("c", OneHotEncoder(), ["region", "grade"])], remainder="passthrough")
    estimator = make_pipeline(columns, StandardScaler(), LinearRegression())
    assert_exported(estimator.fit(frame, answers(frame)), frame)


def test_a_union_of_column_transformers() -> None:
    frame = people()
    numbers = ColumnTransformer([("n", StandardScaler(), ["debt", "age"])])
    codes = ColumnTransformer([("c", OneHotEncoder(), ["region"])])
    assert_exported(make_pipeline(make_union(numbers, codes), LinearRegression()).fit(frame, answers(frame)), frame)
    weighted = FeatureUnion([("n", numbers), ("c", codes)], transformer_weights={"n": 3.0})
    assert_exported(make_pipeline(weighted, LinearRegression()).fit(frame, answers(frame)), frame)


@pytest.mark.parametrize(
    "codes",
    [
        [10, 20, 20, 30] * 20,
        [1.0, 2.0, 2.0, 4.0] * 20,
        [True, False, False, True] * 20,
        pd.Categorical(["a", "b", "b", "c"] * 20),
        np.array(["a", "b", "b", "c"] * 20, dtype=object),
        np.array([3, 1, 1, 2] * 20, dtype=object),
        np.array([3, 1, 1, 2] * 20, dtype=np.int8),
    ],
)
def test_categories_of_every_type(codes: Any) -> None:
    frame = pd.DataFrame({"code": codes, "age": people()["age"]})
    columns = ColumnTransformer([("c", OneHotEncoder(), ["code"]), ("n", StandardScaler(), ["age"])])
    estimator = make_pipeline(columns, LinearRegression()).fit(frame, answers(people()))
    assert_exported(estimator, frame)


def test_an_estimator_fitted_on_an_array_of_both_kinds() -> None:
    table = people().to_numpy()
    columns = ColumnTransformer([("c", OneHotEncoder(), [0, 2]), ("n", StandardScaler(), [3, 1])])
    estimator = make_pipeline(columns, LinearRegression()).fit(table, answers(people()))
    assert fitted_columns(estimator).labels == ("x0", "x1", "x2", "x3", "x4")
    assert_exported(estimator, table)


def test_the_model_is_checked_on_rows_of_its_own_where_no_example_is_given() -> None:
    frame = people()
    columns = ColumnTransformer([("c", OneHotEncoder(), ["region", "grade"]), ("n", StandardScaler(), ["age"])])
    estimator = make_pipeline(columns, LogisticRegression()).fit(frame, answers(frame) > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = to_onnx(estimator)
    assert [value.name for value in model.graph.input] == ["input", "category_0", "category_2"]
    with pytest.raises(UsageError, match="no column 'grade'"):
        to_onnx(estimator, frame.drop(columns="grade"))


def test_what_an_encoder_looks_up() -> None:
    frame = people()
    columns = ColumnTransformer(
        [
            ("c", OneHotEncoder(), ["region"]),
            ("d", OneHotEncoder(handle_unknown="ignore"), ["grade"]),
            ("n", StandardScaler(), ["age"]),
        ]
    )
    found = fitted_columns(make_pipeline(columns, LinearRegression()).fit(frame, answers(frame)))
    region, grade = found.categories
    assert (region.position, region.kind, region.values, region.open) == (0, "text", ("east", "north", "west"), False)
    assert (grade.position, grade.kind, grade.values, grade.open) == (2, "whole", (1, 2, 3, 4), True)
    assert found.numbers == (1, 3, 4)


def test_what_cannot_be_exported_is_refused_by_name() -> None:
    frame, target = people(), answers(people())
    refused = {
        "column 'grade' is both a number": [
            ("c", OneHotEncoder(), ["grade"]),
            ("n", StandardScaler(), ["grade", "age"]),
        ],
        "neither all text nor all whole": [("c", OneHotEncoder(), ["debt"]), ("n", StandardScaler(), ["age"])],
    }
    for reason, parts in refused.items():
        with pytest.raises(UnsupportedOperator, match=reason) as refusal:
            trace(make_pipeline(ColumnTransformer(parts), LinearRegression()).fit(frame, target), frame)
        assert refusal.value.remedy


def test_where_every_column_is_a_category_nothing_moves() -> None:
    frame = people()[["region", "grade"]]
    estimator = make_pipeline(OneHotEncoder(), LinearRegression()).fit(frame, answers(people()))
    with pytest.raises(UnsupportedOperator, match="do not move"):
        trace(estimator, frame)


def test_columns_that_nothing_reads_may_hold_anything() -> None:
    frame = people().assign(name="someone")
    columns = ColumnTransformer([("c", OneHotEncoder(), ["grade"]), ("n", StandardScaler(), ["age", "income"])])
    estimator = make_pipeline(columns, LinearRegression()).fit(frame, answers(frame))
    assert fitted_columns(estimator).unread == (0, 4, 5)
    assert_exported(estimator, frame)


def test_a_category_the_model_was_not_fitted_on() -> None:
    frame = people()
    columns = ColumnTransformer([("c", OneHotEncoder(), ["region", "grade"]), ("n", StandardScaler(), ["age"])])
    estimator = make_pipeline(columns, LinearRegression()).fit(frame, answers(frame))
    divided = divide(to_onnx(estimator, frame), frame)
    frame.loc[7, "region"] = "south"
    with pytest.raises(InvalidData, match=r"row 7, column 'region'.*'south'"):
        divided.points(frame)
