"""Which places hold files of registered versions. Those files are evidence: they are read, and never written again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.server import handlers
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from mlflow_lipschitz_gate.places import Key, Places, key_if_possible, key_of_path, whole_stores
from mlflow_lipschitz_gate.refusals import denied
from mlflow_lipschitz_gate.registrations import START, Registrations

# How long another machine's registration may go unnoticed: less than any audit takes, and only audited files matter.
_SECONDS = 1.0
# How long after the last write a worker still keeps up with the database, so that the next one need not wait for it.
_AWAKE_SECONDS = 600.0
_VERSIONS = SqlModelVersion.__table__.c
_ALIVE = _VERSIONS.current_stage != STAGE_DELETED_INTERNAL
_STATE = sqlalchemy.select(
    sqlalchemy.func.count(),
    sqlalchemy.func.max(_VERSIONS.creation_time),
    sqlalchemy.func.sum(_VERSIONS.creation_time),
).where(_ALIVE)
_LOCATIONS = sqlalchemy.select(_VERSIONS.storage_location, _VERSIONS.source).where(_ALIVE).distinct()


@dataclass(slots=True)
class Write:
    """A write or a deletion that is asked about before, while and after it happens. Finding its place is done once."""

    frozen: FrozenPlaces
    target: Key
    what: str

    @property
    def is_clear(self) -> bool:
        """Whether it touches nothing for sure, and asking took no look at the database."""
        frozen = self.frozen
        return frozen.is_fresh() and not frozen.places.touched_by(self.target)

    def refuse(self) -> None:
        """Raise MlflowException (403) when it touches a place of a registered version."""
        if self.frozen.touched_by(self.target):
            raise denied(
                self.what,
                ["these are files of a registered model version, which do not change after registration"],
                "Log the model anew, register that, and audit it: mlflow-lipschitz audit models:/NAME/VERSION --policy "
                "POLICY.yaml --data ROWS --sign-key KEY.pem\n"
                "then: mlflow-lipschitz promote models:/NAME/VERSION --alias ALIAS",
            )

    def after(self) -> None:
        """To be called when it is done: a slow one may have ended after its place was frozen and looked at.

        Every protected place that a version of these files holds is looked at again. Raises MlflowException (403) then.
        """
        if touched := self.frozen.touched_by(self.target):
            self.frozen.look_again(touched)
            self.refuse()


class FrozenPlaces:
    """The places of all registered versions: told by the workers of this machine, and read from the database beside the requests.

    Args:
        registrations: what the workers of this machine tell each other.
        stores: URIs of stores beside the server's own. A store as a whole is no place of a version: whoever registers one
            would stop everybody's uploads.
        look_again: called with the name of each registered model whose files were changed by a write that began before
            they were frozen.
    """

    def __init__(
        self,
        registrations: Registrations,
        stores: Sequence[str] = (),
        look_again: Callable[[str], None] | None = None,
    ) -> None:
        # The first is held during a look at the database, the second never for long: the event loop may wait for it.
        self._looking, self._hearing = threading.Lock(), threading.Lock()
        self._registrations = registrations
        self._stores, self._look_again = tuple(stores), look_again
        self.places = Places((), frozenset())  # as they are known now
        self._keys: dict[str, Key | None] = {}
        self._looked_at = self._asked_at = float("-inf")
        self._seen: Any = None
        # What was announced before is in the database, which the first question reads.
        self._heard, self._stamp = registrations.end, b""
        self._shared_stamp = registrations.stamp
        self._awake = False

    def write(self, root: str, path: str, action: str) -> Write:
        """What is about to be written or deleted: `path` in the repository at `root`."""
        self._stay_awake()
        return Write(self, key_of_path(root, path), f"{action} {path or root}")

    def touched_by(self, target: Key) -> set[Key]:
        """The places that a change at `target` touches: those above it, itself, and those below it."""
        if not self.is_fresh():
            self._look(_SECONDS)
        return self.places.touched_by(target)

    def look_again(self, touched: set[Key]) -> None:
        """Look at every protected place that versions of these files hold."""
        if self._look_again is not None:
            for name in sorted(self._names_at(touched)):
                self._look_again(name)

    def _names_at(self, places: set[Key]) -> set[str]:
        store: Any = handlers._get_model_registry_store()
        with store.ManagedSessionMaker(read_only=False) as session:
            rows = session.query(SqlModelVersion.name, SqlModelVersion.storage_location, SqlModelVersion.source).filter(
                SqlModelVersion.current_stage != STAGE_DELETED_INTERNAL
            )
            return {name for name, location, source in rows if key_if_possible(location or source or "") in places}

    def is_fresh(self) -> bool:
        """Whether asking now takes no look at the database."""
        if self._shared_stamp[:START] != self._stamp:
            with self._hearing:
                self._hear(self._heard, self.places)
        return time.monotonic() - self._looked_at < _SECONDS

    def _hear(self, position: int, *into: Places) -> bool:
        """Add what was announced from `position` on, and say whether that was everything. To be called with the lock."""
        # Read first: what is announced meanwhile changes it again.
        stamp = self._shared_stamp[:START]
        keys, end = self._registrations.since(position)
        for places in into:
            for key in keys:
                if key is not None:
                    places.add(key)
        if keys:
            # The next look reads all places: this version may be deleted by then, and the counts be as they were.
            self._seen = None
        if None in keys:
            self._looked_at = float("-inf")
        self._heard, self._stamp = end, stamp  # last: who finds nothing new to hear takes no lock
        return None not in keys

    def _look(self, older_than: float) -> None:
        """Look at the database, unless the last look is not `older_than` seconds old."""
        with self._looking:
            if time.monotonic() - self._looked_at < older_than:
                return
            begun = time.monotonic()
            with self._hearing:
                self._hear(self._heard, self.places)
                position = self._heard
            seen, places = self._read()
            with self._hearing:
                # What was told meanwhile may or may not be among what was read. Others ask the old places until the end.
                complete = self._hear(position, places, self.places)
                self.places = places
                self._seen = seen if self._heard == position else None
                if complete:
                    self._looked_at = begun

    def _read(self) -> tuple[Any, Places]:
        try:
            store: Any = handlers._get_model_registry_store()
        except UnsupportedModelRegistryStoreURIException:
            return None, Places((), frozenset())  # a server without a registry has no registered versions
        # Plain SQL, on the database that is written to: this is asked twice a second while files are uploaded.
        with store.engine.connect() as connection:
            seen = tuple(connection.execute(_STATE).one())
            if seen == self._seen:
                return seen, self.places
            rows = connection.execute(_LOCATIONS).all()
        uris = {location or source for location, source in rows if location or source}
        self._keys = {uri: self._keys.get(uri) or key_if_possible(uri) for uri in uris}
        return seen, Places(filter(None, self._keys.values()), self._whole_stores)

    @cached_property
    def _whole_stores(self) -> frozenset[Key]:
        return whole_stores(self._stores)

    def _stay_awake(self) -> None:
        self._asked_at = time.monotonic()
        if self._awake:
            return
        with self._hearing:
            if not self._awake:
                self._awake = True
                try:
                    threading.Thread(target=self._keep_up, name="lipschitz-gate", daemon=True).start()
                except RuntimeError:
                    self._awake = False  # no thread to be had: requests look for themselves

    def _keep_up(self) -> None:
        """Look ahead of the requests, so that none waits for the database, until there have been none for a while."""
        while time.monotonic() - self._asked_at < _AWAKE_SECONDS:
            time.sleep(_SECONDS / 2)
            # A request that comes when this failed looks for itself, and says what is wrong.
            with contextlib.suppress(Exception):
                self._look(_SECONDS / 2)
        self._awake = False
