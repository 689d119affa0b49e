"""kill -9 at any moment of a promotion: the alias is where it was, or set with valid evidence."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.registry.evidence import record
from tests.registry.keyring import key, public_file
from tests.registry.stores import fresh_name, log_onnx

ROOT = Path(__file__).parents[2]
TRIALS, COPIES = 14, 6


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_twenty_promotions_killed(store: str, tmp_path: Path) -> None:
    name = fresh_name("killed")
    for seed, version in enumerate(("1", "2")):
        log_onnx(name, seed=seed)
        record(name, tmp_path / version, version=version, key=key(1))
    command = [sys.executable, "-m", "tests.registry.nursery", store, name, str(public_file(1, tmp_path))]
    run = subprocess.run(
        [*command, str(TRIALS), str(COPIES)], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    trials = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(trials) == TRIALS + COPIES
    for trial in trials:
        new = "1" if trial["place"] == name else trial["held"]
        assert trial["held"] in (trial["before"], new), trial
        assert trial["valid"] or trial["held"] is None, trial
    # The kills did come, some of them before the alias was set and some after.
    killed = [trial for trial in trials if trial["signal"] == signal.SIGKILL]
    assert len(killed) > len(trials) / 2
    assert {trial["held"] == trial["before"] for trial in killed} == {True, False}
