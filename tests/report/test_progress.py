"""Progress: a bar where somebody watches, a few lines in a log, and nothing else; with the time that is left."""

from __future__ import annotations

import io
import math
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from mlflow_lipschitz.report.progress import Pace, duration, progress, shows_bar

ROOT = Path(__file__).parents[2]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """Seconds that go by only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log(*reports: tuple[float, int, int, float]) -> list[str]:
    """Lines of a log after reports, each at a time."""
    stream, clock = io.StringIO(), Clock()
    with progress("certifying", Console(file=stream, width=20), clock) as report:
        for at, done, total, gap in reports:
            clock.now = 100.0 + at
            report(done, total, gap)
    return stream.getvalue().splitlines()


def test_a_log_gets_few_lines_and_the_time_left() -> None:
    lines = log((0, 0, 200, math.inf), *((n, n, 200, 1 / n) for n in range(1, 201)))
    assert len(lines) == 10
    assert lines[0] == "certifying: 20/200 rows, gap 0.05, 3 min 00 s left"
    assert lines[-1] == "certifying: 200/200 rows, gap 0.005, 3 min 20 s"


def test_rows_from_before_do_not_count_as_speed() -> None:
    lines = log((0, 100, 200, 0.5), (60, 120, 200, 0.5))
    assert lines == [
        "certifying: 100/200 rows were finished before, gap 0.5",
        "certifying: 120/200 rows, gap 0.5, 4 min 00 s left",
    ]


def test_what_is_not_known_is_not_said() -> None:
    assert log((0, 0, 0, math.inf), (3, 4, 4, math.inf)) == ["certifying: 4/4 rows, 3 s"]
    assert Pace(0.0, 3).left(50.0, 3, 9) == math.inf


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (math.inf, "–"),
        (math.nan, "–"),
        (0.0, "0 s"),
        (59.2, "1 min 00 s"),
        (3599.5, "1 h 00 min"),
        (7325.0, "2 h 02 min"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("value", ["true", "1", "woodpecker"])
def test_a_ci_system_that_pretends_to_be_a_terminal_gets_lines(value: str) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert shows_bar(terminal, {"TERM": "xterm"})
    assert not shows_bar(terminal, {"TERM": "xterm", "CI": value})
    assert shows_bar(terminal, {"CI": "false"})
    assert not shows_bar(Console(file=io.StringIO()), {})
    assert not shows_bar(Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"}), {})


class Terminal:
    """A child on a pseudo-terminal of its own, as in a window: what it shows, and keys for it."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.shown = ""
        self._ours, theirs = os.openpty()
        clean = {name: value for name, value in os.environ.items() if name != "CI"}
        settings = {**clean, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", **environment}
        # A session with that terminal: only then does a key become a signal.
        start = (
            "import fcntl, os, sys, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self._child = subprocess.Popen(
            [sys.executable, "-c", start, *command],
            **{"stdin": theirs, "stdout": subprocess.PIPE, "stderr": theirs},
            env=settings,
            start_new_session=True,
        )
        os.close(theirs)

    def until(self, text: str, seconds: float = 240.0) -> None:
        """Wait until `text` was shown, or the child has ended."""
        while text not in self.plain and select.select([self._ours], [], [], seconds)[0]:
            try:
                content = os.read(self._ours, 4096)
            except OSError:  # the other end is closed
                return
            self.shown += content.decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    @property
    def plain(self) -> str:
        return ESCAPES.sub("", self.shown)

    def end(self) -> tuple[int, str]:
        """Exit code, and what it wrote to stdout."""
        self.until("\0never shown\0")
        answer, _ = self._child.communicate(timeout=60)
        os.close(self._ours)
        return self._child.returncode, answer.decode()


BAR = """
import math, time
from mlflow_lipschitz.report.progress import progress
clock = iter(range(0, 1000, 10))
with progress("certifying", clock=lambda: next(clock)) as report:
    for done in range(0, 5):
        report(done, 4, 0.25 / done if done else math.inf)
        time.sleep(0.3)  # rich draws ten times a second
print("the answer")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_terminal_shows_a_bar_with_rows_gap_and_time_left() -> None:
    terminal = Terminal([sys.executable, "-c", BAR])
    code, answer = terminal.end()
    assert (code, answer) == (0, "the answer\n")
    for text in ("certifying", "━", "0/4", "2/4", "gap 0.125", "20 s left", "10 s left"):
        assert text in terminal.plain, text
    assert terminal.shown.endswith("\x1b[2K") or "\x1b[2K" in terminal.shown[-40:]  # the bar is gone at the end


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_terminal_in_ci_shows_lines() -> None:
    terminal = Terminal([sys.executable, "-c", BAR], CI="true")
    assert terminal.end()[0] == 0
    assert terminal.plain.replace("\r", "").splitlines() == [
        "certifying: 1/4 rows, gap 0.25, 30 s left",
        "certifying: 2/4 rows, gap 0.125, 20 s left",
        "certifying: 3/4 rows, gap 0.0833, 10 s left",
        "certifying: 4/4 rows, gap 0.0625, 40 s",
    ]
    assert "\x1b[2K" not in terminal.shown


NOTEBOOK = """
import math
from mlflow_lipschitz.report.progress import progress
with progress("certifying") as report:
    for done in range(0, 5):
        report(done, 4, 0.25 / done if done else math.inf)
"""


def in_a_notebook(code: str) -> tuple[str, list[str]]:
    """What a kernel displayed, as plain text, and the types of its messages."""
    from jupyter_client.manager import KernelManager

    # The path of a socket may not be long, as that of a test's own folder often is.
    folder = Path(tempfile.mkdtemp())
    manager = KernelManager(transport="ipc", ip=str(folder / "k")) if sys.platform != "win32" else KernelManager()
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    manager.start_kernel(env={**environment, "PYTHONPATH": str(ROOT)})
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        asked, shown, kinds = client.execute(code), "", list[str]()
        while True:
            message = client.get_iopub_msg(timeout=120)
            content = message["content"]
            kinds.append(message["msg_type"])
            shown += content.get("text", "") + content.get("data", {}).get("text/plain", "")
            shown += "\n".join(content.get("traceback", ()))
            idle = message["msg_type"] == "status" and content["execution_state"] == "idle"
            if idle and message["parent_header"].get("msg_id") == asked:
                return ESCAPES.sub("", shown), kinds
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_notebook_shows_a_bar_that_is_redrawn() -> None:
    shown, kinds = in_a_notebook(NOTEBOOK)
    assert "certifying ━" in shown
    assert "4/4 gap 0.0625" in shown
    assert "clear_output" in kinds


def test_a_notebook_that_cannot_redraw_gets_lines() -> None:
    without = (
        "import importlib.util, mlflow_lipschitz.report.progress as module\nmodule.find_spec = lambda name: None\n"
    )
    shown, kinds = in_a_notebook(without + NOTEBOOK)
    assert "certifying: 4/4 rows, gap 0.0625" in shown
    assert "clear_output" not in kinds
