"""Zip archives of unknown origin, read into memory without unfolding to more than was allowed.

Python's zipfile believes what an archive says of itself: it reads a directory of any length, and unfolds a record as far as
it goes before cutting it to the declared size. Here declared sizes are compared with limits first, and records are unfolded
piece by piece, so that a false declaration is found out before it costs anything.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from mlflow_lipschitz.safe_loading.structure import Unexpected

SMALL = 64 << 20
"""Bytes that any archive may unfold to."""

RATIO = 8
"""How many times its own size a larger archive may unfold to; weights and measured rows hardly compress at all."""

_SPARSE, _ROWS = 64, 512 << 20
_DIRECTORY = 8 << 20
_PIECE = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_records(path: Path, *, ratio: int = RATIO, small: int = SMALL) -> dict[str, bytes]:
    """The archive's records by name, folders left out.

    Raises:
        Unexpected: no zip archive; a name twice; a record that is encrypted or compressed in another way
            than by deflate; a directory or contents beyond the limits; a record of another size than it declares.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(_Metered(stream)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            _check_declared(infos, max(small, ratio * path.stat().st_size))
            return {info.filename: _unfolded(archive, info) for info in infos}
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, Unexpected):
            raise
        raise Unexpected(f"no zip archive ({error})") from error


def stored(records: dict[str, bytes]) -> io.BytesIO:
    """A new archive of these records, not compressed: what was checked is then, byte for byte, what another reader reads."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def _check_declared(infos: list[zipfile.ZipInfo], limit: int) -> None:
    if len({info.filename for info in infos}) != len(infos):
        raise Unexpected("two records with one name")
    for info in infos:
        if info.compress_type not in _METHODS or info.flag_bits & 1:
            raise Unexpected(f"{info.filename[:80]}: a record that is encrypted or compressed in an unusual way")
    declared = sum(info.file_size for info in infos)
    if declared > limit:
        raise Unexpected(
            f"records larger than the file allows: they unfold to {declared} bytes, and the limit is {limit}"
        )


def _unfolded(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    pieces, size = [], 0
    with archive.open(info) as stream:
        # Asked for a number of bytes, zlib unfolds no more than that; asked for all, it would unfold all.
        while piece := stream.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
    if size != info.file_size:
        raise Unexpected(f"{info.filename[:80]}: a record of {size} bytes that declares {info.file_size}")
    return b"".join(pieces)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name.

    Measured rows may be mostly zeros, so they may unfold further than a model does.

    Raises Unexpected, a ValueError, for a file that is none, is beyond the limits, or holds Python objects; OSError when it
    cannot be read.
    """
    arrays = {}
    for name, content in read_records(path, ratio=_SPARSE, small=_ROWS).items():
        check_array(content)
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        arrays[name.removesuffix(".npy")] = array
    return arrays


def check_array(content: bytes) -> None:
    """Raise Unexpected unless an .npy record declares exactly the bytes that it holds, of plain numbers or text.

    NumPy makes room for the declared shape before it reads.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(stream)
    except (ValueError, KeyError, RecursionError, TypeError, MemoryError) as error:
        raise Unexpected(f"an array that cannot be read ({error})") from error
    if dtype.hasobject:
        raise Unexpected("an array of Python objects, which is read by pickle and so refused (allow_pickle)")
    declared = math.prod(shape) * dtype.itemsize
    if declared != len(content) - stream.tell():
        raise Unexpected(f"an array that declares {declared} bytes and holds {len(content) - stream.tell()}")


class _Metered(io.BufferedIOBase):
    """A file that refuses to be read in one piece larger than a zip directory may be."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _DIRECTORY:
            raise Unexpected(f"a directory of {size} bytes, where {_DIRECTORY} are allowed")
        return self._stream.read(_DIRECTORY if size is None or size < 0 else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
