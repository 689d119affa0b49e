"""scikit-learn's diabetes data in its own units (years, kg/m², mmHg, …), split once into training and audited rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes

INCREASING = ("bmi", "bp")
AUDITED_ROWS = 80


@dataclass(frozen=True)
class DiabetesData:
    """`train` and `audited` are disjoint, with ten feature columns. Targets are disease progression (25 to 346)."""

    train: pd.DataFrame
    train_target: np.ndarray
    audited: pd.DataFrame
    audited_target: np.ndarray


def load_data(seed: int = 7) -> DiabetesData:
    """The 442 patients, shuffled with `seed`; the last 80 are kept out of training and audited."""
    bunch = load_diabetes(as_frame=True, scaled=False)
    order = np.random.default_rng(seed).permutation(len(bunch.data))
    train, audited = order[:-AUDITED_ROWS], np.sort(order[-AUDITED_ROWS:])
    target = bunch.target.to_numpy(dtype=np.float64)
    frame = bunch.data.astype(np.float64)
    return DiabetesData(frame.iloc[train], target[train], frame.iloc[audited], target[audited])
