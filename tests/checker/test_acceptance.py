"""What an audit certifies, the checker proves again: over norms, objectives, searches and networks; alone, without a framework."""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

import mlflow_lipschitz.checker
from mlflow_lipschitz.certificates.io import CERTIFICATES, NUMBERS, read_arrays, sha256_of, write_arrays
from mlflow_lipschitz.certify import certify_lipschitz
from mlflow_lipschitz.certify.budget import Budget
from mlflow_lipschitz.checker.derivation import Subject, lipschitz_upper, radius_holds
from mlflow_lipschitz.checker.verification import Recheck, recheck
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir.graph import Graph
from tests.checker.certified import SEARCH, asked, certified, cnn, increasing, mlp, written
from tests.mlflow_plugin.audits import audited
from tests.reference_cases import FOLDER, reference_cases
from tests.registry.evidence import POLICY
from tests.registry.stores import onnx_model

NETWORKS: dict[str, Graph] = {
    "relu": mlp("relu", (3, 5, 3), 0),
    "deep relu": mlp("relu", (2, 5, 4, 3, 2), 1),
    "one output": mlp("relu", (2, 4, 1), 2),
    "tanh": mlp("tanh", (3, 4, 2), 3),
    "gelu": mlp("gelu", (2, 4, 2), 4),
    "softplus": mlp("softplus", (2, 4, 2), 5),
    "sigmoid": mlp("sigmoid", (2, 3, 2), 6),
    "leaky relu": mlp("leaky_relu", (2, 4, 2), 7, (0.1,)),
    "convolution": cnn(8),
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "search": {"budget": SEARCH},
    "search for radii": {"budget": SEARCH, "max_radius": 1.0},
    "signs": {"monotone": (increasing(0),), "sign_budget": Budget(600.0, 0.0, parts_per_point=8)},
    "scaled": {"unit": "scaled", "size": 0.5},
}


def points_of(graph: Graph, count: int = 3) -> np.ndarray:
    return np.round(np.random.default_rng(17).uniform(-0.5, 0.5, (count, *graph.input_shape)), 3)


def proved(found: Recheck, count: int) -> bool:
    """Whether every claim of every point was proved; an audit that can prove less of a point says so itself."""
    return not found.refuted and set(found.checked.values()) == {count}


# Every network with a search; the other questions of some. For l1 there is no search.
ASKED = [
    (name, question, norm)
    for name, question, norm in itertools.product(NETWORKS, QUESTIONS, ("linf", "l2", "l1"))
    if (norm != "l1" if question == "search" else name in ("relu", "one output", "tanh", "convolution"))
]


@pytest.mark.parametrize(("name", "question", "norm"), ASKED)
def test_certificates_are_accepted(name: str, question: str, norm: str, tmp_path: Path) -> None:
    graph, changes = NETWORKS[name], dict(QUESTIONS[question])
    if changes.get("unit") == "scaled":
        changes["unit"] = np.linspace(0.1, 0.6, int(np.prod(graph.input_shape))).reshape(graph.input_shape)
    points = points_of(graph, 2)
    changes = {"size": 0.1, **changes}
    assert proved(recheck(written(graph, points, asked(graph.input_shape, norm=norm, **changes), tmp_path)), 2)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("budget", [None, SEARCH], ids=["one pass", "search"])
@pytest.mark.parametrize("name", ["relu", "tanh", "convolution"])
def test_certificates_of_margins_are_accepted(name: str, budget: Budget | None, norm: str, tmp_path: Path) -> None:
    graph = NETWORKS[name]
    question = asked(graph.input_shape, norm=norm, output="margin", max_radius=0.5, budget=budget, size=0.1)
    assert proved(recheck(written(graph, points_of(graph), question, tmp_path, chunk=2)), 3)


def test_a_radius_that_follows_from_a_slope_needs_no_evidence(tmp_path: Path) -> None:
    graph = NETWORKS["one output"]
    case = certified(graph, points_of(graph), asked((2,), max_radius=1.0, size=0.1), tmp_path)
    assert not any("/" in name for name in case.stated)
    tiny = np.full(3, 1e-3)
    assert radius_holds(case.subject(), case.stated, tiny).all()
    assert not radius_holds(case.subject(), case.stated, tiny + 50).any()


def test_trees_and_multipliers_are_what_is_accepted(tmp_path: Path) -> None:
    """A certificate without them does not follow: they are what proves the bound."""
    case = certified(mlp("relu", (3, 5, 3), 4), points_of(NETWORKS["relu"]), asked((3,), budget=SEARCH), tmp_path)
    claim = case.stated["lipschitz_upper"]
    bare = {name: values for name, values in case.stated.items() if "/tree/" not in name}
    assert (case.stated["lipschitz/tree/node"] >= 0).any()
    assert (lipschitz_upper(case.subject(), case.stated) <= claim).all()
    assert not (lipschitz_upper(case.subject(), bare) <= claim).all()


@pytest.mark.parametrize(
    "case", reference_cases() or [pytest.param(None, marks=pytest.mark.skip(f"no {FOLDER.name} beside the project"))]
)
def test_networks_of_the_state_of_the_art_are_accepted(case: Any) -> None:
    """The checker's bound is about the engine's: a certificate that holds its number leaves no room to speak of."""
    graph = case.graph
    size = sum(array.size for node in graph.nodes for array in vars(node.op).values() if isinstance(array, np.ndarray))
    if size > 20_000:
        pytest.skip("takes long: the smaller networks stand for it")
    points = case.points[:1]
    box = Box.around(points, case.radius)
    found = certify_lipschitz(graph, points, box, outputs=0, device="cpu", evidence=True)
    one = np.ones(points.shape[1:])
    region = {"radius_per_feature": case.radius * one, "domain_lower": -np.inf * one, "domain_upper": np.inf * one}
    assert found.evidence is not None
    evidence = {f"lipschitz/{name}": values for name, values in found.evidence.slopes.items()}
    with np.errstate(all="ignore"):
        again = lipschitz_upper(
            Subject(graph, "linf", 0), {"points": points, "feature_scale": one, **region, **evidence}
        )
    assert (again <= found.upper[:, 0] * 1.01).all()
    assert (again >= found.lower[:, 0]).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh audit of an ONNX model."""
    place = tmp_path_factory.mktemp("audit")
    mlflow.onnx.save_model(onnx_model(), place / "model")
    audited(str(place / "model"), place / "out", POLICY)
    return place / "out"


# Whatever imports one of these fails.
_BLOCKER = """\
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Blocked())
"""
FRAMEWORKS = ("torch", "scipy", "onnx", "onnxruntime", "mlflow", "sklearn", "pandas", "great_expectations")


def alone(folder: Path, tmp_path: Path, program: list[str]) -> subprocess.CompletedProcess[str]:
    """Run where none of the frameworks can be imported."""
    (tmp_path / "sitecustomize.py").write_text(_BLOCKER.format(names=set(FRAMEWORKS)))
    root = Path(mlflow_lipschitz.checker.__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    return subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_a_fresh_audit_is_proved_again_without_any_framework(folder: Path, tmp_path: Path) -> None:
    done = alone(folder, tmp_path, ["-m", "mlflow_lipschitz.checker", str(folder)])
    assert (done.returncode, done.stderr) == (0, "")
    assert "lipschitz_upper: 8 points" in done.stdout and "all claims proved again" in done.stdout


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_frameworks_really_are_not_there(name: str, folder: Path, tmp_path: Path) -> None:
    assert alone(folder, tmp_path, ["-c", f"import {name}"]).returncode == 1


def test_a_folder_that_claims_too_much_is_told_apart(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    arrays = read_arrays(copied / NUMBERS)
    write_arrays(copied / NUMBERS, {**arrays, "lipschitz_upper": arrays["lipschitz_upper"] / 2})
    done = alone(copied, tmp_path, ["-m", "mlflow_lipschitz.checker", str(copied)])
    assert done.returncode == 2 and "is not the file" in done.stderr
    described = json.loads((copied / CERTIFICATES).read_text())
    described["files"][NUMBERS] = sha256_of(copied / NUMBERS)
    (copied / CERTIFICATES).write_text(json.dumps(described))
    done = alone(copied, tmp_path, ["-m", "mlflow_lipschitz.checker", str(copied)])
    assert done.returncode == 1 and "NOT PROVED" in done.stdout


def test_the_checker_imports_nothing_of_the_engine_but_its_graphs() -> None:
    place = Path(mlflow_lipschitz.checker.__file__).parent
    allowed = ("mlflow_lipschitz.checker", "mlflow_lipschitz.engine.ir", "mlflow_lipschitz.certificates")
    files = sorted(place.glob("**/*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                own = name.split(".")[0] == "mlflow_lipschitz"
                known = name.split(".")[0] in {*sys.stdlib_module_names, "numpy", "__future__"}
                assert name.startswith(allowed) if own else known, f"{file.name} imports {name}"
