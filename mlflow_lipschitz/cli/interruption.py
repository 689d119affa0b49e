"""Signals that end an audit in good order: finished rows are kept and the run is marked KILLED."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ASKS_TO_END = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def orderly_end() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt in the block when a signal asks the process to end; yields a function that raises it again.

    Python drops an exception that is raised inside a finalizer or a callback from C, and with it the wish to end; whoever
    works for long calls the function now and then. Cleaning up is interrupted by another Ctrl-C only: what sends SIGTERM
    usually sends it again before it kills.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        first = not asked
        asked.append(number)
        if first or number == signal.SIGINT:
            raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {}
    for name in _ASKS_TO_END:
        number = getattr(signal, name, None)
        # nohup and shells that put work into the background have a signal ignored, and mean it.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, end)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
