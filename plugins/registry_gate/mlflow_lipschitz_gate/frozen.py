"""Which places hold files of registered versions. Those files are evidence: they are read, and never written again."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

import sqlalchemy
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.exceptions import MlflowException
from mlflow.server import handlers
from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, ARTIFACTS_DESTINATION_ENV_VAR
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from mlflow_lipschitz_gate.generation import Generation
from mlflow_lipschitz_gate.refusals import denied
from mlflow_lipschitz_gate.storage import without_run

# A place as text: scheme, host and path, without a slash at its end.
Key = str
# How long another machine's registration may go unnoticed: less than any audit takes, and only audited files matter.
_SECONDS = 1.0
_VERSIONS = SqlModelVersion.__table__.c
_ALIVE = _VERSIONS.current_stage != STAGE_DELETED_INTERNAL
_STATE = sqlalchemy.select(
    sqlalchemy.func.count(),
    sqlalchemy.func.max(_VERSIONS.creation_time),
    sqlalchemy.func.sum(_VERSIONS.creation_time),
).where(_ALIVE)
_LOCATIONS = sqlalchemy.select(_VERSIONS.storage_location, _VERSIONS.source).where(_ALIVE).distinct()


def key_of(uri: str) -> Key:
    """The place behind a URI, one text for all its spellings: proxied, local, percent-encoded, with links or dots."""
    with contextlib.suppress(MlflowException):  # a run that is gone keeps no files to protect
        uri = without_run(uri)
    parts = urlsplit(uri)
    scheme = parts.scheme.lower()
    if scheme in ("http", "https", "mlflow-artifacts") and handlers._is_servable_proxied_run_artifact_root(uri):
        anchor = "/mlflow-artifacts/artifacts/"
        path = parts.path.partition(anchor)[2] if scheme != "mlflow-artifacts" else parts.path
        return key_of_path(os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR, ""), path.lstrip("/"))
    return key_of_path(uri, "")


def key_of_path(root: str, path: str) -> Key:
    """The place of `path` in the repository at `root`."""
    if (folder := _local_folder(root)) is not None:
        return "file:" + _resolved(folder, _plain(path)).rstrip("/")
    parts = urlsplit(root)
    joined = posixpath.normpath(posixpath.join("/", _plain(parts.path).lstrip("/"), _plain(path).lstrip("/")))
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{joined}".rstrip("/")


@cache
def _local_folder(root: str) -> str | None:
    """The folder on this disk that a URI names, without links; None when it is elsewhere."""
    if not is_local_uri(root, is_tracking_or_registry_uri=False):
        return None
    return os.path.realpath(local_file_uri_to_path(root))


def _resolved(folder: str, path: str) -> str:
    """`os.path.realpath` of `path` in `folder`, a real path: a second name of a folder, by a link, is no second place.

    The function of the standard library looks at every part from the root of the disk on, which is most of what an upload
    would pay; it is left what is not plain.
    """
    parts, place = path.split("/") if path else [], folder
    if any(part in ("", ".", "..") for part in parts):
        return os.path.realpath(os.path.join(folder, path))
    for number, part in enumerate(parts):
        place = f"{place}/{part}"
        try:
            mode = os.lstat(place).st_mode
        except (OSError, ValueError):
            return "/".join([place, *parts[number + 1 :]])  # what is not there yet has no second name
        if stat.S_ISLNK(mode):
            return os.path.realpath(os.path.join(folder, path))
    return place


def _plain(path: str) -> str:
    while (decoded := unquote(path)) != path:
        path = decoded
    return path


def store_roots(more: Sequence[str]) -> frozenset[Key]:
    """The stores this server guards: the one it keeps artifacts in, the one it serves, and `more`, which are URIs."""
    roots = [*more]
    if own := os.environ.get(ARTIFACT_ROOT_ENV_VAR):
        roots.append(own)
    if handlers._is_serving_proxied_artifacts():
        roots.append("mlflow-artifacts:/")
    return frozenset(key_of(root) for root in roots)


def is_inside(uri: str, more: Sequence[str]) -> bool:
    """Whether `uri` lies in one of these stores, and is not one of them as a whole."""
    roots = store_roots(more)
    return any(above in roots for above in list(_upwards(key_of(uri)))[1:])


@dataclass(frozen=True)
class Write:
    """A write or a deletion that is asked about before, while and after it happens. Finding its place is done once."""

    frozen: FrozenPlaces
    target: Key
    what: str

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
    """The places of all registered versions, read anew when a version was registered, here or on another machine.

    Args:
        generation: what changes at each registration.
        stores: URIs of stores beside the server's own. A store as a whole is no place of a version: whoever registers one
            would stop everybody's uploads.
        look_again: called with the name of each registered model whose files were changed by a write that began before
            they were frozen.
    """

    def __init__(
        self, generation: Generation, stores: Sequence[str] = (), look_again: Callable[[str], None] | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._generation = generation
        self._stores, self._look_again = tuple(stores), look_again
        self._as_of: tuple[bytes, float] = b"", float("-inf")
        self._seen: Any = None
        self._keys: dict[str, Key] = {}
        self._places: tuple[frozenset[Key], frozenset[Key]] = frozenset(), frozenset()

    def write(self, root: str, path: str, action: str) -> Write:
        """What is about to be written or deleted: `path` in the repository at `root`."""
        return Write(self, key_of_path(root, path), f"{action} {path or root}")

    def touched_by(self, target: Key) -> set[Key]:
        """The places that a change at `target` touches: those above it, and those below it."""
        places, above = self._current()
        if target in above:
            return {place for place in places if place.startswith(target + "/")}
        return {parent for parent in _upwards(target) if parent in places} if places else set()

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
            return {name for name, location, source in rows if key_of(location or source or "") in places}

    @property
    def is_fresh(self) -> bool:
        """Whether asking now takes no look at the database."""
        value, read_at = self._as_of
        return value == self._generation.value and time.monotonic() - read_at < _SECONDS

    def _current(self) -> tuple[frozenset[Key], frozenset[Key]]:
        """The places, and the folders above them."""
        if self.is_fresh:
            return self._places
        with self._lock:
            # Noted before the look: what is registered while we look makes the next one look again.
            as_of = self._generation.value, time.monotonic()
            self._places = self._read()
            self._as_of = as_of
            return self._places

    def _read(self) -> tuple[frozenset[Key], frozenset[Key]]:
        try:
            store: Any = handlers._get_model_registry_store()
        except UnsupportedModelRegistryStoreURIException:
            return frozenset(), frozenset()  # a server without a registry has no registered versions
        # Plain SQL, on the database that is written to: this is asked once a second while files are uploaded.
        with store.engine.connect() as connection:
            seen = tuple(connection.execute(_STATE).one())
            if seen == self._seen:
                return self._places
            rows = connection.execute(_LOCATIONS).all()
        uris = {location or source for location, source in rows if location or source}
        self._keys = {uri: self._keys.get(uri) or key_of(uri) for uri in uris}
        self._seen = seen
        whole = {above for root in store_roots(self._stores) for above in _upwards(root)}
        return _with_folders(key for key in self._keys.values() if key not in whole)


def _with_folders(places: Iterable[Key]) -> tuple[frozenset[Key], frozenset[Key]]:
    found = frozenset(places)
    return found, frozenset(above for place in found for above in _upwards(place)) - found


def _upwards(place: Key) -> Iterator[Key]:
    """The place itself and every folder above it."""
    while place:
        yield place
        place = place.rpartition("/")[0]
