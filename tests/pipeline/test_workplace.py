"""One directory, one audit at a time, and nothing in it that an earlier audit concluded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.mlflow_plugin.logging import ARTIFACTS
from mlflow_lipschitz.pipeline.partial import PARTIAL_FILES
from mlflow_lipschitz.pipeline.workplace import LOCK_FILE, workplace


def test_results_of_an_earlier_audit_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (*ARTIFACTS, *PARTIAL_FILES, "notes.txt"):
        (tmp_path / name).write_text("earlier")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "00000000.npz").write_text("to be resumed")
    with workplace(tmp_path) as directory:
        assert directory == tmp_path
        assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "work", "policy.yaml", LOCK_FILE}
        assert (tmp_path / "work" / "00000000.npz").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "work", "policy.yaml"}


def test_a_second_audit_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    with workplace(tmp_path):
        (tmp_path / "report.html").write_text("of the first")
        with (
            pytest.raises(UsageError, match=rf"another audit \(process {os.getpid()}\) is writing to"),
            workplace(tmp_path),
        ):
            pass
        assert (tmp_path / "report.html").is_file()
        with pytest.raises(UsageError), workplace(tmp_path):  # the refused one did not let go of the lock
            pass
    with workplace(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="kills itself by a signal")
def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom mlflow_lipschitz.pipeline.workplace import workplace\n"
        "with workplace(sys.argv[1]):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parent.parent.parent)
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": root})
    assert ended.returncode == -9
    assert (tmp_path / LOCK_FILE).is_file()
    with workplace(tmp_path):
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_another_process_is_refused(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom mlflow_lipschitz.errors import UsageError\n"
        "from mlflow_lipschitz.pipeline.workplace import workplace\n"
        "try:\n    with workplace(sys.argv[1]): pass\nexcept UsageError:\n    sys.exit(9)\n"
    )
    root = str(Path(__file__).parent.parent.parent)
    with workplace(tmp_path):
        ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": root})
    assert ended.returncode == 9


def test_without_out_an_empty_directory_does_not_stay() -> None:
    with workplace(None) as empty:
        assert empty.is_dir()
    assert not empty.exists()
    with workplace(None) as used:
        (used / "report.html").write_text("kept")
    assert (used / "report.html").is_file()
    (used / "report.html").unlink()
    used.rmdir()


def test_a_directory_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used"), workplace(tmp_path / "file"):
        pass
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UsageError, match=r"holds report\.html, which cannot be removed"), workplace(tmp_path):
        pass
