"""The bounds table refuses whatever could be mistaken for a proof, and survives files bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.gate.table import BASE_COLUMNS, BoundsTable
from mlflow_lipschitz.gate.table_io import strict_json
from tests.gate.tables import FEATURES, INF, any_columns, good_columns, table

NAN = float("nan")


def test_columns_are_the_contracts_in_order() -> None:
    assert list(table().frame.columns) == [
        "point_id", "status", "lipschitz_upper", "lipschitz_lower", "gap", "radius", "margin", "seconds", "method",
        "monotone:age", "sensitivity_upper:age", "sensitivity_lower:age",
        "monotone:income", "sensitivity_upper:income", "sensitivity_lower:income",
    ]  # fmt: skip
    assert len(table(3)) == 3


def test_order_of_the_given_columns_does_not_matter() -> None:
    shuffled = dict(reversed(good_columns().items()))
    assert list(BoundsTable.from_columns(FEATURES, shuffled).columns) == list(table().columns)


NUMERIC = [name for name in good_columns() if name not in ("point_id", "status", "method")]


@pytest.mark.parametrize("name", NUMERIC)
def test_nan_is_refused_in_every_numeric_column(name: str) -> None:
    columns = good_columns()
    columns[name] = [1.0, NAN, 0.0, 0.0] if name.startswith("monotone") else [columns[name][0], NAN, *columns[name][2:]]
    with pytest.raises(AuditError, match=f"row 1, column {name}: nan is not allowed"):
        BoundsTable.from_columns(FEATURES, columns)


@pytest.mark.parametrize("name", list(good_columns()))
def test_every_column_is_required(name: str) -> None:
    columns = good_columns()
    del columns[name]
    with pytest.raises(AuditError, match=f"missing columns .*{name}"):
        BoundsTable.from_columns(FEATURES, columns)


@pytest.mark.parametrize("name", list(good_columns()))
def test_columns_must_have_equal_length(name: str) -> None:
    columns = good_columns()
    columns[name] = columns[name][:3]
    with pytest.raises(AuditError, match="differ in length"):
        BoundsTable.from_columns(FEATURES, columns)


BAD_CELLS = [
    ("lipschitz_upper", -1.0, "not allowed"),
    ("lipschitz_upper", -INF, "not allowed"),
    ("lipschitz_upper", 1.0, "lipschitz_lower exceeds lipschitz_upper: a bound is wrong"),
    ("lipschitz_lower", INF, "not allowed"),
    ("lipschitz_upper", INF, "status certified without a finite lipschitz_upper"),
    ("gap", -0.1, "not allowed"),
    ("radius", -0.1, "not allowed"),
    ("radius", INF, "not allowed"),
    ("seconds", -1.0, "not allowed"),
    ("seconds", INF, "not allowed"),
    ("monotone:age", 2, "not allowed"),
    ("monotone:age", 0.5, "not allowed"),
    ("sensitivity_upper:age", 0.1, "sensitivity_lower:age exceeds sensitivity_upper:age: a bound is wrong"),
    ("sensitivity_lower:age", INF, "not allowed"),
    ("status", "safe", "status must be one of"),
    ("status", None, "no usable text"),
    ("status", 1, "no usable text"),
    ("status", "error", "status error, yet some bound is claimed"),
    ("point_id", "p0", "point_id appears twice"),
    ("point_id", "", "no usable text"),
    ("point_id", 1.0, "no usable text"),
    ("point_id", True, "no usable text"),
    ("method", "", "no usable text"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_refused_and_its_row_named(name: str, value: Any, message: str) -> None:
    columns = good_columns()
    columns[name][2] = value
    with pytest.raises(AuditError, match="row 2") as caught:
        BoundsTable.from_columns(FEATURES, columns)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        ["1", "2", "3", "4"],
        [1.0, None, 1.0, 1.0],
        [True, True, True, True],
        np.ones((4, 1)),
        np.ma.masked_array([1.0, 2.0, 3.0, 4.0], mask=[0, 1, 0, 0]),
        pd.array([1.0, pd.NA, 3.0, 4.0], dtype="Float64"),
        1.0,
    ],
    ids=["text", "none", "bool", "2d", "masked", "nullable", "scalar"],
)
def test_what_is_no_plain_number_column_is_refused(values: Any) -> None:
    with pytest.raises(AuditError, match="column gap"):
        BoundsTable.from_columns(FEATURES, good_columns() | {"gap": values})


def test_unknown_columns_and_repeated_features_are_refused() -> None:
    with pytest.raises(AuditError, match=r"unknown columns \['lipschitz'\]"):
        BoundsTable.from_columns(FEATURES, good_columns() | {"lipschitz": [1.0] * 4})
    with pytest.raises(AuditError, match="unique"):
        BoundsTable.from_columns(("age", "age"), good_columns())


def test_an_errored_row_claims_nothing() -> None:
    columns = good_columns(1) | {"status": ["error"], "lipschitz_upper": [INF], "radius": [0.0]}
    for feature in FEATURES:
        columns |= {f"monotone:{feature}": [0], f"sensitivity_upper:{feature}": [INF]}
    assert len(BoundsTable.from_columns(FEATURES, columns)) == 1
    for name, claim in [("radius", 0.1), ("monotone:age", 1), ("sensitivity_upper:income", 3.0)]:
        with pytest.raises(AuditError, match="some bound is claimed"):
            BoundsTable.from_columns(FEATURES, columns | {name: [claim]})


def test_bounds_may_cross_by_rounding_only() -> None:
    assert len(table(1, lipschitz_upper=[1.0], lipschitz_lower=[1.0 + 1e-10])) == 1
    with pytest.raises(AuditError, match="a bound is wrong"):
        table(1, lipschitz_upper=[1.0], lipschitz_lower=[1.0 + 1e-8])
    with pytest.raises(AuditError, match="a bound is wrong"):
        table(1, lipschitz_upper=[0.0], lipschitz_lower=[1e-11])


def test_counterexamples_may_not_contradict_proofs() -> None:
    assert len(table(1, radius=[0.2], radius_upper=[0.2])) == 1
    with pytest.raises(AuditError, match="radius exceeds radius_upper"):
        table(1, radius=[0.2], radius_upper=[0.1])
    assert len(table(1, monotone__age=[1], slope_min__age=[0.0])) == 1
    with pytest.raises(AuditError, match="monotone:age is contradicted"):
        table(1, monotone__age=[1], slope_min__age=[-0.1])
    with pytest.raises(AuditError, match="monotone:age is contradicted"):
        table(1, monotone__age=[-1], slope_max__age=[0.1])


def test_the_table_cannot_be_changed_from_outside() -> None:
    source = np.array([2.0, 2.1, 2.2, 2.3])
    checked = table(lipschitz_upper=source)
    source[0] = NAN
    frame = checked.frame
    frame["lipschitz_upper"] = NAN
    assert checked.columns["lipschitz_upper"][0] == 2.0
    with pytest.raises(ValueError, match="read-only"):
        checked.columns["lipschitz_upper"][0] = 0.0
    with pytest.raises(TypeError):
        checked.columns["lipschitz_upper"] = source  # type: ignore[index]


def test_metrics_have_the_contracts_names_and_values() -> None:
    columns = {"status": ["certified", "certified", "undecided", "violated"], "monotone__age": [1, 1, 1, 0],
               "monotone__income": [1, -1, -1, 0]}  # fmt: skip
    assert table(**columns).metrics() == {
        "lipschitz/upper_max": 2.3,
        "lipschitz/upper_mean": pytest.approx(2.15),
        "lipschitz/lower_max": 1.8,
        "lipschitz/gap_median": 0.5,
        "lipschitz/radius_median": pytest.approx(0.35),
        "lipschitz/radius_p05": 0.2,
        "lipschitz/certified_fraction": 0.5,
        "lipschitz/undecided_count": 1,
        "lipschitz/monotone_fraction/age": 0.75,
        "lipschitz/monotone_fraction/income": 0.5,
        "lipschitz/seconds_total": 1.0,
    }


def test_infinite_metrics_become_flags() -> None:
    metrics = table(status=["undecided"] * 4, lipschitz_upper=[1.5, INF, 2, 2], gap=[INF] * 4).metrics()
    assert {name for name in metrics if name.endswith("_unbounded")} == {
        "lipschitz/upper_max_unbounded", "lipschitz/upper_mean_unbounded", "lipschitz/gap_median_unbounded",
    }  # fmt: skip
    assert not {"lipschitz/upper_max", "lipschitz/upper_mean", "lipschitz/gap_median"} & set(metrics)


def test_radius_metrics_are_absent_where_no_margin_was_computed() -> None:
    metrics = table(margin=[-INF] * 4, radius=[0.0] * 4).metrics()
    assert not any("radius" in name for name in metrics)


def test_a_constant_output_is_monotone_both_ways() -> None:
    constant = table(monotone__age=[0] * 4, sensitivity_upper__age=[0.0] * 4, sensitivity_lower__age=[0.0] * 4)
    assert constant.proved_monotone("age", "increasing").all() and constant.proved_monotone("age", "decreasing").all()
    assert constant.metrics()["lipschitz/monotone_fraction/age"] == 1.0


def test_metric_names_are_accepted_by_mlflow() -> None:
    names = ("x[0]", "x:0:", "größe/m²", "..", "a b")
    columns = {name: good_columns(1)[name] for name in BASE_COLUMNS}
    for name in names:
        columns |= {f"monotone:{name}": [1], f"sensitivity_upper:{name}": [1.0], f"sensitivity_lower:{name}": [0.0]}
    metrics = BoundsTable.from_columns(names, columns).metrics()
    keys = [name for name in metrics if "monotone_fraction" in name]
    assert keys == [f"lipschitz/monotone_fraction/{n}" for n in ("x_0_", "x_0__2", "größe_m²", "_", "a b")]


def test_no_rows_prove_nothing() -> None:
    empty = BoundsTable.from_columns(FEATURES, {name: [] for name in good_columns()})
    assert len(empty) == 0
    metrics = empty.metrics()
    assert metrics["lipschitz/certified_fraction"] == 0 and metrics["lipschitz/upper_max_unbounded"] == 1
    assert metrics["lipschitz/monotone_fraction/age"] == 0


@pytest.mark.parametrize("suffix", ["parquet", "json"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(columns=any_columns(min_rows=0))
def test_files_hold_the_table_exactly(suffix: str, tmp_path: Path, columns: dict[str, Any]) -> None:
    original = BoundsTable.from_columns(FEATURES, columns)
    path = tmp_path / f"points.{suffix}"
    original.to_parquet(path) if suffix == "parquet" else original.to_json(path)
    again = BoundsTable.read(path)
    assert again.feature_names == original.feature_names
    for name, values in original.columns.items():
        assert again.columns[name].dtype == values.dtype
        assert again.columns[name].tobytes() == values.tobytes() or list(again.columns[name]) == list(values)


def test_optional_columns_survive_files(tmp_path: Path) -> None:
    original = table(radius_upper=[INF, 1.0, 2.0, 3.0], slope_min__age=[INF, 0.0, 0.1, 0.2])
    original.to_json(tmp_path / "points.json")
    assert list(BoundsTable.read(tmp_path / "points.json").columns) == list(original.columns)


def test_json_is_strict_and_says_infinity_in_words(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    table(1, status=["undecided"], lipschitz_upper=[INF], margin=[-INF]).to_json(path)
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    row = dict(zip(content["columns"], content["data"][0], strict=True))
    assert row["lipschitz_upper"] == "Infinity" and row["margin"] == "-Infinity" and row["monotone:age"] == 1


def _json_file(path: Path, change: Any) -> None:
    table(2).to_json(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["data"][1].pop(),
        lambda c: c["columns"].__setitem__(3, "lipschitz_upper"),
        lambda c: c["data"].append(c["data"][0]),
        lambda c: c["data"][0].__setitem__(2, float("nan")),
        lambda c: c["data"][0].__setitem__(2, "NaN"),
        lambda c: c["data"][0].__setitem__(2, None),
        lambda c: c.pop("data"),
    ],
    ids=["short row", "column twice", "row twice", "nan", "nan text", "null", "no data"],
)
def test_damaged_json_is_refused(tmp_path: Path, change: Any) -> None:
    _json_file(tmp_path / "points.json", change)
    with pytest.raises(AuditError):
        BoundsTable.read(tmp_path / "points.json")


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    columns = good_columns()
    columns["radius"][1] = None
    pq.write_table(pa.table(columns), tmp_path / "null.parquet")
    with pytest.raises(AuditError, match="column radius"):
        BoundsTable.read(tmp_path / "null.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "null.parquet").read_bytes()[:-10])
    for name in ("cut.parquet", "absent.parquet", "table.csv"):
        with pytest.raises(AuditError, match=name):
            BoundsTable.read(tmp_path / name)


def test_strict_json_replaces_what_json_has_not() -> None:
    value = {"a": np.float64(INF), 1: (NAN, np.int8(3)), "b": np.array([1.0, -INF]), "c": Path("x"), "d": None}
    assert strict_json(value) == {"a": "Infinity", "1": ["NaN", 3], "b": [1.0, "-Infinity"], "c": "x", "d": None}
