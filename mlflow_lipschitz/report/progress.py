"""Progress of long work, on stderr so that stdout stays the answer: a bar for people who watch, few plain lines for logs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[int, int, float], None]
"""Called with (rows done, rows in all, median gap of the finished rows), first with the rows that were done before."""

_LINES = 10
"""A log gets at most this many lines, besides one on the rows that were done before."""


@dataclass(frozen=True)
class Pace:
    """How fast the work goes: since when, and what was done before; seconds of any clock."""

    begun: float
    before: int

    def left(self, now: float, done: int, total: int) -> float:
        """Seconds the rest takes if it goes on like this; infinite before anything was done."""
        new = done - self.before
        return (now - self.begun) / new * (total - done) if new > 0 else math.inf


@contextmanager
def progress(
    title: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Report]:
    """Show `title` and what is reported until the block ends: a bar on a terminal or in a notebook, lines elsewhere.

    Args:
        clock: seconds; only differences count.
    """
    console = console or Console(stderr=True)
    if not shows_bar(console, os.environ):
        yield _lines(title, console, clock)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("gap {task.fields[gap]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # A notebook keeps what was printed; a terminal is left to the answer.
    with Progress(*columns, console=console, transient=not console.is_jupyter) as bar:
        yield _bar(title, bar, clock)


def shows_bar(console: Console, environment: Mapping[str, str]) -> bool:
    """Whether somebody watches a place that can be redrawn. CI systems may pretend to be a terminal, so `CI` decides."""
    if environment.get("CI", "").lower() not in ("", "0", "false"):
        return False
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None  # which rich needs to redraw
    return console.is_terminal and not console.is_dumb_terminal


def duration(seconds: float) -> str:
    """`1 h 05 min`, `3 min 20 s` or `12 s`; `–` for what is not known."""
    if not math.isfinite(seconds):
        return "–"
    whole = math.ceil(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def _bar(title: str, bar: Progress, clock: Callable[[], float]) -> Report:
    task, paces = bar.add_task(title, total=None, gap="–", left=""), list[Pace]()

    def report(done: int, total: int, gap: float) -> None:
        now = clock()
        paces[:] = paces or [Pace(now, done)]
        left = duration(paces[0].left(now, done, total))
        bar.update(task, completed=done, total=total, gap=_gap(gap), left=f"{left} left")
        if bar.console.is_jupyter:  # where rich draws nothing at the end
            bar.refresh()

    return report


@dataclass(frozen=True)
class _Printed:
    """What a log was told: the tenths that were done at the last line."""

    pace: Pace
    tenths: int


def _lines(title: str, console: Console, clock: Callable[[], float]) -> Report:
    said = list[_Printed]()

    def report(done: int, total: int, gap: float) -> None:
        now, tenths = clock(), _LINES * done // total if total else 0
        if not said:
            said.append(_Printed(Pace(now, done), tenths))
            if done:
                _print(console, f"{title}: {done}/{total} rows were finished before{_told(gap)}")
        elif tenths > said[0].tenths:
            said[0] = replace(said[0], tenths=tenths)
            left = said[0].pace.left(now, done, total)
            rest = f", {duration(left)} left" if done < total else f", {duration(now - said[0].pace.begun)}"
            _print(console, f"{title}: {done}/{total} rows{_told(gap)}{rest}")

    return report


def _gap(gap: float) -> str:
    return f"{gap:.3g}" if math.isfinite(gap) else "–"


def _told(gap: float) -> str:
    return f", gap {_gap(gap)}" if math.isfinite(gap) else ""


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
