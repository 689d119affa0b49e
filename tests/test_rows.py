"""Rows are read cell by cell: everything that is no finite number in the right column is named and refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.models import ModelSignature, infer_signature
from mlflow.types.schema import ColSpec, Schema, TensorSpec

from mlflow_lipschitz.errors import InvalidData
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.row_categories import Category, Layout
from mlflow_lipschitz.rows import AuditedRows, load_rows, sample

COLUMNS = ModelSignature(inputs=Schema([ColSpec("double", "age"), ColSpec("double", "income")]))
TENSOR = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 2))]))


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {"income": [10.0, 20.0, 30.0, 40.0], "age": [1, 2, 3, 4], "label": ["a", "b", "a", "a"]}, index=[5, 6, 7, 8]
    )


def policy(inputs: str) -> AuditPolicy:
    return load_policy(
        "apiVersion: mlflow-lipschitz/v1\nkind: AuditPolicy\nmetadata: {name: p, version: 1}\nmodel: {output: 0}\n"
        f"inputs: {inputs}\nperturbation: {{norm: linf, radius: 0.1}}\n"
        "checks:\n  - {id: lip, type: lipschitz_at_most, max: 1.0}\n"
    )


def test_columns_are_taken_by_name_in_the_order_of_the_signature() -> None:
    rows = load_rows(frame(), COLUMNS)
    assert rows.feature_names == ("age", "income")
    assert rows.points.tolist() == [[1, 10], [2, 20], [3, 30], [4, 40]]
    assert rows.points.dtype == np.float64
    assert rows.point_ids.tolist() == ["5", "6", "7", "8"]
    np.testing.assert_array_equal(rows.scale, rows.points.std(axis=0))


def test_without_column_names_the_data_names_the_features() -> None:
    rows = load_rows(frame(), TENSOR, policy("{points: {stratify: label}}"))
    assert rows.feature_names == ("income", "age")
    assert rows.labels is not None
    assert rows.labels.tolist() == ["a", "b", "a", "a"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "npz"])
def test_every_file_format_gives_the_same_points(suffix: str, tmp_path: Path) -> None:
    table = frame().drop(columns="label")[["age", "income"]].astype(float).reset_index(drop=True)
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "parquet":
        table.to_parquet(path)
    elif suffix == "json":
        table.to_json(path, orient="records")
    else:
        np.savez(path, points=table.to_numpy())
    assert load_rows(path, COLUMNS).points.tolist() == table.to_numpy().tolist()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.nan, "nan"),
        (np.inf, "inf"),
        (-np.inf, "-inf"),
        ("12", "'12' is not a number"),
        (None, "None is not a number"),
        ([1], "not a"),
    ],
)
def test_a_cell_that_is_no_finite_number_is_named(value: object, shown: str) -> None:
    table = frame()
    table["income"] = table["income"].astype(object)
    table.at[7, "income"] = value
    with pytest.raises(InvalidData, match=r"row 7, column 'income'") as refusal:
        load_rows(table, COLUMNS)
    assert shown in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_missing_columns_are_named() -> None:
    with pytest.raises(InvalidData, match=r"missing column.*'age'.*the data has 'income', 'label'"):
        load_rows(frame().drop(columns="age"), COLUMNS)


def test_a_wrong_number_of_columns_is_refused() -> None:
    with pytest.raises(InvalidData, match="3 feature column"):
        load_rows(frame(), TENSOR)
    with pytest.raises(InvalidData, match="shape"):
        load_rows(np.zeros((4, 3)), TENSOR)
    with pytest.raises(InvalidData, match="names 2"):
        load_rows(np.zeros((4, 3)), COLUMNS)


def test_two_columns_of_one_name_are_refused() -> None:
    table = pd.DataFrame(np.zeros((2, 3)), columns=["age", "income", "age"])
    with pytest.raises(InvalidData, match="two columns are named 'age'"):
        load_rows(table, COLUMNS)


@pytest.mark.parametrize("data", [frame().iloc[:0], np.zeros((0, 2))])
def test_empty_data_is_refused(data: pd.DataFrame | np.ndarray) -> None:
    with pytest.raises(InvalidData, match="no rows"):
        load_rows(data, COLUMNS)


def test_a_row_outside_the_domain_is_named() -> None:
    with pytest.raises(InvalidData, match=r"row 8, column 'income': 40 is outside the domain \[0, 35\]"):
        load_rows(frame(), COLUMNS, policy("{domain: {income: [0, 35]}}"))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.txt", "1"), ("b.csv", ""), ("c.parquet", "x"), ("d.json", "{"), ("e.npz", "x")):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(InvalidData, match=name):
            load_rows(path, COLUMNS)
    with pytest.raises(InvalidData, match="no such data file"):
        load_rows(tmp_path / "absent.csv", COLUMNS)
    np.savez(tmp_path / "f.npz", other=np.zeros(2))
    with pytest.raises(InvalidData, match="no array 'points'"):
        load_rows(tmp_path / "f.npz", COLUMNS)


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", points=np.array([[object()]], dtype=object))
    with pytest.raises(InvalidData, match="cannot be read"):
        load_rows(tmp_path / "rows.npz", None)


def test_an_absent_label_column_is_refused() -> None:
    with pytest.raises(InvalidData, match="stratifies by column 'segment'"):
        load_rows(frame(), COLUMNS, policy("{points: {stratify: segment}}"))


def test_tensor_entries_are_named_by_position() -> None:
    rows = load_rows(np.zeros((1, 2, 2)), None)
    assert rows.feature_names == ("x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]")
    assert load_rows(np.zeros((1, 2)), None).feature_names == ("x0", "x1")


def test_the_served_model_gets_what_its_signature_asks_for() -> None:
    rows = load_rows(frame(), COLUMNS)
    served = rows.served_input(rows.points)
    assert isinstance(served, pd.DataFrame)
    assert list(served.columns) == ["age", "income"]
    tensor = load_rows(frame()[["income", "age"]], TENSOR)
    assert tensor.served_input(tensor.points) is tensor.points


@pytest.mark.parametrize("signature", [None, COLUMNS, TENSOR])
def test_the_names_of_the_fit_order_the_columns(signature: ModelSignature | None) -> None:
    data = frame()[["age", "income"]]
    rows = load_rows(data, signature, None, ("income", "age"))
    assert rows.feature_names == ("income", "age")
    np.testing.assert_array_equal(rows.points, data[["income", "age"]])
    served = rows.served_input(rows.points)
    assert isinstance(served, pd.DataFrame)
    # MLflow hands the columns over in the order of the signature, and each keeps its own values.
    assert list(served.columns) == (["age", "income"] if signature is COLUMNS else ["income", "age"])
    np.testing.assert_array_equal(served["income"], data["income"])


def test_an_array_is_in_the_order_of_the_signature() -> None:
    array = np.array([[1.0, 10.0], [2.0, 20.0]])
    assert load_rows(array, COLUMNS, None, ("income", "age")).points.tolist() == [[10, 1], [20, 2]]
    assert load_rows(array, None, None, ("income", "age")).points.tolist() == array.tolist()


def test_a_signature_of_other_columns_than_the_fit_is_refused() -> None:
    with pytest.raises(InvalidData, match=r"signature names the columns 'age', 'income'.*fitted on 'age', 'bmi'"):
        load_rows(frame(), COLUMNS, None, ("age", "bmi"))


def test_the_rows_say_where_the_order_of_their_columns_comes_from() -> None:
    assert "fitted" in load_rows(frame(), COLUMNS, None, ("income", "age")).order
    assert "signature" in load_rows(frame(), COLUMNS).order
    assert "none was checked" in load_rows(frame()[["age", "income"]], None).order


@pytest.mark.parametrize("missing", [np.nan, None, pd.NaT])
def test_a_row_without_a_label_is_refused(missing: object) -> None:
    """It is in no group of a stratified draw, so it would be left out without a word."""
    table = frame()
    table["label"] = np.array(["a", missing, "a", "b"], dtype=object)
    with pytest.raises(InvalidData, match="row 6 has no label"):
        load_rows(table, COLUMNS, policy("{points: {stratify: label, sample: 3}}"))


def test_missing_labels_beside_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", points=np.zeros((3, 2)), labels=np.array([0.0, np.nan, 1.0]))
    with pytest.raises(InvalidData, match="row 1 has no label"):
        load_rows(tmp_path / "rows.npz", COLUMNS)
    np.savez(tmp_path / "rows.npz", points=np.zeros((3, 2)), labels=np.zeros((3, 1)))
    with pytest.raises(InvalidData, match=r"labels of shape \(3, 1\)"):
        load_rows(tmp_path / "rows.npz", COLUMNS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("age,income\n1,10,5\n2,20,6\n", "line 2: 3 cells, and the header has 2"),
        ("age,income\n1,10\n2,20,6\n", "line 3: 3 cells, and the header has 2"),
        ("age,income,note\n1,10,x\n2,20\n", "line 3: 2 cells, and the header has 3"),
        ("age,income,age\n1,10,7\n", "two columns are named 'age'"),
    ],
)
def test_a_csv_that_would_have_to_be_repaired_is_refused(text: str, shown: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InvalidData, match=shown):
        load_rows(path, COLUMNS)


def test_a_csv_as_others_write_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('\ufeff"age","income","note"\r\n1,10,"a,\nb"\r\n\r\n2,20,\r\n', encoding="utf-8", newline="")
    assert load_rows(path, COLUMNS).points.tolist() == [[1, 10], [2, 20]]
    frame().to_csv(path)  # with the index as a column without a name
    assert load_rows(path, COLUMNS).points.tolist() == [[1, 10], [2, 20], [3, 30], [4, 40]]


@pytest.mark.parametrize("kind", [complex, object])
def test_complex_numbers_are_refused(kind: type) -> None:
    table = frame()
    table["age"] = np.array([1, 2 + 3j, 3, 4]).astype(kind)
    with pytest.raises(InvalidData, match="column 'age'"):
        load_rows(table, COLUMNS)


def test_a_row_id_is_one_line() -> None:
    table = frame()
    table.index = ["a\n::stop-commands::x", "b\x1b[2J", "c\u202e", "::d"]
    assert load_rows(table, COLUMNS).point_ids.tolist() == [
        "a\\n::stop-commands::x",
        "b\\x1b[2J",
        "c\\u202e",
        "\\::d",
    ]


def labeled(counts: list[int]) -> AuditedRows:
    labels = np.repeat(np.arange(len(counts)), counts)
    points = np.arange(float(len(labels)))[:, None]
    ids = np.array([str(i) for i in range(len(labels))])
    return AuditedRows(points, ("x",), ids, points.std(axis=0), labels)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 120), st.integers(0, 9))
def test_a_stratified_sample_keeps_every_label_and_its_share(counts: list[int], size: int, seed: int) -> None:
    rows = labeled(counts)
    drawn = sample(rows, size, seed)
    assert len(drawn) == min(size, len(rows))
    assert len(set(drawn.point_ids.tolist())) == len(drawn)
    assert drawn.points[:, 0].tolist() == sorted(drawn.points[:, 0].tolist())
    assert drawn.labels is not None
    found = Counter(drawn.labels.tolist())
    for label, count in enumerate(counts):
        share = len(drawn) * count / len(rows)
        assert found[label] <= count
        if size >= len(counts):
            assert found[label] >= 1
            # The reserved row per label moves a share by at most the number of labels.
            assert abs(found[label] - share) <= len(counts) + 1


def test_a_sample_depends_on_its_seed_only() -> None:
    rows = labeled([50])
    assert sample(rows, 10, 3).point_ids.tolist() == sample(rows, 10, 3).point_ids.tolist()
    assert sample(rows, 10, 3).point_ids.tolist() != sample(rows, 10, 4).point_ids.tolist()
    assert sample(rows, 10, 3).scale == rows.scale


LAYOUT = Layout(categories=(Category(0, "text", ("east", "west"), open=False), Category(2, "whole")), unread=(3,))


def mixed() -> pd.DataFrame:
    return pd.DataFrame(
        {"region": ["east", "west", "east"], "age": [20.0, 30.0, 40.0], "grade": [1, 2, 9], "note": ["a", "b", "c"]},
        index=[10, 11, 12],
    )


def test_columns_that_a_model_looks_up_are_no_points_yet() -> None:
    rows = load_rows(mixed(), None, None, ("region", "age", "grade", "note"), LAYOUT)
    assert rows.feature_names == ("age", "note") and rows.fixed_names == ("note",)
    assert rows.points.tolist() == [[20, 0], [30, 0], [40, 0]]
    assert rows.looked_up == ("region", "grade")
    assert isinstance(rows.raw, pd.DataFrame) and rows.raw["note"].tolist() == ["a", "b", "c"]
    assert rows.take(np.array([2])).raw["grade"].tolist() == [9]


def test_a_number_that_nothing_reads_stays_a_number() -> None:
    rows = load_rows(mixed().assign(note=[7, 8, 9]), None, None, ("region", "age", "grade", "note"), LAYOUT)
    assert rows.points[:, 1].tolist() == [7, 8, 9] and rows.fixed_names == ()


def test_the_served_rows_are_in_the_order_of_the_signature() -> None:
    signature = infer_signature(mixed()[["note", "grade", "age", "region"]])
    rows = load_rows(mixed(), signature, None, ("region", "age", "grade", "note"), LAYOUT)
    assert list(rows.served_rows.columns) == ["note", "grade", "age", "region"]


def test_an_array_of_several_kinds() -> None:
    rows = load_rows(mixed().to_numpy(), None, None, (), LAYOUT)
    assert rows.feature_names == ("x1", "x3") and rows.looked_up == ("x0", "x2")
    with pytest.raises(InvalidData, match="the rows have 3 columns, the model takes 4"):
        load_rows(mixed().to_numpy()[:, :3], None, None, ("region", "age", "grade", "note"), LAYOUT)


@pytest.mark.parametrize(
    ("column", "cell", "problem"),
    [
        (
            "region",
            "south",
            "row 11, column 'region': 'south' is none of the categories the model was fitted on: 'east', 'west'",
        ),
        ("region", None, "row 11, column 'region': the category is missing"),
        ("region", pd.NA, "row 11, column 'region': the category is missing"),
        ("region", float("nan"), "row 11, column 'region': the category is missing"),
        ("region", 1, "row 11, column 'region': 1 is not text"),
        ("grade", 1.5, "row 11, column 'grade': 1.5 is not a whole number"),
        ("grade", 10**30, "row 11, column 'grade': 1000000000000000000000000000000 is not a whole number"),
        ("grade", "1", "row 11, column 'grade': '1' is not a whole number"),
        ("grade", float("nan"), "row 11, column 'grade': the category is missing"),
        ("age", "old", "row 11, column 'age': 'old' is not a number"),
    ],
)
def test_a_cell_that_a_lookup_would_refuse_is_named(column: str, cell: object, problem: str) -> None:
    frame = mixed().astype(object)
    frame.loc[11, column] = cell
    with pytest.raises(InvalidData, match=re.escape(problem)):
        load_rows(frame, None, None, ("region", "age", "grade", "note"), LAYOUT)


@pytest.mark.parametrize("cells", [[1, 2, 3], [1.0, 2.0, 3.0], [True, False, True], np.array([1, 2, 3], np.int8)])
def test_whole_numbers_of_any_type(cells: object) -> None:
    load_rows(mixed().assign(grade=cells), None, None, ("region", "age", "grade", "note"), LAYOUT)


def test_text_columns_of_a_file_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("region,age,grade,note\nNA,1,1,x\n007,2,2,y\n")
    layout = Layout(categories=(Category(0, "text"), Category(2, "whole")), unread=(3,))
    rows = load_rows(tmp_path / "rows.csv", None, None, ("region", "age", "grade", "note"), layout)
    assert rows.raw["region"].tolist() == ["NA", "007"]
