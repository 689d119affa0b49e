"""Certificates come back from disk as they were, and say in words what each array claims."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.certificates.graph_io import graph_arrays, graph_of
from mlflow_lipschitz.certificates.io import (
    read_arrays,
    read_certificates,
    sections,
    write_arrays,
    write_certificates,
    write_evidence,
)
from mlflow_lipschitz.certificates.schema import STATEMENTS, Certificates, Counterexample
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder


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


def tiny_graph() -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    linear = builder.add(ops.Linear(ops.frozen_array([[0.1, -2.0]]), ops.frozen_array([1e-300])), x, name="fc")
    leaky = builder.add(ops.Elementwise("leaky_relu", (0.1,)), linear)
    transposed = builder.add(ops.Adjoint(ops.Pad(((1, 0),), 0.0), (1,)), builder.add(ops.Pad(((1, 0),), 0.5), leaky))
    return builder.build(transposed, ("progression",))


def test_a_graph_comes_back_with_every_bit(tmp_path: Path) -> None:
    arrays = graph_arrays(tiny_graph())
    write_arrays(tmp_path / "graph.npz", arrays)
    found = graph_of(read_arrays(tmp_path / "graph.npz"))
    assert found.content_hash() == tiny_graph().content_hash()
    assert found.output_names == ("progression",) and [n.name for n in found.nodes] == [
        n.name for n in tiny_graph().nodes
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"Linear"', b'"Linnet"'),
        (b'"inputs": [0]', b'"inputs": [9]'),
        (b'"inputs": [0]', b'"inputs": []'),
        (b'"output": 4', b'"output": 9'),
        (b"1/weight", b"7/weight"),
        (b'{"nodes"', b'["nodes"'),
    ],
)
def test_arrays_that_describe_no_graph_are_refused(old: bytes, new: bytes) -> None:
    arrays = graph_arrays(tiny_graph())
    text = arrays["graph"].tobytes()
    assert old in text
    arrays["graph"] = np.frombuffer(text.replace(old, new, 1), dtype=np.uint8)
    with pytest.raises(ValueError):
        graph_of(arrays)


def test_evidence_comes_back_section_by_section(tmp_path: Path) -> None:
    write_evidence(tmp_path / "evidence.npz", 0, {"slopes": np.arange(3.0)})
    write_evidence(tmp_path / "evidence.npz", 1, {"slopes": np.arange(4.0)})
    paths = write_certificates(sample(), tmp_path, tiny_graph(), tmp_path / "evidence.npz")
    first, second = sections(paths["certificates.npz"])
    assert first["points"].tolist() == [[1.0, 2.0]] and second["points"].tolist() == [[3.0, 4.0]]
    assert first["slopes"].tolist() == [0, 1, 2] and second["slopes"].tolist() == [0, 1, 2, 3]
    assert first["radius_per_feature"].tolist() == second["radius_per_feature"].tolist() == [0.1, 0.0]
    assert not (tmp_path / "evidence.npz").exists()


def test_the_same_certificates_are_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_certificates(sample(), folder, tiny_graph())
    for name in ("certificates.json", "certificates.npz", "graph.npz"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_what_is_written_comes_back_exactly(tmp_path: Path) -> None:
    write_certificates(sample(), tmp_path, tiny_graph())
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
    paths = write_certificates(sample(), tmp_path, tiny_graph())
    description = json.loads(paths["certificates.json"].read_text())
    assert description["claims"] == {k: STATEMENTS[k] for k in ("lipschitz_upper", "lipschitz_lower")}
    assert description["arithmetic"] == "real"


def test_another_schema_is_refused(tmp_path: Path) -> None:
    text = write_certificates(sample(), tmp_path, tiny_graph())["certificates.json"]
    text.write_text(text.read_text().replace("certificates/v2", "certificates/v9"))
    with pytest.raises(ValueError, match="v9"):
        read_certificates(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", points=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(tmp_path / "evil.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, {"x": np.array([1.0])})

    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(path, {"x": np.array([lambda: 0], dtype=object)})
    assert read_arrays(path)["x"].tolist() == [1.0]


def test_a_counterexample_tells_row_value_and_slope() -> None:
    assert str(sample().counterexamples[0]) == (
        "row 9: at bmi = 3.05 the output changes by -0.25 per unit of bmi, so it is not increasing"
    )
