"""The directory an audit writes to: one audit at a time, and nothing left in it that an earlier one concluded."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.mlflow_plugin.logging import ARTIFACTS
from mlflow_lipschitz.pipeline.partial import PARTIAL_FILES
from mlflow_lipschitz.registry import tags

LOCK_FILE = ".mlflow-lipschitz.lock"


@contextmanager
def workplace(out: str | Path | None) -> Iterator[Path]:
    """`out` (a new temporary directory when None), held until the block ends and rid of an earlier audit's results.

    Whatever happens to this audit, a report of the one before it must not be read as its outcome. The journal of finished
    rows stays, for `resume`, and so does policy.yaml, which is no outcome and may be the very file this audit was started
    with.

    Raises:
        UsageError: another audit holds the directory, or it cannot be written to.
    """
    directory = Path(tempfile.mkdtemp(prefix="mlflow-lipschitz-audit-")) if out is None else Path(out)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(directory / LOCK_FILE)
    except OSError as error:
        raise UsageError(f"--out {directory} cannot be used: {error.strerror}") from error
    try:
        _clear(directory)
        yield directory
    finally:
        # Removed while still held; Windows cannot, and there a leftover file that nobody holds does no harm.
        with suppress(OSError):
            (directory / LOCK_FILE).unlink()
        os.close(descriptor)
        if out is None:
            with suppress(OSError):  # not empty: that is where the artifacts are
                directory.rmdir()


def _clear(directory: Path) -> None:
    try:
        for name in (*ARTIFACTS, *PARTIAL_FILES):
            if name != tags.POLICY_FILE:
                (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--out {directory} holds {name}, which cannot be removed: {error.strerror}") from error


def _locked(path: Path) -> int:
    """Descriptor of the locked file. The system lets go of the lock of a process that died, so none is ever stale."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
            if _is_still(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()}\n".encode())
                return descriptor
        except (BlockingIOError, PermissionError):
            holder = _holder(descriptor)
            os.close(descriptor)
            raise UsageError(
                f"another audit{holder} is writing to {path.parent}: wait for it, or give another --out"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one at `path`: the holder before us removed its file, perhaps after we opened it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    with suppress(OSError, UnicodeDecodeError):
        text = os.read(descriptor, 40).decode("ascii").strip()
        return f" ({text})" if text else ""
    return ""
