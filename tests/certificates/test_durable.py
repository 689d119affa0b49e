"""A file is there whole or not at all, and nothing elsewhere is written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_lipschitz.certificates.durable import write_durably


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.npz"
    write_durably(path, lambda file: file.write(b"old"))

    def broken(file: object) -> None:
        file.write(b"new, in p")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_durably(path, broken)
    assert path.read_bytes() == b"old"
    write_durably(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.npz"]


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in ("numbers.partial", "numbers.npz"):
        (tmp_path / name).symlink_to(precious)
    write_durably(tmp_path / "numbers.npz", lambda file: file.write(b"new"))
    assert precious.read_text() == "precious"
    assert (tmp_path / "numbers.npz").read_bytes() == b"new"
    assert not (tmp_path / "numbers.npz").is_symlink()
