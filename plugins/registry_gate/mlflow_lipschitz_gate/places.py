"""Where files are: one text for each place, however it was spelled, and which places lie in which."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import time
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.server import handlers
from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, ARTIFACTS_DESTINATION_ENV_VAR
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from mlflow_lipschitz_gate.storage import without_run

# A place as text: scheme, host and path, without a slash at its end.
Key = str


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


def key_if_possible(uri: str) -> Key | None:
    """`key_of`; None where no file can be: a NUL in a path, brackets that no address has, another machine's disk.

    Whoever registers that must not stop everybody's uploads. No promotion reads it either.
    """
    try:
        return key_of(uri)
    except (ValueError, MlflowException):
        return None


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
    parts = path.split("/") if path else []
    if any(part in ("", ".", "..") for part in parts):
        return os.path.realpath(os.path.join(folder, path))
    if not parts:
        return folder
    try:
        above = _real_path_in("/".join([folder, *parts[:-1]]), int(time.monotonic()))
    except (OSError, ValueError):
        return _walked(folder, parts)  # most of it is not there yet
    return _walked(above, parts[-1:])


@lru_cache(maxsize=256)
def _real_path_in(path: str, _second: int) -> str:
    """The real path of a folder, which is looked at once a second: links are an administrator's. Raises OSError."""
    seen = os.stat(path)
    return _real_folder(path, seen.st_dev, seen.st_ino)


@lru_cache(maxsize=1024)
def _real_folder(path: str, _device: int, _inode: int) -> str:
    """The real path of a folder, for as long as `path` leads to the folder of this number on this device."""
    return os.path.realpath(path)


def _walked(place: str, parts: Sequence[str]) -> str:
    for number, part in enumerate(parts):
        place = f"{place}/{part}"
        try:
            mode = os.lstat(place).st_mode
        except (OSError, ValueError):
            return "/".join([place, *parts[number + 1 :]])  # what is not there yet has no second name
        if stat.S_ISLNK(mode):
            return os.path.realpath("/".join([place, *parts[number + 1 :]]))
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


def whole_stores(more: Sequence[str]) -> frozenset[Key]:
    """The stores this server guards, and everything above them."""
    return frozenset(above for root in store_roots(more) for above in upwards(root))


def is_inside(uri: str, more: Sequence[str]) -> bool:
    """Whether `uri` lies in one of these stores, and is not one of them as a whole."""
    roots = store_roots(more)
    return any(above in roots for above in upwards(key_of(uri))[1:])


class Places:
    """A set of places that tells which of them a change touches. It grows while other threads ask.

    Args:
        found: the places.
        never: places that are not taken in.
    """

    def __init__(self, found: Iterable[Key], never: frozenset[Key]) -> None:
        self._never = never
        self._found: set[Key] = set()
        self._above: set[Key] = set()
        for place in found:
            self.add(place)

    def add(self, place: Key) -> None:
        """Take one more place in, unless it is one of `never`."""
        if place not in self._never and place not in self._found:
            self._above.update(upwards(place)[1:])
            self._found.add(place)

    def touched_by(self, around: Sequence[Key]) -> set[Key]:
        """The places that a change at a target touches, given `upwards(target)`: above it, itself, and below it."""
        if not around or (around[0] not in self._above and self._found.isdisjoint(around)):
            return set()
        # A copy, made at once: another thread may add a place.
        below = {place for place in list(self._found) if place.startswith(around[0] + "/")}
        return below.union(self._found.intersection(around))


def upwards(place: Key) -> tuple[Key, ...]:
    """The place itself and every folder above it."""
    found = []
    while place:
        found.append(place)
        place = place.rpartition("/")[0]
    return tuple(found)
