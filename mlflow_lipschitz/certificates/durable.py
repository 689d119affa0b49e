"""Files that are there whole or not at all, also after a loss of power."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

PARTIAL = ".partial"


def write_durably(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a new file, bring it to the disk, and only then give it its name, replacing what had it.

    An interrupted call leaves `path` as it was, and perhaps a file beside it that ends in `.partial`.

    Raises:
        OSError: there is no room, or the folder cannot be written to.
    """
    partial = path.with_suffix(PARTIAL)
    # A link under this name would have something elsewhere overwritten.
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The new name has to reach the disk as well; Windows has no call for that, and some network disks refuse it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
