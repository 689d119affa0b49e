"""Crafted skops archives: a type outside the list is refused by name, before any loading."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.errors import UntrustedModel
from mlflow_lipschitz.safe_loading.skops import load_skops


def _skops(path: Path, estimator: object) -> Path:
    import skops.io

    skops.io.dump(estimator, path)
    return path


def test_an_estimator_comes_back(tmp_path: Path) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    points = np.random.default_rng(0).normal(size=(40, 3))
    scaling = ColumnTransformer([("a", StandardScaler(), [0, 1]), ("b", MinMaxScaler(), [2])])
    estimator = make_pipeline(scaling, LogisticRegression()).fit(points, points[:, 0] > 0)
    loaded = load_skops(_skops(tmp_path / "m.skops", estimator))
    assert loaded.predict_proba(points) == pytest.approx(estimator.predict_proba(points))


def test_column_transformers_that_pass_columns_on_and_choose_them_by_type(tmp_path: Path) -> None:
    """For passed-on columns scikit-learn stores a FunctionTransformer without a function."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer, make_column_selector
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pd.DataFrame({"region": ["east", "west"] * 10, "age": np.arange(20.0), "debt": np.arange(20.0) ** 2})
    parts = [
        ("text", OneHotEncoder(), make_column_selector(dtype_exclude=np.number)),
        ("age", StandardScaler(), make_column_selector(pattern="^a", dtype_include=[float, object])),
    ]
    estimator = make_pipeline(ColumnTransformer(parts, remainder="passthrough"), Ridge()).fit(frame, frame["age"])
    loaded = load_skops(_skops(tmp_path / "m.skops", estimator))
    assert loaded.predict(frame) == pytest.approx(estimator.predict(frame))


def test_a_function_in_a_transformer_is_named(tmp_path: Path) -> None:
    from sklearn.preprocessing import FunctionTransformer

    with pytest.raises(UntrustedModel, match=r"numpy\.log1p \(FunctionNode\)"):
        load_skops(_skops(tmp_path / "m.skops", FunctionTransformer(np.log1p).fit([[1.0]])))


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"__loader__": "ObjectNode", "__module__": "subprocess", "__class__": "Popen"}, "subprocess.Popen"),
        ({"__loader__": "FunctionNode", "__module__": "os", "__class__": "system"}, "os.system"),
        ({"__loader__": "MethodNode", "__module__": "sklearn.linear_model", "__class__": "Ridge"}, "MethodNode"),
        ({"__loader__": "TypeNode", "__module__": "subprocess", "__class__": "Popen"}, "subprocess.Popen"),
        ({"__loader__": "DictNode", "__module__": "os", "__class__": "system"}, "os.system"),
    ],
)
def test_a_node_outside_the_list_is_named(tmp_path: Path, node: dict, named: str) -> None:
    from sklearn.linear_model import Ridge

    source = _skops(tmp_path / "m.skops", Ridge().fit([[0.0], [1.0]], [0.0, 1.0]))
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(records["schema.json"])
    schema["content"]["content"]["alpha"] = {**node, "__id__": 1, "content": None}
    records["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(tmp_path / "crafted.skops", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(UntrustedModel, match=named):
        load_skops(tmp_path / "crafted.skops")


@pytest.mark.parametrize("schema", ["[" * 100_000, "{", ""], ids=["deep", "broken", "empty"])
def test_an_unreadable_schema_is_refused(tmp_path: Path, schema: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.skops", "w") as archive:
        archive.writestr("schema.json", schema)
    with pytest.raises(UntrustedModel, match="not a skops file"):
        load_skops(tmp_path / "m.skops")
