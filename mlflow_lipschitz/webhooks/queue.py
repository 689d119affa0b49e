"""Deliveries on disk: what was acknowledged is worked on, whatever happens to the process in between."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.webhooks.deliveries import Delivery

_TABLE = """
create table if not exists deliveries (
    id text primary key, event text not null, job text not null, state text not null default 'waiting', received real not null,
    not_before real not null default 0, tries integer not null default 0, outcome text
)"""
_KEPT_SECONDS = 30 * 86400.0


class Queue:
    """A queue in one SQLite file. Every call opens the file anew, so threads and processes may share it.

    A delivery is `waiting`, `running` or `done`; its id is the key, so a second one with the same id changes nothing.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or make the file. Raises UsageError when it cannot be used."""
        self._path = str(path)
        try:
            with self._connection() as connection:
                connection.execute("pragma journal_mode = wal")
                connection.execute(_TABLE)
                connection.execute("delete from deliveries where state = 'done' and received < ?", [_oldest()])
        except sqlite3.Error as error:
            raise UsageError(
                f"the queue {self._path} cannot be used: {error}. Give another file: --queue FILE"
            ) from error

    def add(self, delivery: Delivery) -> bool:
        """Keep a delivery; False when it is here already. It is on the disk when this returns."""
        row = delivery.id, delivery.event, delivery.to_json(), time.time()
        with self._connection() as connection:
            done = connection.execute(
                "insert or ignore into deliveries (id, event, job, received) values (?, ?, ?, ?)", row
            )
            return done.rowcount == 1

    def take(self, event: str) -> Delivery | None:
        """The delivery of this event that has waited longest and may be worked on now, from then on `running`."""
        with self._connection() as connection:
            connection.execute("begin immediate")
            row = connection.execute(
                "select id, job from deliveries where event = ? and state = 'waiting' and not_before <= ? "
                "order by received, rowid limit 1",
                [event, time.time()],
            ).fetchone()
            if row is None:
                return None
            connection.execute("update deliveries set state = 'running', tries = tries + 1 where id = ?", [row[0]])
        return Delivery.from_json(*row)

    def finish(self, delivery: Delivery, outcome: str) -> None:
        """It has been worked on."""
        with self._connection() as connection:
            connection.execute("update deliveries set state = 'done', outcome = ? where id = ?", [outcome, delivery.id])

    def postpone(self, delivery: Delivery, seconds: float, reason: str) -> None:
        """Try again later."""
        with self._connection() as connection:
            connection.execute(
                "update deliveries set state = 'waiting', not_before = ?, outcome = ? where id = ?",
                [time.time() + seconds, reason, delivery.id],
            )

    def tries(self, delivery: Delivery) -> int:
        """How often it was taken."""
        with self._connection() as connection:
            return int(connection.execute("select tries from deliveries where id = ?", [delivery.id]).fetchone()[0])

    def restart(self, event: str | None = None) -> int:
        """Put back what was being worked on (of one event) when a process or a worker broke off; how many.

        Working on one twice does no harm.
        """
        back = "update deliveries set state = 'waiting' where state = 'running' and (? is null or event = ?)"
        with self._connection() as connection:
            return connection.execute(back, [event, event]).rowcount

    def counts(self) -> dict[str, int]:
        """State -> number of deliveries."""
        with self._connection() as connection:
            return dict(connection.execute("select state, count(*) from deliveries group by state").fetchall())

    def outcomes(self) -> dict[str, str | None]:
        """Id -> outcome of what is done."""
        with self._connection() as connection:
            return dict(connection.execute("select id, outcome from deliveries where state = 'done'").fetchall())

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=30)
        try:
            # An acknowledged delivery has to survive a power cut.
            connection.execute("pragma synchronous = full")
            with connection:
                yield connection
        finally:
            connection.close()


def _oldest() -> float:
    return time.time() - _KEPT_SECONDS
