"""The same question has the same answer: byte for byte on a CPU, as bounds of the same numbers on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_lipschitz.audit import AuditResult, audit_rows
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.pipeline.question import NO_LIMIT_S, question_of
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry.pull import pull
from mlflow_lipschitz.rows import load_rows
from tests.frontends.onnx_models import make_model, node
from tests.soundness.repeated import answers

ROOT = Path(__file__).parent.parent.parent
ENGINE = "engine: {budget_per_point_s: null, parts_per_point: 8, target_gap: 0.0}\n"
POLICY = (
    "apiVersion: mlflow-lipschitz/v1\nkind: AuditPolicy\nmetadata: {name: p, version: 1}\n"
    "model: {output: 0}\nperturbation: {norm: linf, radius: 0.4}\n" + ENGINE + "checks:\n"
    "  - {id: up, type: monotone, feature: a, direction: increasing}\n"
    "  - {id: lip, type: lipschitz_at_most, max: 3.0}\n"
    "  - {id: steady, type: sensitivity_at_most, feature: b, max: 9.0}\n"
)


def digests(hash_seed: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "tests.soundness.repeated", "11"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_two_processes_find_the_same_bytes() -> None:
    first, second = digests("0"), digests("1")
    assert len(first) == 2 * (2 * 3 + 5 + 3 + 3)
    assert first == second


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device to compare with")
def test_a_gpu_finds_bounds_of_the_same_numbers() -> None:
    # Sums have another order there, so that last digits differ; both are bounds of the same numbers, and nearly as tight.
    cpu, gpu = dict(answers(11)), dict(answers(11, "cuda"))
    for name, here in cpu.items():
        if here.dtype.kind == "f" and "Violation" not in name:
            np.testing.assert_allclose(gpu[name], here, rtol=1e-2, atol=1e-6, err_msg=name)
        if "Lipschitz" in name and name.endswith("upper"):
            attained = name.removesuffix("upper") + "lower"
            assert (here >= gpu[attained]).all() and (gpu[name] >= cpu[attained]).all(), name


def audited(folder: Path, policy_text: str = POLICY) -> AuditResult:
    folder.mkdir()
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(3, 6)), "b": rng.normal(size=6), "v": rng.normal(size=(6, 1))}
    nodes = [node("Gemm", "x w b", "h"), node("Tanh", "h", "t"), node("MatMul", "t v", "score")]
    model = make_model(nodes, (3,), {k: v.astype(np.float32) for k, v in constants.items()}, outputs=("score",))
    inputs = Schema([ColSpec("double", name) for name in "abc"])
    signature = ModelSignature(inputs, Schema([ColSpec("double", "score")]))
    mlflow.onnx.save_model(model, folder / "model", pip_requirements=["onnxruntime"], signature=signature)
    policy, pulled = load_policy(policy_text), pull(str(folder / "model"))
    frame = pd.DataFrame(np.random.default_rng(1).normal(size=(12, 3)), columns=list("abc"))
    return audit_rows(pulled, load_rows(frame, pulled.signature, policy), policy, folder)


def test_the_same_audit_twice_finds_the_same_table(tmp_path: Path) -> None:
    results = [audited(tmp_path / name) for name in ("first", "second")]
    tables = [BoundsTable.read(result.directory / "points.parquet") for result in results]
    assert "branch and bound" in results[0].table.columns["method"][0]
    assert len(set(tables[0].columns["lipschitz_upper"])) == 12, "rows that are all the same show little"
    for name, column in tables[0].columns.items():
        if name != "seconds":
            other = tables[1].columns[name]
            same = column.tolist() == other.tolist() if column.dtype == object else column.tobytes() == other.tobytes()
            assert same, name
    assert tables[0].bounds_digest() == tables[1].bounds_digest() == results[0].table.bounds_digest()
    assert [check.status for check in results[0].verdict.checks] == [
        check.status for check in results[1].verdict.checks
    ]


def test_the_digest_sees_every_column_but_the_time(tmp_path: Path) -> None:
    table = audited(tmp_path / "audit").table
    known = table.bounds_digest()
    for name, values in table.columns.items():
        changed = {**table.columns, name: values.copy()}
        if values.dtype == object:
            changed[name][3] = "undecided" if name == "status" else "other"
        elif name.startswith("monotone:"):
            changed[name][3] = 0 if values[3] else 1
        else:
            changed[name][3] = np.nextafter(values[3], 1e9 if name in ("lipschitz_upper", "seconds") else 0.0)
        if all((a == b).all() for a, b in zip(changed.values(), table.columns.values(), strict=True)):
            continue  # a zero stays one
        if name.startswith(("monotone:", "status")):
            continue  # what contradicts other columns is no table
        other = BoundsTable.from_columns(table.feature_names, changed).bounds_digest()
        assert (other == known) == (name == "seconds"), name


@pytest.mark.parametrize(
    ("engine", "seconds", "parts"),
    [
        (ENGINE, NO_LIMIT_S, 8),
        ("engine: {parts_per_point: 8}\n", 5.0, 8),
        ("engine: {budget_per_point_s: 2}\n", 2.0, None),
        ("engine: {budget_per_point_s: null}\n", None, None),
    ],
)
def test_a_policy_limits_a_search_by_time_or_by_parts(engine: str, seconds: float | None, parts: int | None) -> None:
    policy = load_policy(POLICY.replace(ENGINE, engine))
    frame = pd.DataFrame(np.random.default_rng(1).normal(size=(4, 3)), columns=list("abc"))
    asked = question_of(policy, load_rows(frame, None, policy), ("score",))
    for budget in (asked.budget, asked.sign_budget):
        if seconds is None:
            assert budget is None
        else:
            assert budget is not None
            assert (budget.seconds_per_point, budget.parts_per_point) == (seconds, parts)
    assert asked.budget is None or asked.budget.threshold == 3.0
