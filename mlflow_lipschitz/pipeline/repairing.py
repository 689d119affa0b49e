"""A search's trees, cut further until the independent checker proves what the search found, or for as long as it pays."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from mlflow_lipschitz.certify.repair import further_cut
from mlflow_lipschitz.checker.derivation import part_bounds
from mlflow_lipschitz.checker.forms import Problem
from mlflow_lipschitz.checker.planes import Slopes
from mlflow_lipschitz.checker.propagation import behind_objective
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.evidence import SearchEvidence
from mlflow_lipschitz.engine.search.parts import Rows

# No limit of time, so that results repeat.
_ROUNDS, _MOST_TIMES, _AT_LEAST = 24, 4, 256
_MOST_NODES = 200_000  # of all trees of a chunk of rows


def tree_arrays(kind: str, trees: SearchEvidence) -> dict[str, np.ndarray]:
    """The trees under the names that certificates have for them."""
    return {f"{kind}/tree/{name}": values for name, values in asdict(trees).items()}


def capped(trees: SearchEvidence) -> SearchEvidence:
    """Trees that the checker can hold in memory together; larger ones are left out, and their questions have one part."""
    most = _MOST_NODES // max(1, len(trees.sizes))
    if bool((trees.sizes <= most).all()):
        return trees
    return SearchEvidence.joined([t if len(t.node) <= most else SearchEvidence.uncut(1) for t in trees.split()])


def repaired(
    rows: Rows, questions: tuple[Problem, np.ndarray], trees: SearchEvidence, target: np.ndarray, effort: Effort
) -> SearchEvidence:
    """The trees, those cut further that do not prove their target yet.

    Args:
        rows: what the search maximised.
        questions: what the checker maximises, one question per row, and the region of each.
        target: (questions,) upper bounds to be proved.
    """
    kind, (problem, owner) = "repaired", questions
    pieces, open_ = trees.split(), np.arange(len(trees.sizes))
    for _ in range(_ROUNDS):
        if not len(open_):
            break
        part = SearchEvidence.joined([pieces[question] for question in open_])
        leaves, bounds = part_bounds(_some(problem, open_), owner[open_], tree_arrays(kind, part), kind)
        failing = bounds > target[open_][leaves.root]
        grown = part.sizes > _MOST_TIMES * trees.sizes[open_] + _AT_LEAST
        worth = failing & ~grown[leaves.root]
        if not worth.any():
            break
        cut = further_cut(_rows(rows, open_), part, leaves.at[worth].tolist(), effort).split()
        changed = [not _same(old, new) for old, new in zip([pieces[q] for q in open_], cut, strict=True)]
        for question, new in zip(open_, cut, strict=True):
            pieces[question] = new
        open_ = open_[np.array(changed, dtype=bool)]
    return SearchEvidence.joined(pieces)


def _some(problem: Problem, index: np.ndarray) -> Problem:
    assert problem.cotangent is not None
    coeffs = None if problem.coeffs is None else problem.coeffs[index]
    after = behind_objective(problem.graph)  # of the others there is one for each region
    slopes = {node: _picked(sides, index) if node in after else sides for node, sides in problem.slopes.items()}
    return replace(problem, cotangent=problem.cotangent[index], coeffs=coeffs, slopes=slopes, last_slopes={})


def _picked(slopes: Slopes, index: np.ndarray) -> Slopes:
    above, below = slopes
    return tuple(s[index] for s in above), tuple(s[index] for s in below)


def _rows(rows: Rows, index: np.ndarray) -> Rows:
    import torch

    return rows.select(torch.from_numpy(index))


def _same(old: SearchEvidence, new: SearchEvidence) -> bool:
    return len(old.node) == len(new.node) and len(old.beta) == len(new.beta)
