"""Eight bytes that every worker of a server sees: they change whenever a version was registered.

Asking the database at every upload whether a version is new would cost more than the upload. So the workers share a small
file, mapped into memory, and ask the database when it has changed, and once a second for servers on other machines.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import tempfile
from pathlib import Path

VARIABLE = "_LIPSCHITZ_GATE_GENERATION"
_SIZE = 8


def share_generation() -> None:
    """Make the file, unless a process that started this one has. Called where `mlflow server` imports the app."""
    if os.environ.get(VARIABLE):
        return
    descriptor, name = tempfile.mkstemp(prefix="lipschitz-gate-")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(os.urandom(_SIZE))
    os.environ[VARIABLE] = name
    owner = os.getpid()

    @atexit.register
    def _remove() -> None:
        if os.getpid() == owner:
            with contextlib.suppress(OSError):
                Path(name).unlink()


class Generation:
    """The shared bytes. Reading them costs less than a microsecond."""

    def __init__(self) -> None:
        """Open what `share_generation` made."""
        share_generation()
        try:
            with open(os.environ[VARIABLE], "r+b") as stream:
                self._bytes = mmap.mmap(stream.fileno(), _SIZE)
        except (OSError, ValueError):
            # Something tidied up the folder of temporary files. Alone, this worker asks the database once a second.
            self._bytes = mmap.mmap(-1, _SIZE)

    @property
    def value(self) -> bytes:
        return self._bytes[:_SIZE]

    def change(self) -> None:
        """Tell all workers that a version was registered."""
        self._bytes[:_SIZE] = os.urandom(_SIZE)
