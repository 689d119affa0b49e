"""Files of rows: .csv, .parquet, .json and .npz, read without guessing what a malformed one might have meant."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflow_lipschitz.errors import InvalidData
from mlflow_lipschitz.safe_loading.archives import read_npz


def read_rows(path: Path, text: Sequence[str] = ()) -> tuple[pd.DataFrame | np.ndarray, np.ndarray | None]:
    """The table, or the array (P, *input_shape) and its labels (.npz with `points` and optionally `labels`).

    The columns `text` of a .csv are read as they are written: 01 and NA are text there, and only an empty cell is missing.

    Raises:
        InvalidData: no such file, another format, or content that is no such table.
    """
    if not path.is_file():
        raise InvalidData(f"no such data file: {path}")
    readers: Mapping[str, Callable[[Path], Any]] = {
        ".csv": lambda file: _read_csv(file, text),
        ".parquet": pd.read_parquet,
        ".json": _read_json,
        ".npz": _read_npz,
    }
    if path.suffix not in readers:
        raise InvalidData(f"{path.name}: data must be one of {', '.join(sorted(readers))}")
    try:
        content = readers[path.suffix](path)
    except (ValueError, OSError, KeyError, csv.Error) as error:
        raise InvalidData(f"{path.name} cannot be read: {error}") from error
    return content if isinstance(content, tuple) else (content, None)


def _read_csv(path: Path, text: Sequence[str]) -> pd.DataFrame:
    _check_csv(path)
    # Without index_col=False a surplus cell in every line makes pandas take the first column for an index.
    table = pd.read_csv(path, index_col=False)
    present = [name for name in text if name in table.columns]
    if present:
        written = pd.read_csv(path, index_col=False, usecols=present, dtype=str, keep_default_na=False)
        table[present] = written[present].astype(object).replace("", None)
    return table


def _check_csv(path: Path) -> None:
    """Refuse what pandas would quietly repair: a line with more or fewer cells than the header, a header used twice."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        header = next((cells for cells in lines if cells), [])
        named = [name for name in header if name]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise InvalidData(f"{path.name}: two columns are named {twice!r}")
        for cells in lines:
            if cells and len(cells) != len(header):
                raise InvalidData(
                    f"{path.name}, line {lines.line_num}: {len(cells)} cells, and the header has {len(header)}"
                )


def _read_json(path: Path) -> pd.DataFrame:
    return pd.read_json(path, dtype=False)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = read_npz(path)
    if "points" not in arrays:
        raise InvalidData(f"{path.name} has no array 'points' (it has: {', '.join(arrays) or 'nothing'})")
    return arrays["points"], arrays.get("labels")
