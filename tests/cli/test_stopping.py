"""Ctrl-C on a terminal: the key itself, on a real terminal, in the middle of a real audit."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.cli.interruption import orderly_end
from mlflow_lipschitz.gate.table import BoundsTable
from tests.registry.stores import fresh_name, log_onnx, rows
from tests.report.test_progress import Terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals and signals")
ROWS = 60


def test_ctrl_c_keeps_what_is_finished_and_passes_nothing(store: str, policy: Path, tmp_path: Path) -> None:
    name, data, out = fresh_name(), tmp_path / "rows.npz", tmp_path / "out"
    log_onnx(name)
    np.savez(data, points=rows(ROWS))
    command = ["audit", f"models:/{name}/1", "--policy", str(policy), "--data", str(data), "--out", str(out)]
    start = "from mlflow_lipschitz.cli.__main__ import main; main()"
    terminal = Terminal(
        [sys.executable, "-c", start, *command, "--chunk-size", "1", "--tracking-uri", store], MLFLOW_REGISTRY_URI=store
    )
    terminal.until(f"1/{ROWS}")
    terminal.press(b"\x03")
    code, answer = terminal.end()
    assert code == 3, terminal.plain[-2000:]
    assert "certifying" in terminal.plain and f"/{ROWS} gap" in terminal.plain
    assert f"of {ROWS} rows are finished and kept in" in terminal.plain.replace("\r\n", "")
    assert "passed:" not in answer
    note = json.loads((out / "partial.json").read_text())
    assert note["status"] == "KILLED"
    assert 1 <= note["finished"] < ROWS
    table = BoundsTable.read(out / "points.partial.parquet")
    assert len(table) == ROWS
    assert int(np.isfinite(table.columns["lipschitz_upper"]).sum()) == note["finished"]


def test_a_wish_to_end_that_was_dropped_is_heard_at_the_next_report() -> None:
    """Python drops what is raised in a finalizer; the signal must not be lost with it."""

    class Finalizer:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    dropped: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: dropped.append(unraisable.exc_type)
    try:
        with pytest.raises(KeyboardInterrupt), orderly_end() as end_if_asked:
            end_if_asked()
            Finalizer()
            assert dropped == [KeyboardInterrupt]
            end_if_asked()
    finally:
        sys.unraisablehook = before


def test_cleaning_up_is_not_interrupted_by_a_second_sigterm() -> None:
    steps = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), orderly_end():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            steps.append("cleaned up")
    assert steps == ["cleaned up"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with orderly_end() as end_if_asked:
            signal.raise_signal(signal.SIGHUP)
            end_if_asked()
    finally:
        signal.signal(signal.SIGHUP, before)
