"""What a search leaves behind for somebody who wants to re-prove it: how regions were cut, and why parts hold no point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from mlflow_lipschitz.engine.propagation.pre_activation import inherited_bounds
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.feasibility import conditions_of
from mlflow_lipschitz.engine.search.frontier import Frontier
from mlflow_lipschitz.engine.search.linear_programs import contradicting
from mlflow_lipschitz.engine.search.parts import Rows, known_ranges
from mlflow_lipschitz.engine.search.splits import Layout

# Parts whose multipliers are looked for at once.
_TOGETHER = 256

Cut = tuple[int, float, bool]  # entry of the layout, place, above


@dataclass(frozen=True)
class SearchEvidence:
    """Trees of cuts, one per question, one after the other, each in preorder with the lower part first; a node of −1 is a leaf.

    Attributes:
        node, entry, place: (tree nodes,) which graph node is cut, at which of its entries, and where.
        sizes: (questions,) tree nodes of each question.
        empty: (tree nodes,) whether a leaf is claimed to hold no point.
        beta_at, beta_node, beta_entry, beta: (multipliers,) for leaf number `beta_at` in the list of tree nodes, of the
            condition on an entry of a graph node: positive for one from below, negative for one from above.
    """

    node: np.ndarray
    entry: np.ndarray
    place: np.ndarray
    sizes: np.ndarray
    empty: np.ndarray
    beta_at: np.ndarray
    beta_node: np.ndarray
    beta_entry: np.ndarray
    beta: np.ndarray

    @staticmethod
    def uncut(questions: int) -> SearchEvidence:
        """One leaf for every question."""
        leaf, no = np.full(questions, -1), np.zeros(0, dtype=np.int64)
        zero = np.zeros(questions, dtype=np.int64)
        return SearchEvidence(leaf, zero, zero * 0.0, zero + 1, zero != 0, no, no, no, no * 0.0)

    @staticmethod
    def joined(parts: Sequence[SearchEvidence]) -> SearchEvidence:
        """The questions of all parts, in order."""
        starts = np.cumsum([0, *(len(part.node) for part in parts)])
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(SearchEvidence)}
        columns["beta_at"] = [at + start for at, start in zip(columns["beta_at"], starts, strict=False)]
        return SearchEvidence(**{name: np.concatenate(values) for name, values in columns.items()})

    def spread(self, questions: int, index: Sequence[int]) -> SearchEvidence:
        """The same among more questions: tree i is of question index[i], the other questions are not cut."""
        owned = dict(zip(index, self.split(), strict=True))
        return SearchEvidence.joined([owned.get(question) or SearchEvidence.uncut(1) for question in range(questions)])

    def split(self) -> list[SearchEvidence]:
        """The tree of each question."""
        ends = np.cumsum(self.sizes)
        return [self._piece(int(end - size), int(end)) for size, end in zip(self.sizes, ends, strict=True)]

    def _piece(self, start: int, stop: int) -> SearchEvidence:
        own = (self.beta_at >= start) & (self.beta_at < stop)
        tree = (self.node[start:stop], self.entry[start:stop], self.place[start:stop])
        betas = (self.beta_at[own] - start, self.beta_node[own], self.beta_entry[own], self.beta[own])
        return SearchEvidence(*tree, np.array([stop - start]), self.empty[start:stop], *betas)


def evidence_of(rows: Rows, leaves: Frontier, effort: Effort) -> SearchEvidence:
    """The parts `leaves`, which cover the regions of all rows, as trees; parts without a point with multipliers that show it."""
    graph = rows.problem.graph
    layout = Layout.of_region(graph) if effort.cuts == "region" else Layout.of(graph)
    multipliers = multipliers_of(rows, layout, leaves)
    columns = zip(leaves.splits.entry.tolist(), leaves.splits.place.tolist(), leaves.splits.above.tolist(), strict=True)
    paths = [[cut for cut in zip(*column, strict=True) if cut[0] >= 0] for column in columns]
    owned: list[list[int]] = [[] for _ in range(len(rows.coeffs))]
    for leaf, row in enumerate(leaves.owner.tolist()):
        owned[row].append(leaf)
    empty = (leaves.upper == -torch.inf).tolist()
    trees = [_tree(layout, [(leaf, paths[leaf]) for leaf in own], empty, multipliers) for own in owned]
    return SearchEvidence.joined(trees)


def _tree(
    layout: Layout,
    leaves: list[tuple[int, list[Cut]]],
    empty: list[bool],
    multipliers: dict[int, list[tuple[int, int, float]]],
) -> SearchEvidence:
    if not leaves:
        return SearchEvidence.uncut(1)
    nodes: list[tuple[int, int, float, bool]] = []
    betas: list[tuple[int, int, int, float]] = []
    todo = [leaves]
    while todo:
        part = todo.pop()
        if len(part) == 1 and not part[0][1]:
            leaf = part[0][0]
            betas += [(len(nodes), *beta) for beta in multipliers.get(leaf, ())]
            nodes.append((-1, 0, 0.0, empty[leaf]))
            continue
        entry, place = part[0][1][0][0], min(path[0][1] for _, path in part)
        lower = [(leaf, path[1:]) for leaf, path in part if path[0] == (entry, place, False)]
        upper = [(leaf, path[path[0][1] == place :]) for leaf, path in part if path[0] != (entry, place, False)]
        nodes.append((*layout.located(entry), place, False))
        todo += [upper, lower]
    node, at, place_, none = (np.array(column) for column in zip(*nodes, strict=True))
    columns = [np.array(column) for column in zip(*betas, strict=True)] or [np.zeros(0, np.int64)] * 3 + [np.zeros(0)]
    return SearchEvidence(node, at, place_, np.array([len(nodes)]), none, *columns)


def multipliers_of(rows: Rows, layout: Layout, leaves: Frontier) -> dict[int, list[tuple[int, int, float]]]:
    """Per empty leaf: (node, entry, multiplier), where a linear program finds any."""
    found: dict[int, list[tuple[int, int, float]]] = {}
    if layout.region or leaves.splits.entry.shape[1] == 0:
        return found
    for piece in (leaves.upper == -torch.inf).nonzero()[:, 0].split(_TOGETHER):
        part, splits = rows.select(leaves.owner[piece]), leaves.splits.select(piece)
        held = conditions_of(layout, splits)
        if not held:
            continue
        bounds = inherited_bounds(part.problem, known_ranges(part, layout, splits), stop=max(held))
        solved = contradicting(part.problem, bounds, held)
        for node, beta in ({} if solved is None else solved[1]).items():
            signed = (beta * held[node].sign).flatten(1).cpu()
            for leaf, entry in signed.nonzero().tolist():
                found.setdefault(int(piece[leaf]), []).append((node, entry, float(signed[leaf, entry])))
    return found
