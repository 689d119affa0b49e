"""The places of versions that were registered since a server started, told by each of its workers to all the others.

An upload that follows a registration would be a fifth slower if it had to ask the database which versions are new. So the workers
share a file: who registered a version adds a line, and who is asked to write a file first reads what was added.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

from mlflow_lipschitz_gate.places import Key, key_if_possible

VARIABLE = "_LIPSCHITZ_GATE_REGISTRATIONS"
START = 8
_log = logging.getLogger(__name__)
_inserted: ContextVar[list[str] | None] = ContextVar("inserted", default=None)


def share_registrations() -> None:
    """Make the file, unless a process that started this one has. Called where `mlflow server` imports the app."""
    if not os.environ.get(VARIABLE):
        os.environ[VARIABLE] = _new_file()


def _new_file() -> str:
    descriptor, name = tempfile.mkstemp(prefix="lipschitz-gate-")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(os.urandom(START))
    owner = os.getpid()

    @atexit.register
    def _remove() -> None:
        if os.getpid() == owner:
            with contextlib.suppress(OSError):
                Path(name).unlink()

    return name


class Registrations:
    """The shared file: a stamp that changes with every announcement, and from `START` on one line for each.

    Whether there is anything new is asked three times for each upload, so it is asked in memory.
    """

    def __init__(self) -> None:
        """Open what `share_registrations` made."""
        share_registrations()
        try:
            self._open(os.environ[VARIABLE])
        except (OSError, ValueError):
            # Something tidied up the folder of temporary files, or gunicorn changed the user.
            self._open(_new_file())
            _log.warning(
                "workers of this server hear of each other's registrations by the database only, a second later"
            )

    def _open(self, name: str) -> None:
        self._reader = open(name, "rb", buffering=0)  # noqa: SIM115 - open as long as the process is
        self._writer = open(name, "ab", buffering=0)  # noqa: SIM115
        with open(name, "r+b") as stream:
            self.stamp = mmap.mmap(stream.fileno(), START)  # what changes after each announcement

    @property
    def end(self) -> int:
        """Where the next announcement will be."""
        return os.fstat(self._reader.fileno()).st_size

    def announce(self, uris: Sequence[str]) -> None:
        """Tell all workers that versions with files at `uris` were registered."""
        lines = "".join(json.dumps(_known_key(uri)) + "\n" for uri in uris).encode()
        try:
            # At once and at the end, so that no two workers' lines mix.
            if self._writer.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.stamp[:START] = os.urandom(START)
        except OSError as error:
            # The version is registered, so the request has succeeded. The database tells the same, a second later.
            _log.warning("workers hear late of files that are now frozen: %s", error)

    def since(self, position: int) -> tuple[list[Key | None], int]:
        """What was announced from `position` on, and where that ends. None stands for what only the database can tell."""
        data = b""
        # Not seek and read: workers that gunicorn forked after loading the app share one position.
        while chunk := os.pread(self._reader.fileno(), 1 << 20, position + len(data)):
            data += chunk
        whole = data[: data.rfind(b"\n") + 1]
        return [_read(line) for line in whole.splitlines()], position + len(whole)


@contextlib.contextmanager
def announcing(registrations: Registrations) -> Iterator[None]:
    """Announce each version that is written to the database inside, when it has been."""
    uris: list[str] = []
    token = _inserted.set(uris)
    try:
        yield
    finally:
        _inserted.reset(token)
    registrations.announce(uris)


@sqlalchemy.event.listens_for(SqlModelVersion, "after_insert")
def _note(_mapper: Any, _connection: Any, version: SqlModelVersion) -> None:
    # What is stored is seen as it is stored; to read it back would cost a query.
    if (uris := _inserted.get()) is not None:
        uris.append(version.storage_location or version.source or "")


def _known_key(uri: str) -> Key | None:
    # Finding the place of a run takes a query, which is left to whoever needs the answer.
    if uri.startswith("runs:"):
        return None
    try:
        return key_if_possible(uri)
    except MlflowException:
        return None  # a run in another spelling, and a database that does not answer: the version is registered all the same


def _read(line: bytes) -> Key | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, str) else None
