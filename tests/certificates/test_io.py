"""Certificates come back from disk as they were, and say in words what each array claims."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.certificates.io import read_arrays, read_certificates, write_arrays, write_certificates
from mlflow_lipschitz.certificates.schema import STATEMENTS, Certificates, Counterexample


def sample() -> Certificates:
    return Certificates(
        graph_hash="ab" * 32,
        objective="progression",
        norm="linf",
        method="backward linear propagation",
        point_ids=("3", "9"),
        feature_names=("bmi", "bp"),
        arrays={
            "points": np.array([[1.0, 2.0], [3.0, 4.0]]),
            "radius_per_feature": np.array([0.1, 0.0]),
            "feature_scale": np.array([1.0, 0.0]),
            "domain_lower": np.array([-np.inf, 0.0]),
            "domain_upper": np.array([np.inf, 9.0]),
            "lipschitz_upper": np.array([1.5, np.inf]),
            "lipschitz_lower": np.array([1.4, 0.0]),
        },
        counterexamples=(Counterexample("rises", "9", "bmi", "increasing", -0.25, {"bmi": 3.05, "bp": 4.0}),),
    )


def test_what_is_written_comes_back_exactly(tmp_path: Path) -> None:
    write_certificates(sample(), tmp_path)
    found = read_certificates(tmp_path)
    assert found.arrays.keys() == sample().arrays.keys()
    for name, values in sample().arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values)
    for name in (
        "graph_hash",
        "objective",
        "norm",
        "method",
        "point_ids",
        "feature_names",
        "counterexamples",
        "arithmetic",
    ):
        assert getattr(found, name) == getattr(sample(), name), name


def test_only_claims_that_were_made_are_stated(tmp_path: Path) -> None:
    text, _ = write_certificates(sample(), tmp_path)
    description = json.loads(text.read_text())
    assert description["claims"] == {k: STATEMENTS[k] for k in ("lipschitz_upper", "lipschitz_lower")}
    assert description["arithmetic"] == "real"


def test_another_schema_is_refused(tmp_path: Path) -> None:
    text, _ = write_certificates(sample(), tmp_path)
    text.write_text(text.read_text().replace("certificates/v1", "certificates/v9"))
    with pytest.raises(ValueError, match="v9"):
        read_certificates(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", points=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(tmp_path / "evil.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, {"x": np.array([1.0])})

    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_arrays(path, {"x": np.array([lambda: 0], dtype=object)})
    assert read_arrays(path)["x"].tolist() == [1.0]


def test_a_counterexample_tells_row_value_and_slope() -> None:
    assert str(sample().counterexamples[0]) == (
        "row 9: at bmi = 3.05 the output changes by -0.25 per unit of bmi, so it is not increasing"
    )
