"""Where files are: one text for each place, however it was spelled, and which places lie in which."""

from __future__ import annotations

import os
import posixpath
import stat
import threading
import time
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.server import handlers
from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, ARTIFACTS_DESTINATION_ENV_VAR
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from mlflow_lipschitz_gate.storage import without_run

# A place as text: scheme, host and path, without a slash at its end.
Key = str
# No store has longer addresses: 1,024 characters in buckets, 4,096 on disks, 8,000 in HDFS.
_LONGEST = 8192
_AFTER_SLASH = chr(ord("/") + 1)
_GONE = tuple(map(ErrorCode.Name, (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)))


def key_of(uri: str) -> Key:
    """The place behind a URI, one text for all its spellings: proxied, local, percent-encoded, with links or dots."""
    return _key_of_place(_without_run(uri))


def _key_of_place(uri: str) -> Key:
    parts = urlsplit(uri)
    scheme = parts.scheme.lower()
    if scheme in ("http", "https", "mlflow-artifacts") and handlers._is_servable_proxied_run_artifact_root(uri):
        anchor = "/mlflow-artifacts/artifacts/"
        path = parts.path.partition(anchor)[2] if scheme != "mlflow-artifacts" else parts.path
        return key_of_path(os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR, ""), path.lstrip("/"))
    return key_of_path(uri, "")


def key_if_possible(uri: str) -> Key | None:
    """`key_of`; None where no file can be: a NUL in a path, brackets that no address has, another machine's disk, an endless path.

    Whoever registers that must not stop everybody's uploads. No promotion reads it either. Raises MlflowException when the
    database does not tell where a run keeps its files.
    """
    try:
        settled = _without_run(uri)
    except ValueError:
        return None
    try:
        key = _key_of_place(settled)
    except (ValueError, MlflowException):
        return None
    return key if len(key) <= _LONGEST else None


def _without_run(uri: str) -> str:
    try:
        return without_run(uri)
    except MlflowException as error:
        if error.error_code in _GONE:
            return uri  # a run that is gone keeps no files to protect
        raise


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
    return frozenset(above for root in store_roots(more) for above in _upwards(root))


def is_inside(uri: str, more: Sequence[str]) -> bool:
    """Whether `uri` lies in one of these stores, and is not one of them as a whole."""
    roots = store_roots(more)
    key = key_of(uri)
    return any(above in roots for above in _upwards(key) if above != key)


class Places:
    """A set of places that tells which of them a change touches. It grows while other threads ask.

    Args:
        found: the places.
        never: places that are not taken in.
    """

    def __init__(self, found: Iterable[Key], never: frozenset[Key]) -> None:
        self._never, self._lock = never, threading.Lock()
        self._found = set(found) - never
        self._sorted = sorted(self._found)
        self._longest = max(map(len, self._sorted), default=0)

    def add(self, place: Key) -> None:
        """Take one more place in, unless it is one of `never`."""
        if place not in self._never and place not in self._found:
            with self._lock:
                insort(self._sorted, place)
            self._longest = max(self._longest, len(place))
            self._found.add(place)

    def touched_by(self, target: Key) -> set[Key]:
        """The places that a change at `target` touches: those above it, itself, and those below it."""
        touched = self._found.intersection(_upwards(target, self._longest))
        with self._lock:
            begin, end = bisect_left(self._sorted, target + "/"), bisect_left(self._sorted, target + _AFTER_SLASH)
            return touched.union(self._sorted[begin:end]) if begin < end else touched


def _upwards(place: Key, longest: int | None = None) -> Iterator[Key]:
    """The place itself and every folder above it; only those of at most `longest` characters, if that is given."""
    if longest is not None and len(place) > longest:
        # Where every letter is a folder, all of them together are a thousand times what a client sent.
        place = place[: longest + 1].rpartition("/")[0]
    while place:
        yield place
        place = place.rpartition("/")[0]
