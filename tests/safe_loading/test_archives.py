"""Archives are believed only as far as they are checked: by what they declare, and by what they unfold to."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.errors import InvalidData, UntrustedModel
from mlflow_lipschitz.row_files import read_rows
from mlflow_lipschitz.safe_loading.archives import RATIO, SMALL, check_array, read_npz, read_records, stored
from mlflow_lipschitz.safe_loading.skops import load_skops
from mlflow_lipschitz.safe_loading.structure import Unexpected


def archive_of(path: Path, records: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def with_declared_size(path: Path, size: int) -> Path:
    """The archive after every record declares `size` bytes, in its own header and in the directory."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        position = content.find(mark)
        while position >= 0:
            struct.pack_into("<I", content, position + offset, size)
            position = content.find(mark, position + 4)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_honest_archive_is_read(tmp_path: Path, method: int) -> None:
    records = {"a/b": b"x" * 3_000_000, "c": b"", "d": bytes(range(256))}
    assert read_records(archive_of(tmp_path / "a.zip", records, method)) == records
    with zipfile.ZipFile(stored(records)) as copy:
        assert {name: copy.read(name) for name in copy.namelist()} == records


def test_what_declares_too_much_is_not_unfolded(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "bomb.zip", {f"{i}": b"\0" * (SMALL // 4) for i in range(5)})
    assert path.stat().st_size * RATIO < SMALL
    with pytest.raises(Unexpected, match="larger than the file allows"):
        read_records(path)


def test_what_declares_too_little_is_not_unfolded_either(tmp_path: Path) -> None:
    """zipfile, asked for the whole record, unfolds all of it before it cuts it to what was declared."""
    path = with_declared_size(archive_of(tmp_path / "bomb.zip", {"x": b"\0" * 2**26}), 1000)
    with pytest.raises(Unexpected):
        read_records(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unfold_without_a_limit_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(Unexpected, match="unusual way"):
        read_records(archive_of(tmp_path / "a.zip", {"x": b"\0" * 1000}, method))


def test_a_huge_directory_is_not_read(tmp_path: Path) -> None:
    """Eight bytes of declaration would have Python read, and keep, a directory of any length."""
    path = archive_of(tmp_path / "a.zip", {"x": b""})
    content = bytearray(path.read_bytes())
    end = content.rfind(b"PK\x05\x06")
    entry = content[content.find(b"PK\x01\x02") : end]
    many = bytes(entry) * (9 * 2**20 // len(entry))
    tail = bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, 65535, 65535, len(many))
    path.write_bytes(content[: content.find(b"PK\x01\x02")] + many + tail)
    with pytest.raises(Unexpected, match="a directory of"):
        read_records(path)


def test_one_piece_of_data_under_many_names_counts_each_time(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"x": bytes(2**20)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    start, end = content.find(b"PK\x01\x02"), content.rfind(b"PK\x05\x06")
    entries = b"".join(bytes(content[start:end]).replace(b"x", bytes([65 + i])) for i in range(40))
    tail = bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, 40, 40, len(entries))
    path.write_bytes(content[:start] + entries + tail)
    with pytest.raises(Unexpected):
        read_records(path, small=0)


@pytest.mark.parametrize("content", [b"", b"PK", b"hello" * 100, b"PK\x05\x06" + bytes(18)[:10]])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(Unexpected, match="no zip archive"):
        read_records(tmp_path / "a.zip")


def test_a_record_with_another_checksum(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"x": b"weights" * 100}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"weightsweights", b"weightsWeights", 1))
    with pytest.raises(Unexpected, match="CRC"):
        read_records(path)


def test_arrays_declare_what_they_hold() -> None:
    for array in (np.zeros((3, 4)), np.array(["a", "b"]), np.zeros((0, 2), np.int8), np.float32(1.0)):
        check_array(npy(np.asarray(array)))
    huge = npy(np.zeros(3)).replace(b"(3,), }", b"(3" + b"0" * 9 + b",), }")
    for content, reason in (
        (npy(np.zeros(3))[:-1], "declares 24 bytes and holds 23"),
        (npy(np.zeros(3)) + b"x", "declares 24 bytes and holds 25"),
        (npy(np.array([{}], dtype=object)), "Python objects"),
        (huge, "declares|cannot be read"),
        (b"\x93NUMPY\x09\x00", "cannot be read"),
        (b"", "cannot be read"),
    ):
        with pytest.raises(Unexpected, match=reason):
            check_array(content)


def test_rows_come_back_as_numpy_wrote_them(tmp_path: Path) -> None:
    arrays = {
        "points": np.zeros((20_000, 8)),
        "Points": np.eye(2),
        "labels": np.array(["a", "b"]),
        "fortran": np.asfortranarray(np.eye(3)[:2]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_npz(tmp_path / "a.npz")
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert np.array_equal(found[name], array)


def test_rows_that_are_a_bomb_are_invalid_data(tmp_path: Path) -> None:
    record = npy(np.zeros(10))
    path = with_declared_size(archive_of(tmp_path / "rows.npz", {"points.npy": record}), 2**31)
    with pytest.raises(InvalidData, match="larger than the file allows"):
        read_rows(path)
    with pytest.raises(InvalidData, match="declares"):
        read_rows(archive_of(tmp_path / "rows.npz", {"points.npy": record[:-8]}))


def _skops(path: Path) -> Path:
    import skops.io
    from sklearn.linear_model import Ridge

    skops.io.dump(Ridge().fit([[0.0], [1.0]], [0.0, 1.0]), path)
    return path


def test_a_skops_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(_skops(tmp_path / "m.skops")) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    honest = archive_of(tmp_path / "honest.skops", records)
    assert load_skops(honest).predict([[0.5]]) == pytest.approx([0.5])
    bomb = archive_of(tmp_path / "bomb.skops", {**records, "schema.json": b" " * (2**28)})
    with pytest.raises(UntrustedModel, match="larger than the file allows"):
        load_skops(bomb)
    first = next(name for name in records if name != "schema.json")
    lying = archive_of(tmp_path / "lying.skops", {**records, first: records[first][:-1]})
    with pytest.raises(UntrustedModel, match="declares"):
        load_skops(lying)
    stranger = archive_of(tmp_path / "stranger.skops", {**records, "notes.txt": b"hello"})
    with pytest.raises(UntrustedModel, match=r"notes\.txt"):
        load_skops(stranger)


def test_a_schema_nested_without_end_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(_skops(tmp_path / "m.skops")) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    for depth, reason in ((400, "levels deep"), (100_000, "not JSON")):
        records["schema.json"] = b'{"a":' * depth + b"0" + b"}" * depth
        with pytest.raises(UntrustedModel, match=reason):
            load_skops(archive_of(tmp_path / "deep.skops", records))


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x", b"1")
        archive.writestr("x", b"2")
    with pytest.raises(Unexpected, match="two records with one name"):
        read_records(tmp_path / "a.zip")
