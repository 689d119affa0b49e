"""Progress of long work, on stderr so that stdout stays the answer: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int, float], None]
"""Called with (rows done, rows in all, median gap of the finished rows)."""


@contextmanager
def progress(title: str, console: Console | None = None) -> Iterator[Report]:
    """Show `title` and what is reported until the block ends."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total, gap: console.print(f"{title}: {done}/{total} rows, gap {gap:.3g}", highlight=False)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("gap {task.fields[gap]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, gap="–")
        yield lambda done, total, gap: bar.update(task, completed=done, total=total, gap=f"{gap:.3g}")
