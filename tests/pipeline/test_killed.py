"""kill -9 at any moment of an audit: what was finished is not measured again, and the outcome is that of an undisturbed audit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from mlflow.tracking import MlflowClient

from tests.registry.conftest import sqlite_store, store  # noqa: F401
from tests.registry.stores import fresh_name, log_onnx, rows

ROOT = Path(__file__).parents[2]
ROWS, CHUNK = 10, 1
POLICY = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: killed, version: 1}
model: {output: 0}
perturbation: {norm: linf, radius: 0.7}
# A time would make audits differ; a number of parts does not.
engine: {budget_per_point_s: null, parts_per_point: 24}
checks:
  - {id: steady, type: lipschitz_at_most, max: 5.5, mostly: 0.25}
  - {id: up, type: monotone, feature: x1, direction: decreasing, severity: info, mostly: 0.25}
  - {id: implicit, type: certified_fraction_at_least, min: 0.01}
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_killed_audits_end_as_undisturbed_ones(store: str, tmp_path: Path) -> None:  # noqa: F811
    kills = 20 if settings().max_examples > 100 else 2  # the long profile, the one of every day
    name = fresh_name("killed")
    log_onnx(name)
    policy, data = tmp_path / "policy.yaml", tmp_path / "rows.npz"
    policy.write_text(POLICY)
    np.savez(data, points=rows(ROWS))
    asked = ["audit", f"models:/{name}/1", "--policy", str(policy), "--data", str(data), "--chunk-size", str(CHUNK)]
    command = [sys.executable, "-m", "tests.pipeline.killing", store, str(tmp_path), str(kills), *asked]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    legs = [json.loads(line) for line in ended.stdout.splitlines()]
    assert legs[0]["code"] == 0, legs[0]
    assert sum(leg["code"] == -signal.SIGKILL for leg in legs) == kills
    assert {leg["code"] for leg in legs} <= {-signal.SIGKILL, legs[0]["code"]}, legs
    chains = [[leg for leg in legs if leg["chain"] == chain] for chain in range(legs[-1]["chain"] + 1)]
    (undisturbed,) = chains[0]
    for chain in chains[1:]:
        nothing_is_measured_twice(chain)
        assert {**chain[-1]["outcome"], "seconds": None} == {**undisturbed["outcome"], "seconds": None}
    # Some kills came in the middle of the measuring.
    assert any(0 < len(leg["records"]) < ROWS // CHUNK for chain in chains[1:] for leg in chain[:-1])
    no_run_goes_on(name, kills, len(chains))


def nothing_is_measured_twice(chain: list[dict[str, Any]]) -> None:
    for before, after in pairwise(chain):
        if after["outcome"] is None:  # a finished audit has no journal any more
            assert before["records"].items() <= after["records"].items()
    last = chain[-1]["log"]
    assert len(set(last)) == len(last)
    # A chunk whose record was complete when the kill came, before the line was written, is in no line.
    missing = set(range(0, ROWS, CHUNK)) - set(last)
    assert len(missing) <= len(chain) - 1
    noticed = {int(name[:8]) for leg in chain for name in leg["records"]}
    assert missing <= noticed


def no_run_goes_on(name: str, kills: int, chains: int) -> None:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tests")
    runs = client.search_runs([experiment.experiment_id], "tags.`lipschitz.attempt` != ''")
    states = [run.info.status for run in runs if run.info.run_name == f"lipschitz audit of models:/{name}/1"]
    assert states.count("FINISHED") == chains
    # A kill may come before there is a run, or after it has ended; one while it goes on is marked by the next leg.
    assert set(states) <= {"FINISHED", "KILLED"}
    assert 1 <= states.count("KILLED") <= kills
