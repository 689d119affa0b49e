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
