"""Which of the rows are audited: all of them, or a sample that keeps the proportions of a label."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlflow_lipschitz.rows import AuditedRows


def sample(rows: AuditedRows, size: int | None, seed: int) -> AuditedRows:
    """At most `size` rows without replacement, in the data's order; each label in proportion, at least one of each."""
    if size is None or size >= len(rows):
        return rows
    generator = np.random.default_rng(seed)
    if rows.labels is None:
        return rows.take(np.sort(generator.permutation(len(rows))[:size]))
    groups = [np.flatnonzero(rows.labels == label) for label in sorted(set(rows.labels.tolist()), key=str)]
    quotas = _quotas([len(group) for group in groups], size)
    chosen = [generator.permutation(group)[:quota] for group, quota in zip(groups, quotas, strict=True)]
    return rows.take(np.sort(np.concatenate(chosen)))


def _quotas(counts: list[int], size: int) -> list[int]:
    """Largest remainders: quotas that add up to `size`, proportional to `counts`, none zero while `size` allows it."""
    floor = 1 if size >= len(counts) else 0
    spare = size - floor * len(counts)
    shares = [spare * (count - floor) / max(1, sum(counts) - floor * len(counts)) for count in counts]
    quotas = [floor + math.floor(share) for share in shares]
    by_remainder = sorted(range(len(counts)), key=lambda i: (math.floor(shares[i]) - shares[i], i))
    for i in by_remainder[: size - sum(quotas)]:
        quotas[i] += 1
    return quotas
