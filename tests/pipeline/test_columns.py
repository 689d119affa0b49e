"""A column is the feature its name says, whatever the order of data, signature and fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_lipschitz.audit import AuditResult, audit
from mlflow_lipschitz.errors import FidelityError, InvalidData, UsageError
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from tests.registry.conftest import sqlite_store, store  # noqa: F401

pytestmark = pytest.mark.usefixtures("store")

POLICY = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: p, version: 1}
model: {output: 0}
perturbation: {norm: linf, radius: 0.1}
checks:
  - {id: income-down, type: monotone, feature: income, direction: decreasing}
  - {id: age-up, type: monotone, feature: age, direction: increasing}
"""


def people() -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).normal(size=(20, 2)), columns=["income", "age"])


def answers() -> pd.Series:
    """Falls with income, rises with age: columns that change places would turn every verdict around."""
    return 3 * people()["age"] - 2 * people()["income"]


def linear() -> Any:
    return LinearRegression().fit(people(), answers())


def by_name() -> Any:
    scaled = ColumnTransformer([("scaled", StandardScaler(), ["income", "age"])])
    return make_pipeline(scaled, LinearRegression()).fit(people(), answers())


def saved(estimator: Any, folder: Path, signed: list[str] | None) -> str:
    signature = None if signed is None else infer_signature(people()[signed], answers())
    mlflow.sklearn.save_model(
        estimator, str(folder), serialization_format="skops", pip_requirements=[], signature=signature
    )
    return str(folder)


def audited(estimator: Any, folder: Path, signed: list[str] | None, data: pd.DataFrame) -> AuditResult:
    return audit(saved(estimator, folder / "model", signed), data, POLICY, out=folder / "out")


@pytest.mark.parametrize("order", [["income", "age"], ["age", "income"]])
@pytest.mark.parametrize("make", [linear, by_name])
def test_without_a_signature_the_names_of_the_fit_decide(make: Any, order: list[str], tmp_path: Path) -> None:
    result = audited(make(), tmp_path, None, people()[order])
    assert result.verdict.status == "passed"
    assert "fitted" in result.content.facts["columns"]
    assert "propagation pass" in result.content.facts["effort"]


def test_a_signature_in_another_order_is_served_by_name(tmp_path: Path) -> None:
    data = people()[["age", "income"]]
    result = audited(by_name(), tmp_path, ["age", "income"], data)
    assert result.verdict.status == "passed"
    served = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(data)
    np.testing.assert_allclose(served, answers())  # which is what makes the audit's reading the right one


def test_a_signature_in_an_order_that_the_estimator_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FidelityError, match="same order"):
        audited(linear(), tmp_path, ["age", "income"], people())


def test_a_mistake_in_the_order_of_the_rows_shows_in_the_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second line of defense: were the columns mixed up on the way, the model asked by name would answer otherwise."""
    from mlflow_lipschitz.registry.pull import PulledModel

    monkeypatch.setattr(PulledModel, "fitted_names", property(lambda _: ("age", "income")))
    with pytest.raises(FidelityError):
        audited(by_name(), tmp_path, None, people())


def test_an_estimator_fitted_without_names_takes_the_order_of_the_signature(tmp_path: Path) -> None:
    nameless = LinearRegression().fit(people().to_numpy(), answers())
    result = audited(nameless, tmp_path, ["income", "age"], people()[["age", "income"]])
    assert result.verdict.status == "passed"
    assert "signature" in result.content.facts["columns"]


def test_where_nothing_names_the_columns_the_facts_say_so(tmp_path: Path) -> None:
    nameless = LinearRegression().fit(people().to_numpy(), answers())
    result = audited(nameless, tmp_path, None, people())
    assert "none was checked" in result.content.facts["columns"]
    assert "none was checked" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_signature_of_other_columns_is_refused(tmp_path: Path) -> None:
    signature = infer_signature(people().rename(columns={"age": "years"}), answers())
    mlflow.sklearn.save_model(
        linear(), str(tmp_path / "m"), serialization_format="skops", pip_requirements=[], signature=signature
    )
    with pytest.raises(InvalidData, match=r"'years'.*fitted on 'income', 'age'"):
        audit(str(tmp_path / "m"), people().assign(years=1.0), POLICY)


def test_an_example_frame_is_taken_by_name() -> None:
    """The exported model is checked on it: in another order the check would be of other rows, or of nothing."""
    assert to_onnx(by_name(), people()[["age", "income"]]).graph.input[0].name == "input"
    with pytest.raises(UsageError, match="no column 'age'"):
        to_onnx(by_name(), people()[["income"]])
