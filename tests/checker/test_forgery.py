"""Certificates that were tampered with: whatever is done to the files, a claim that does not hold is never said to hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_lipschitz.certificates.graph_io import graph_of
from mlflow_lipschitz.certificates.io import read_arrays, write_arrays, write_certificates
from mlflow_lipschitz.certificates.schema import Certificates
from mlflow_lipschitz.checker.__main__ import main
from mlflow_lipschitz.checker.derivation import Subject, derivative_range, lipschitz_upper, radius_holds
from mlflow_lipschitz.checker.verification import recheck
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder

Arrays = dict[str, np.ndarray]
NAMES = ("age", "bmi")


def network(seed: int = 0) -> Graph:
    """Two inputs, a layer of kinks, a product of gates, two outputs."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    hidden = builder.add(ops.Linear(rng.normal(size=(3, 2)), rng.normal(size=3)), x)
    kinked = builder.add(ops.Elementwise("relu"), hidden)
    product = builder.add(ops.Multiply(), kinked, builder.add(ops.Elementwise("sigmoid"), hidden))
    return builder.build(builder.add(ops.Linear(rng.normal(size=(2, 3)), np.array([3.0, 0.0])), product), ("no", "yes"))


def common() -> Arrays:
    points = np.random.default_rng(1).normal(size=(3, 2))
    whole = np.full(2, np.inf)
    region = {"radius_per_feature": np.full(2, 0.1), "domain_lower": -whole, "domain_upper": whole}
    return {"points": points, "feature_scale": np.ones(2), "labels": np.zeros(3, dtype=np.int64), **region}


def certify(folder: Path) -> Path:
    """True claims, with the table that reports them."""
    graph, stated = network(), common()
    subject = Subject(graph, "linf", 0)
    low, high = derivative_range(subject, stated)
    upper, radius = lipschitz_upper(subject, stated), np.array([0.05, 0.0, 0.01])
    assert radius_holds(subject, stated, radius)[radius > 0].all()
    claims = {"lipschitz_upper": upper, "derivative_lower": low, "derivative_upper": high, "radius": radius}
    ids = ("a", "b", "c")
    write_certificates(
        Certificates(graph.content_hash(), "no", "linf", "crown", ids, NAMES, stated | claims), folder, graph
    )
    columns: dict[str, list[Any]] = {
        "point_id": list(ids),
        "lipschitz_upper": upper.tolist(),
        "radius": radius.tolist(),
    }
    for k, name in enumerate(NAMES):
        columns[f"monotone:{name}"] = np.where(low[:, k] >= 0, 1, np.where(high[:, k] <= 0, -1, 0)).tolist()
        columns[f"sensitivity_upper:{name}"] = np.maximum(-low, high)[:, k].tolist()
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    (folder / "points.json").write_text(json.dumps({"columns": list(columns), "data": rows}))
    return folder


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certify(tmp_path_factory.mktemp("certified"))


@pytest.fixture
def folder(certified: Path, tmp_path: Path) -> Path:
    return shutil.copytree(certified, tmp_path / "copy")


def described(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change certificates.json, with the digests of the other files brought up to date."""
    path = folder / "certificates.json"
    content = json.loads(path.read_text())
    change(content)
    if isinstance(content.get("files"), dict):
        for name in ("certificates.npz", "graph.npz"):
            content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(content))


def numbers(folder: Path, **changed: Any) -> None:
    """Change arrays of certificates.npz; None removes one."""
    arrays = read_arrays(folder / "certificates.npz") | changed
    write_arrays(folder / "certificates.npz", {name: x for name, x in arrays.items() if x is not None})
    described(folder, lambda content: None)


def graph(folder: Path, change: Callable[[dict[str, Any]], Any], **arrays: Any) -> None:
    """Change the description of the graph, and the hash that the certificates name where there still is a graph."""
    old = read_arrays(folder / "graph.npz")
    content = json.loads(old["graph"].tobytes())
    change(content)
    new = old | arrays | {"graph": np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)}
    write_arrays(folder / "graph.npz", new)
    try:
        digest = graph_of(new).content_hash()
    except ValueError:
        digest = "none"
    described(folder, lambda content: content.update(graph_sha256=digest))


def table(folder: Path, column: str, row: int, value: Any) -> None:
    path = folder / "points.json"
    content = json.loads(path.read_text())
    content["data"][row][content["columns"].index(column)] = value
    path.write_text(json.dumps(content))


def test_true_claims_hold(folder: Path) -> None:
    found = recheck(folder)
    assert found.holds, (found.refuted, found.unproved)
    counts = {"lipschitz_upper": 3, "derivative_lower": 3, "derivative_upper": 3, "radius": 3}
    assert found.checked == counts
    assert main([str(folder)]) == 0
    assert recheck(folder, exact=True).holds


@pytest.mark.parametrize("claim", ["lipschitz_upper", "derivative_lower", "derivative_upper", "radius"])
def test_a_number_beyond_what_follows_is_refuted(folder: Path, claim: str) -> None:
    values = read_arrays(folder / "certificates.npz")[claim].copy()
    values[2] = {"radius": 50.0, "derivative_lower": 1e3, "derivative_upper": -1e3}.get(claim, 1e-3)
    numbers(folder, **{claim: values})
    found = recheck(folder)
    assert not found.holds and any(r.claim == claim and r.point_id == "c" for r in found.refuted)
    values[2] = np.nan
    numbers(folder, **{claim: values})
    with contextlib.suppress(ValueError):
        assert not recheck(folder).holds


ARRAYS: dict[str, Callable[[Arrays], Arrays]] = {
    # −5 as an unsigned number is 251, and so "at least 5" would follow from "at least −251".
    "unsigned": lambda a: {"derivative_lower": np.full((3, 2), 5, dtype=np.uint8)},
    "whole numbers": lambda a: {"lipschitz_upper": np.full(3, 1000)},
    "complex": lambda a: {"lipschitz_upper": a["lipschitz_upper"] + 1j},
    "complex points": lambda a: {"points": a["points"] + 1j},
    "half precision": lambda a: {"points": a["points"].astype(np.float16)},
    "one for all": lambda a: {"lipschitz_upper": a["lipschitz_upper"][:1]},
    "one radius for all": lambda a: {"radius": a["radius"][:1]},
    "a column": lambda a: {"radius": a["radius"][:, None]},
    "a number": lambda a: {"lipschitz_upper": np.array(1e9)},
    "more than the points": lambda a: {"lipschitz_upper": np.append(a["lipschitz_upper"], 1e-9)},
    "fewer points": lambda a: {name: a[name][:2] for name in ("points", "labels", "lipschitz_upper", "radius")},
    "no points": lambda a: {name: x[:0] for name, x in a.items() if len(x) == 3},
    "text": lambda a: {"lipschitz_upper": np.array(["inf"] * 3)},
    "named fields": lambda a: {"radius": np.zeros(3, dtype=[("radius", float)])},
    "a claim removed": lambda a: {"derivative_upper": None},
    "points removed": lambda a: {"points": None},
    "points that are none": lambda a: {"points": a["points"] * np.nan},
    "a negative radius": lambda a: {"radius_per_feature": np.array([-0.1, 0.1])},
    "an infinite radius": lambda a: {"radius_per_feature": np.array([np.inf, 0.1])},
    "one radius for all features": lambda a: {"radius_per_feature": np.array([0.1])},
    "a radius for each point": lambda a: {"radius_per_feature": np.full((3, 2), 0.1)},
    "a scale that is none": lambda a: {"feature_scale": np.array([np.nan, 1.0])},
    "a negative scale": lambda a: {"feature_scale": np.array([-1.0, 1.0])},
    "a domain elsewhere": lambda a: {"domain_lower": np.full(2, 50.0), "domain_upper": np.full(2, 51.0)},
    "a domain beside the point": lambda a: {"domain_lower": np.array([a["points"][:, 0].min() + 0.05, -np.inf])},
    "a domain that is none": lambda a: {"domain_lower": np.full(2, np.nan)},
    "labels of another class": lambda a: {"labels": np.full(3, 7)},
    "labels between classes": lambda a: {"labels": np.full(3, 0.5)},
    "labels for one": lambda a: {"labels": np.zeros(1, dtype=np.int64)},
    "labels removed": lambda a: {"labels": None},
    "evidence in place of claims": lambda a: {"evidence/00000000/lipschitz_upper": np.full(3, 1e9)},
    "evidence in place of points": lambda a: {"evidence/00000000/points": a["points"] * 0},
    "evidence in place of regions": lambda a: {"evidence/00000000/radius_per_feature": np.zeros(2)},
    "evidence of nobody": lambda a: {"evidence/00000009/none": np.zeros(0)},
    "evidence from before": lambda a: {"evidence/-1/none": np.zeros(0)},
    "evidence without a name": lambda a: {"evidence/00000000": np.zeros(0)},
    "slopes of other points": lambda a: {
        f"evidence/00000000/derivative/slopes/3/{side}/0": np.zeros((2, 1, 3)) for side in ("above", "below")
    },
    "slopes of no node": lambda a: (
        {f"evidence/00000000/derivative/slopes/99/{s}/0": np.zeros(9) for s in ("above", "below")}
        | {f"evidence/00000000/derivative/last/99/{s}/0": np.zeros((3, 1, 3)) for s in ("above", "below")}
    ),
    "slopes on one side": lambda a: {"evidence/00000000/derivative/slopes/3/above/0": np.zeros((3, 1, 3))},
    "slopes with strange names": lambda a: {"evidence/00000000/derivative/slopes/3": np.zeros((3, 1, 3))},
    "a tree without an end": lambda a: {
        f"evidence/00000000/lipschitz/tree/{k}": np.zeros(3) for k in ("node", "entry", "place")
    },
}


@pytest.mark.parametrize("name", list(ARRAYS))
def test_arrays_that_are_not_what_they_are_read_as_are_refused(folder: Path, name: str) -> None:
    numbers(folder, **ARRAYS[name](read_arrays(folder / "certificates.npz")))
    with pytest.raises(ValueError):
        recheck(folder)
    assert main([str(folder)]) == 2


DESCRIPTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no schema": lambda d: d.pop("schema"),
    "no claims": lambda d: d.update(claims={}),
    "claims unsaid": lambda d: d["claims"].pop("radius"),
    "half of a range": lambda d: d["claims"].pop("derivative_lower"),
    "a claim of its own": lambda d: d["claims"].update(perfect="the model is perfect"),
    "a claim of nothing": lambda d: d["claims"].update(perfect=None),
    "a claim in other words": lambda d: d["claims"].update(lipschitz_upper="no gradient anywhere is larger"),
    "claims in a list": lambda d: d.update(claims=list(d["claims"])),
    "claims as text": lambda d: d.update(claims=" ".join(d["claims"])),
    "more points": lambda d: d["point_ids"].append("d"),
    "fewer points": lambda d: d["point_ids"].pop(),
    "points as text": lambda d: d.update(point_ids="abc"),
    "other points": lambda d: d.update(point_ids=["a", "b", "x"]),
    "points in another order": lambda d: d.update(point_ids=["b", "a", "c"]),
    "features with one name": lambda d: d.update(feature_names=["age", "age"]),
    "fewer features": lambda d: d.update(feature_names=["age"]),
    "nothing unproved": lambda d: d.pop("unproved"),
    "unproved as text": lambda d: d.update(unproved=""),
    "an output from the end": lambda d: d.update(output=-1),
    "an output between two": lambda d: d.update(output=0.5),
    "an output that is true": lambda d: d.update(output=True),
    "an output as text": lambda d: d.update(output="0"),
    "an output too many": lambda d: d.update(output=2),
    "another norm": lambda d: d["region"].update(norm="l3"),
    "no region": lambda d: d.pop("region"),
    "another graph": lambda d: d.update(graph_sha256="0" * 64),
    "no files": lambda d: d.pop("files"),
}


@pytest.mark.parametrize("name", list(DESCRIPTIONS))
def test_descriptions_that_do_not_fit_are_refused(folder: Path, name: str) -> None:
    described(folder, DESCRIPTIONS[name])
    with pytest.raises(ValueError):
        recheck(folder)
    assert main([str(folder)]) == 2


def test_a_key_that_is_there_twice_is_refused(folder: Path) -> None:
    path = folder / "certificates.json"
    path.write_text(path.read_text().replace('"output": 0', '"output": 1, "output": 0'))
    with pytest.raises(ValueError, match="twice"):
        recheck(folder)
    path.write_text(path.read_text().replace('"output": 1, "output": 0', '"output": NaN'))
    with pytest.raises(ValueError, match="NaN"):
        recheck(folder)
    path.write_text("[]")
    with pytest.raises(ValueError):
        recheck(folder)


def test_an_array_that_is_there_twice_is_refused(folder: Path) -> None:
    path, other = folder / "certificates.npz", folder / "other.npz"
    write_arrays(other, {"lipschitz_upper": np.full(3, 1e9)})
    with (
        zipfile.ZipFile(other) as source,
        zipfile.ZipFile(path, "a") as goal,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        goal.writestr("lipschitz_upper.npy", source.read("lipschitz_upper.npy"))
    described(folder, lambda content: None)
    with pytest.raises(ValueError, match="twice"):
        recheck(folder)


def test_pickled_arrays_and_broken_archives_are_refused(folder: Path) -> None:
    np.savez(folder / "certificates.npz", points=np.array([object()], dtype=object))
    described(folder, lambda content: None)
    with pytest.raises(ValueError):
        recheck(folder)
    for name in ("certificates.npz", "graph.npz"):
        certify(folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])
        with pytest.raises(ValueError):
            recheck(folder)  # the digest is another
        described(folder, lambda content: None)
        with pytest.raises(ValueError):
            recheck(folder)
        assert main([str(folder)]) == 2


GRAPHS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no nodes": lambda g: g.update(nodes=[]),
    "no input": lambda g: g["nodes"].pop(0),
    "two inputs": lambda g: g["nodes"][1].update(op={"type": "Input", "shape": [2]}, inputs=[]),
    "an objective": lambda g: g["nodes"][1].update(op={"type": "Cotangent", "shape": [3]}, inputs=[]),
    "a cycle": lambda g: g["nodes"][1].update(inputs=[2]),
    "a node from the end": lambda g: g["nodes"][1].update(inputs=[-1]),
    "one input too many": lambda g: g["nodes"][1].update(inputs=[0, 0]),
    "no op": lambda g: g["nodes"][1].update(op={"type": "Op"}),
    "an unknown curve": lambda g: g["nodes"][2]["op"].update(curve="sinus"),
    "a curve without a constant": lambda g: g["nodes"][2]["op"].update(curve="leaky_relu"),
    "a jump": lambda g: g["nodes"][2]["op"].update(curve="step", parameters={"floats": ["0x0p+0", "0x1p+0"]}),
    "a factor left out": lambda g: g["nodes"][4]["op"].update(linear_in=[0]),
    "no factor followed": lambda g: g["nodes"][4]["op"].update(linear_in=[]),
    "a third factor": lambda g: g["nodes"][4]["op"].update(linear_in=[0, 2]),
    "another shape": lambda g: g["nodes"][0]["op"].update(shape=[3]),
    "a negative shape": lambda g: g["nodes"][0]["op"].update(shape=[-2]),
    "a bias missing": lambda g: g["nodes"][1]["op"]["bias"].update(array="7/bias"),
    "joined from the end": lambda g: g["nodes"][4].update(op={"type": "Concat", "axis": -1}, inputs=[2]),
    "the transpose of a curve": lambda g: g["nodes"][2].update(
        op={"type": "Adjoint", "inner": {"op": g["nodes"][3]["op"]}, "shape": [3]}
    ),
}


@pytest.mark.parametrize("name", list(GRAPHS))
def test_what_is_no_graph_of_a_model_is_refused(folder: Path, name: str) -> None:
    graph(folder, GRAPHS[name])
    with pytest.raises(ValueError):
        recheck(folder)
    assert main([str(folder)]) == 2


def test_the_derivatives_remainder_is_no_operator_of_a_model(tmp_path: Path) -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    y = builder.add(ops.Remainder(), x, x, x)  # not (1 − s) · g: what its inputs are is not what they are taken for
    forged, stated = builder.build(y), common()
    radius = Certificates(
        forged.content_hash(), "no", "linf", "crown", ("a", "b", "c"), NAMES, stated | {"radius": np.zeros(3)}
    )
    write_certificates(radius, tmp_path, forged)
    with pytest.raises(ValueError, match="derivatives"):
        recheck(tmp_path)


def test_labels_that_the_model_does_not_decide_for_are_refuted(folder: Path) -> None:
    numbers(folder, labels=np.array([0, 0, 1]), radius=np.zeros(3))
    table(folder, "radius", 0, 0.0)
    table(folder, "radius", 2, 0.0)
    found = recheck(folder)
    assert [(r.claim, r.point_id) for r in found.refuted] == [("labels", "c")]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("lipschitz_upper", 1e-3),
        ("lipschitz_upper", "NaN"),
        ("radius", 0.06),
        ("radius", "NaN"),
        ("sensitivity_upper:bmi", 0.0),
        ("monotone:age", 2),
        ("monotone:bmi", 0.5),
    ],
)
def test_a_table_that_says_more_than_the_claims_is_refuted(folder: Path, column: str, value: Any) -> None:
    table(folder, column, 0, value)
    found = recheck(folder)
    assert [(r.claim, r.point_id) for r in found.refuted] == [(f"points.json, {column}", "a")]
    assert main([str(folder)]) == 1


def test_a_sign_that_does_not_follow_is_refuted(folder: Path) -> None:
    columns = json.loads((folder / "points.json").read_text())
    signs = [row[columns["columns"].index("monotone:age")] for row in columns["data"]]
    for row, sign in enumerate(signs):
        for told in (-1, 0, 1):
            table(folder, "monotone:age", row, told)
            assert recheck(folder).holds == (told in (0, sign))
        table(folder, "monotone:age", row, sign)


def test_a_table_may_say_less(folder: Path) -> None:
    for column, value in (("lipschitz_upper", "Infinity"), ("radius", 0.0), ("monotone:age", 0)):
        table(folder, column, 0, value)
    assert recheck(folder).holds
    (folder / "points.json").unlink()
    assert recheck(folder).holds


def test_a_table_of_other_points_is_refused(folder: Path) -> None:
    table(folder, "point_id", 0, "b")
    with pytest.raises(ValueError, match=r"points\.json"):
        recheck(folder)


def test_claims_left_out_of_the_certificates_are_missed_in_the_table(folder: Path) -> None:
    numbers(folder, derivative_lower=None, derivative_upper=None, radius=None)
    described(folder, lambda d: d.update(claims={"lipschitz_upper": d["claims"]["lipschitz_upper"]}))
    found = recheck(folder)
    assert found.checked == {"lipschitz_upper": 3}
    assert {r.claim for r in found.refuted} >= {"points.json, radius", "points.json, sensitivity_upper:age"}


def test_what_is_unproved_does_not_hold(folder: Path) -> None:
    described(folder, lambda d: d.update(unproved=["b"]))
    assert not recheck(folder).holds
