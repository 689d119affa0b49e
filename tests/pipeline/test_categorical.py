"""Models of mixed columns, registered and audited: sensitivities per year and per dollar, categories that do not move."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry
from mlflow.tracking import MlflowClient
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC

from mlflow_lipschitz.audit import AuditResult, audit
from mlflow_lipschitz.cli.__main__ import run
from mlflow_lipschitz.errors import InvalidData, PolicyError, UnsupportedOperator
from mlflow_lipschitz.mlflow_plugin.evaluator import LipschitzEvaluator
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry import tags
from tests.registry.conftest import sqlite_store, store  # noqa: F401
from tests.registry.stores import fresh_name

pytestmark = pytest.mark.usefixtures("store")

POLICY = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: credit, version: 1}
model: {output: "OUTPUT"}
inputs:
  points: {sample: 20, seed: 3}
  domain: {age: [18, 100], income: [0, 250000]}
  immutable: IMMUTABLE
perturbation: {norm: linf, radius: {age: 2, income: 1000}}
checks:
  - {id: age, type: sensitivity_at_most, feature: age, max: 1000}
  - {id: income, type: monotone, feature: income, direction: increasing, severity: info}
"""


def policy(immutable: str = "[region, grade]", output: str = "output[0]") -> str:
    return POLICY.replace("IMMUTABLE", immutable).replace("OUTPUT", output)


def applicants(count: int = 200, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "region": random.choice(["north", "east", "west"], count),
            "age": random.uniform(20, 80, count),
            "grade": random.choice([1, 2, 5], count),
            "income": random.uniform(2e4, 2e5, count),
        }
    )


def score(frame: pd.DataFrame) -> np.ndarray:
    place = frame["region"].map({"north": 0.3, "east": -0.4, "west": 0.0}).to_numpy()
    values = frame["income"] / 5e4 - frame["age"] / 40 + place + frame["grade"] / 5
    return np.asarray(values)


def columns() -> ColumnTransformer:
    return ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["income", "age"]),
            ("text", OneHotEncoder(), ["region"]),
            ("codes", OneHotEncoder(handle_unknown="ignore"), ["grade"]),
        ]
    )


@cache
def logistic() -> Pipeline:
    frame = applicants()
    target = np.where(score(frame) > np.median(score(frame)), "good", "bad")
    return Pipeline([("columns", columns()), ("model", LogisticRegression(max_iter=1000))]).fit(frame, target)


@cache
def perceptron() -> Pipeline:
    network = MLPRegressor(hidden_layer_sizes=(12, 12), max_iter=300, random_state=0)
    return Pipeline([("columns", columns()), ("model", network)]).fit(applicants(), score(applicants()))


def registered(estimator: Any, frame: pd.DataFrame | None = None) -> str:
    """Log as MLflow logs scikit-learn, register, and return the version's URI."""
    frame, name = applicants() if frame is None else frame, fresh_name("credit")
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            estimator,
            name="model",
            registered_model_name=name,
            serialization_format="skops",
            signature=infer_signature(frame, estimator.predict(frame)),
            input_example=frame[:3],
            skops_trusted_types=["sklearn.neural_network._stochastic_optimizers.AdamOptimizer"],
            pip_requirements=["scikit-learn"],
        )
    return f"models:/{name}/1"


def units(estimator: Pipeline) -> dict[str, float]:
    scaler = estimator.named_steps["columns"].named_transformers_["numbers"]
    return dict(zip(["income", "age"], scaler.scale_, strict=True))


def column(result: AuditResult, name: str) -> np.ndarray:
    return np.asarray(result.table.columns[name])


def test_sensitivities_of_a_linear_model_are_its_coefficients_per_year_and_per_dollar() -> None:
    estimator = logistic()
    result = audit(registered(estimator), applicants(), policy(output="logit[1]"))
    assert result.verdict.status == "passed"
    coefficients = dict(zip(["income", "age"], estimator.named_steps["model"].coef_[0], strict=False))
    for name, unit in units(estimator).items():
        exact = abs(coefficients[name]) / unit
        np.testing.assert_allclose(column(result, f"sensitivity_upper:{name}"), exact, rtol=1e-12)
        np.testing.assert_allclose(column(result, f"sensitivity_lower:{name}"), exact, rtol=1e-12)
        assert (column(result, f"sensitivity_upper:{name}") >= exact * (1 - 1e-15)).all()
    per_radius = sum(
        abs(coefficients[name]) / unit * {"age": 2, "income": 1000}[name] for name, unit in units(estimator).items()
    )
    np.testing.assert_allclose(column(result, "lipschitz_upper"), per_radius, rtol=1e-12)


def test_categories_have_no_columns_of_bounds_and_stand_in_the_facts() -> None:
    result = audit(registered(logistic()), applicants(), policy(output="logit[1]"))
    assert result.rows.feature_names == (
        "age", "income", "region=east", "region=north", "region=west", "grade=1", "grade=2", "grade=5",
    )  # fmt: skip
    bounded = {name.partition(":")[2] for name in result.table.columns if name.startswith("sensitivity_upper:")}
    assert bounded == {"age", "income"}
    assert result.content.facts["looked up"].startswith("region, grade:")
    assert result.content.facts["does not move"] == "region, grade"
    report = (result.directory / "report.html").read_text(encoding="utf-8")
    assert "looked up" in report and "region, grade" in report
    assert "graph against served" in result.content.facts["graph against the model"]


def test_bounds_of_a_network_lie_above_its_slopes() -> None:
    estimator = perceptron()
    result = audit(registered(estimator), applicants(), policy())
    rows, random = result.rows, np.random.default_rng(0)
    asked = rows.served_rows
    assert isinstance(asked, pd.DataFrame)
    steepest = {name: np.zeros(len(rows)) for name in ("age", "income")}
    for _ in range(30):
        moved = asked.assign(
            age=np.clip(asked["age"] + random.uniform(-2, 2, len(asked)), 18, 100),
            income=np.clip(asked["income"] + random.uniform(-1000, 1000, len(asked)), 0, 250000),
        )
        for name, step in (("age", 1e-4), ("income", 1e-1)):
            up, down = (moved.assign(**{name: moved[name] + shift}) for shift in (step, -step))
            slope = np.abs(estimator.predict(up) - estimator.predict(down)) / (2 * step)
            steepest[name] = np.maximum(steepest[name], slope)
    for name, slopes in steepest.items():
        upper = column(result, f"sensitivity_upper:{name}")
        assert (upper >= slopes * (1 - 1e-5)).all()
        assert np.median(upper / slopes) < 1.5


def test_encodings_do_not_move_in_a_ball_either() -> None:
    estimator = logistic()
    result = audit(registered(estimator), applicants(), policy(output="logit[1]").replace("linf", "l2"))
    coefficients, unit = estimator.named_steps["model"].coef_[0], units(estimator)
    exact = np.hypot(coefficients[0] / unit["income"] * 1000, coefficients[1] / unit["age"] * 2)
    np.testing.assert_allclose(column(result, "lipschitz_upper"), exact, rtol=1e-9)


def test_a_kernel_machine_on_principal_components_beside_categories() -> None:
    numbers = Pipeline([("scale", StandardScaler()), ("rotate", PCA(2, whiten=True))])
    parts = ColumnTransformer([("numbers", numbers, ["income", "age"]), ("text", OneHotEncoder(), ["region"])])
    frame = applicants(80)[["region", "age", "income"]]
    target = score(applicants(80)) > np.median(score(applicants(80)))
    estimator = Pipeline([("columns", parts), ("model", SVC(C=5.0, gamma=0.5))]).fit(frame, target)
    text = policy("[region]", "logit[1]").replace("{age: 2, income: 1000}", "{age: 0.2, income: 100}")
    result = audit(registered(estimator, frame), frame, text.split("  - {id: income")[0])
    assert result.verdict.status == "passed"
    rows = result.rows.served_rows
    assert isinstance(rows, pd.DataFrame)
    for name, step in (("age", 1e-3), ("income", 1.0)):
        up, down = (rows.assign(**{name: rows[name] + shift}) for shift in (step, -step))
        slope = np.abs(estimator.decision_function(up) - estimator.decision_function(down)) / (2 * step)
        assert (column(result, f"sensitivity_upper:{name}") >= slope * (1 - 1e-6)).all()
        assert np.median(column(result, f"sensitivity_upper:{name}") / slope) < 1.3


def test_a_margin_and_its_radius_in_the_units_of_the_policy() -> None:
    estimator = logistic()
    checks = policy(output="margin").split("checks:")[0] + "checks:\n  - {id: r, type: radius_at_least, min: 1.0e-6}\n"
    result = audit(registered(estimator), applicants(), checks)
    scores = np.abs(estimator.decision_function(result.rows.served_rows))
    unit, coefficients = units(estimator), estimator.named_steps["model"].coef_[0]
    per_radius = abs(coefficients[0]) / unit["income"] * 1000 + abs(coefficients[1]) / unit["age"] * 2
    radius = column(result, "radius")
    assert (radius > 0).all()
    inside = scores / per_radius < 0.5  # farther away the domain or the largest radius asked for ends it
    np.testing.assert_allclose(radius[inside], (scores / per_radius)[inside], rtol=1e-2)


def test_one_radius_in_standard_deviations() -> None:
    estimator = logistic()
    text = policy(output="logit[1]").replace("radius: {age: 2, income: 1000}}", "radius: 0.1, scale: standardized}")
    result = audit(registered(estimator), applicants(), text)
    spread = applicants()[["age", "income"]].std(ddof=0)
    np.testing.assert_allclose(result.rows.scale[:2], spread)
    assert (result.rows.scale[2:] == 0).all()
    coefficients = np.abs(estimator.named_steps["model"].coef_[0, :2])
    expected = sum(
        c / units(estimator)[name] * spread[name] for c, name in zip(coefficients, units(estimator), strict=True)
    )
    np.testing.assert_allclose(column(result, "lipschitz_upper"), expected, rtol=1e-9)


def test_the_policy_has_to_say_that_categories_do_not_move() -> None:
    uri = registered(logistic())
    with pytest.raises(PolicyError) as refused:
        audit(uri, applicants(), policy("[region]", "logit[1]"))
    (issue,) = refused.value.errors
    assert issue.line == 8 and "'grade' is looked up" in issue.message
    assert issue.message.endswith("write immutable: [region, grade]")
    with pytest.raises(PolicyError, match=r"'region', 'grade' are looked up.*write immutable: \[region, grade\]"):
        audit(uri, applicants(), policy("[]", "logit[1]"))
    passed = audit(uri, applicants(), policy('["region*", "grade*"]', "logit[1]"))
    assert passed.verdict.status == "passed"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("feature: age", "feature: region", "'region' does not move, so the output has no derivative"),
        ("feature: age", '"feature": "grade=1"', "'grade=1' does not move"),
        ("domain: {age", "domain: {grade: [1, 5], age", "'grade' is looked up and does not move"),
        ("radius: {age: 2", "radius: {grade: 1, age: 2", "'grade' is immutable, its radius can only be 0"),
        ("[region, grade]", "[region, grade, age, income]", "nothing would move"),
        ("[region, grade]", "[region, grade, county]", "'county' matches no feature"),
    ],
)
def test_a_policy_that_asks_a_category_to_move_is_refused(old: str, new: str, message: str) -> None:
    text = policy(output="logit[1]").replace(old, new)
    with pytest.raises(PolicyError, match=message):
        audit(registered(logistic()), applicants(), text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"region": "south"}, r"row 4, column 'region': 'south' is none of the categories .* 'east', 'north', 'west'"),
        ({"region": 7}, r"row 4, column 'region': 7 is not text"),
        ({"region": None}, r"row 4, column 'region': the category is missing"),
        ({"grade": 2.5}, r"row 4, column 'grade': 2.5 is not a whole number"),
        ({"grade": "2"}, r"row 4, column 'grade': '2' is not a whole number"),
        ({"age": "old"}, r"row 4, column 'age': 'old' is not a number"),
        ({"age": np.nan}, r"row 4, column 'age': nan is not a finite number"),
        ({"age": 101.0}, r"row 4, column 'age': 101 is outside the domain"),
    ],
)
def test_a_bad_cell_is_named(changed: dict[str, Any], message: str) -> None:
    frame = applicants(10).astype(object)
    for name, value in changed.items():
        frame.loc[4, name] = value
    with pytest.raises(InvalidData, match=message):
        audit(registered(logistic()), frame, policy(output="logit[1]"))


def test_a_category_that_the_encoder_takes_though_it_was_not_fitted_on_it() -> None:
    frame = applicants(10).assign(grade=9)
    result = audit(registered(logistic()), frame, policy(output="logit[1]"))
    assert (result.rows.points[:, -3:] == 0).all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_rows_from_files(suffix: str, tmp_path: Path) -> None:
    path, frame = tmp_path / f"rows{suffix}", applicants(30)
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records")
    result = audit(registered(logistic()), path, policy(output="logit[1]"))
    expected = audit(registered(logistic()), frame, policy(output="logit[1]"))
    np.testing.assert_allclose(result.rows.points, expected.rows.points)


def test_text_in_a_file_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    frame = applicants(60).assign(region=np.resize(["01", "NA", "1e3"], 60))
    estimator = Pipeline([("columns", columns()), ("model", LogisticRegression())])
    estimator.fit(frame, score(applicants(60)) > np.median(score(applicants(60))))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    result = audit(registered(estimator, frame), tmp_path / "rows.csv", policy(output="logit[1]"))
    assert result.rows.feature_names[2:5] == ("region=01", "region=1e3", "region=NA")
    (tmp_path / "rows.csv").write_text("region,age,grade,income\n01,30,1,50000\n,30,1,50000\n")
    with pytest.raises(InvalidData, match="row 1, column 'region': the category is missing"):
        audit(registered(estimator, frame), tmp_path / "rows.csv", policy(output="logit[1]"))


def test_the_columns_may_come_in_any_order_and_with_others(tmp_path: Path) -> None:
    uri, frame = registered(logistic()), applicants()
    expected = audit(uri, frame, policy(output="logit[1]"))
    shuffled = frame.assign(extra="text")[["grade", "extra", "income", "region", "age"]]
    np.testing.assert_array_equal(audit(uri, shuffled, policy(output="logit[1]")).rows.points, expected.rows.points)


def test_a_text_column_that_nothing_reads() -> None:
    frame = applicants().assign(name="someone")
    estimator = Pipeline([("columns", columns()), ("model", LogisticRegression())])
    estimator.fit(frame, score(frame) > np.median(score(frame)))
    result = audit(registered(estimator, frame), frame, policy("[region, grade, name]", "logit[1]"))
    assert result.verdict.status == "passed"
    numbers = Pipeline(
        [("columns", ColumnTransformer([("n", StandardScaler(), ["age", "income"])])), ("m", LogisticRegression())]
    )
    numbers.fit(frame[["age", "name", "income"]], score(frame) > np.median(score(frame)))
    result = audit(registered(numbers, frame[["age", "name", "income"]]), frame, policy("[name]", "logit[1]"))
    assert result.rows.feature_names == ("age", "name", "income") and result.rows.fixed_names == ("name",)


def test_an_ordinal_encoding_does_not_move_either() -> None:
    frame = applicants()
    parts = [("codes", OrdinalEncoder(), ["region"]), ("numbers", StandardScaler(), ["age", "income"])]
    estimator = Pipeline([("columns", ColumnTransformer(parts)), ("model", LogisticRegression())])
    estimator.fit(frame[["region", "age", "income"]], score(frame) > np.median(score(frame)))
    result = audit(registered(estimator, frame[["region", "age", "income"]]), frame, policy("[region]", "logit[1]"))
    assert result.rows.feature_names == ("age", "income", "region")
    assert result.rows.fixed_names == ("region",)
    assert sorted(set(result.rows.points[:, 2].tolist())) == [0.0, 1.0, 2.0]


def test_a_model_that_looks_up_everything_cannot_be_audited() -> None:
    frame = applicants()[["region", "grade"]]
    estimator = Pipeline([("encoder", OneHotEncoder()), ("model", LogisticRegression())])
    estimator.fit(frame, score(applicants()) > np.median(score(applicants())))
    with pytest.raises(UnsupportedOperator, match="do not move"):
        audit(registered(estimator, frame), frame, policy(output="logit[1]"))


def test_the_evaluator_goes_the_same_way(tmp_path: Path) -> None:
    if not _model_evaluation_registry.is_registered("lipschitz"):
        _model_evaluation_registry.register("lipschitz", LipschitzEvaluator)
    path, uri = tmp_path / "policy.yaml", registered(perceptron())
    path.write_text(policy())
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            uri,
            data=applicants(40),
            model_type="lipschitz",
            evaluators="lipschitz",
            evaluator_config={"policy": str(path)},
        )
    assert result.metrics["lipschitz/certified_fraction"] == 1.0
    name = uri.split("/")[1]
    assert MlflowClient().get_model_version(name, "1").tags[tags.VERDICT] == "passed"


def test_a_proposed_policy_is_valid_for_the_model_it_was_proposed_for(capsys: pytest.CaptureFixture[str]) -> None:
    uri = registered(logistic())
    assert run(["policy", "init", uri]) == 0
    proposed = capsys.readouterr().out
    assert load_policy(proposed).inputs.immutable == ("region", "grade")
    assert audit(uri, applicants()[:3], proposed).rows.feature_names[:2] == ("age", "income")


def test_the_table_of_nodes_shows_lookups_and_what_is_certified(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["support", registered(logistic())]) == 0
    shown = capsys.readouterr().out
    assert "OneHotEncoder" in shown and "MatMul" in shown and "0 unsupported" in shown
