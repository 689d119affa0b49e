"""Cut regions further where a second program, which bounds parts more simply, needs smaller parts for the same proof."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.branching import rows_at
from mlflow_lipschitz.certify.lipschitz import norm_graph
from mlflow_lipschitz.certify.objectives import cotangents
from mlflow_lipschitz.certify.signs import Searched
from mlflow_lipschitz.engine.domains.region import Region
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes, inherited_bounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.bounding import Effort, bound_parts
from mlflow_lipschitz.engine.search.evidence import SearchEvidence, multipliers_of
from mlflow_lipschitz.engine.search.frontier import Frontier
from mlflow_lipschitz.engine.search.parts import Rows, known_ranges
from mlflow_lipschitz.engine.search.promise import widest_bend
from mlflow_lipschitz.engine.search.splits import Layout, Splits
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph

Cut = tuple[int, int, float, bool]  # graph node, entry, place, above
_TOGETHER = 256
_FORMS = 4096


def lipschitz_rows(graph: Graph, region: Region, norm: str, objectives: Tensor, feature_scale: np.ndarray) -> Rows:
    """What a search for a Lipschitz constant maximises, a row for every point and objective.

    Args:
        objectives: (1 or points, objectives, outputs).
    """
    problem = Problem.of(norm_graph(graph, norm, feature_scale), region, objectives)
    point, objective = torch.cartesian_prod(torch.arange(region.points), torch.arange(problem.objectives)).unbind(1)
    return _rows(problem, point, objective, torch.ones((len(point), 1), dtype=torch.float64))


def derivative_rows(graph: Graph, region: Region, output: int, searched: Searched) -> Rows:
    """What searches for the signs of derivatives maximise, a row for every search."""
    objective, _ = cotangents(math.prod(graph.output_shape), output, region.points)
    problem = Problem.of(gradient_graph(graph), region, objective)
    point, entry, sign = (torch.from_numpy(x) for x in (searched.point, searched.entry, searched.sign))
    coeffs = torch.zeros((len(point), problem.graph.output_shape[0]), dtype=torch.float64)
    return _rows(problem, point, torch.zeros_like(point), coeffs.scatter(1, entry[:, None], sign[:, None]))


def _rows(problem: Problem, point: Tensor, objective: Tensor, coeffs: Tensor) -> Rows:
    with torch.no_grad():
        ranges = [node.interval for node in bound_nodes(problem, Refinement(_FORMS))]
        return rows_at(problem, ranges, (point, objective), coeffs[:, None, None])


def further_cut(rows: Rows, evidence: SearchEvidence, leaves: Sequence[int], effort: Effort) -> SearchEvidence:
    """The trees with some of their leaves cut once more, or shown to hold no point; leaves for which there is no cut stay.

    Args:
        rows: what is maximised, a row for every tree.
        leaves: positions among the tree nodes.
    """
    graph = rows.problem.graph
    layout = Layout.of_region(graph) if effort.cuts == "region" else Layout.of(graph)
    if not layout.nodes or not len(leaves):
        return evidence
    paths, owners = _paths(evidence)
    # Where few features move the region itself was cut: such trees are whole, and cannot be cut in another way.
    leaves = [leaf for leaf in leaves if all(cut[0] in layout.nodes for cut in paths[leaf])]
    chosen: dict[int, tuple[int, int, list[float]]] = {}
    betas: list[tuple[int, int, int, float]] = []
    tried = set(evidence.beta_at.tolist())
    for start in range(0, len(leaves), _TOGETHER):
        part = list(leaves[start : start + _TOGETHER])
        owner = torch.tensor([owners[leaf] for leaf in part])
        splits = _splits(layout, [paths[leaf] for leaf in part])
        with torch.no_grad():
            got = bound_parts(rows, layout, owner, splits, effort)
            empty = got.upper == -torch.inf
            front = Frontier(owner, splits, got.upper, got.entry, got.places, ~empty)
            found = multipliers_of(rows, layout, front)
            stuck = [leaf for leaf in empty.nonzero()[:, 0].tolist() if leaf not in found or part[leaf] in tried]
            if stuck and not layout.region:
                chosen |= _anywhere(
                    rows, layout, [(part[leaf], owner[leaf]) for leaf in stuck], splits.select(torch.tensor(stuck))
                )
        betas += [
            (part[leaf], *beta) for leaf, several in found.items() for beta in several if part[leaf] not in chosen
        ]
        for leaf, entry, places, promise in zip(
            part, got.entry.tolist(), got.places.tolist(), got.promise.tolist(), strict=True
        ):
            if promise > 0:
                chosen[leaf] = (*layout.located(entry), places)
    return _with_cuts(evidence, chosen, betas)


def _anywhere(
    rows: Rows, layout: Layout, leaves: list[tuple[int, Tensor]], splits: Splits
) -> dict[int, tuple[int, int, list[float]]]:
    """Cuts of parts that are known to be empty by an argument that cannot be passed on."""
    part = rows.select(torch.stack([owner for _, owner in leaves]))
    bounds = inherited_bounds(part.problem, known_ranges(part, layout, splits), stop=max(layout.nodes))
    most, entry, place = widest_bend(layout, bounds)
    columns = zip(leaves, most.tolist(), entry.tolist(), place.tolist(), strict=True)
    return {leaf: (*layout.located(at), where) for (leaf, _), reach, at, where in columns if reach > 0}


def _paths(evidence: SearchEvidence) -> tuple[dict[int, list[Cut]], dict[int, int]]:
    """Per leaf its cuts, and the question it belongs to."""
    paths: dict[int, list[Cut]] = {}
    owners: dict[int, int] = {}
    position = 0
    for question, size in enumerate(evidence.sizes.tolist()):
        open_parts: list[list[Cut]] = [[]]
        for position in range(position, position + size):  # noqa: B020 — preorder, one tree after the other
            path, node = open_parts.pop(), int(evidence.node[position])
            if node < 0:
                paths[position], owners[position] = path, question
            else:
                cut = (node, int(evidence.entry[position]), float(evidence.place[position]))
                open_parts += [[*path, (*cut, True)], [*path, (*cut, False)]]
        position += 1
    return paths, owners


def _splits(layout: Layout, paths: list[list[Cut]]) -> Splits:
    starts = dict(zip(layout.nodes, np.cumsum([0, *layout.sizes[:-1]]).tolist(), strict=True))
    depth = max((len(path) for path in paths), default=0)
    entry = torch.full((len(paths), depth), -1, dtype=torch.int64)
    place = torch.zeros((len(paths), depth), dtype=torch.float64)
    above = torch.zeros((len(paths), depth), dtype=torch.bool)
    for row, path in enumerate(paths):
        for column, (node, at, where, side) in enumerate(path):
            entry[row, column], place[row, column], above[row, column] = starts[node] + at, where, side
    return Splits(entry, place, above)


def _with_cuts(
    evidence: SearchEvidence, chosen: dict[int, tuple[int, int, list[float]]], betas: list[tuple[int, int, int, float]]
) -> SearchEvidence:
    """Every chosen leaf becomes a chain of cuts at rising places of one entry: below the first, between it and the second, …."""
    more = np.zeros(len(evidence.node), dtype=np.int64)
    for leaf, (_, _, places) in chosen.items():
        more[leaf] = 2 * len(places)
    start = np.arange(len(more)) + np.cumsum(more) - more  # where each tree node comes to lie
    size = len(more) + int(more.sum())
    node, entry, place, empty = np.full(size, -1), np.zeros(size, np.int64), np.zeros(size), np.zeros(size, dtype=bool)
    for new, old in ((node, evidence.node), (entry, evidence.entry), (place, evidence.place), (empty, evidence.empty)):
        new[start] = old
    for leaf, (graph_node, at, places) in chosen.items():
        for number, where in enumerate(places):
            position = start[leaf] + 2 * number
            node[position], entry[position], place[position] = graph_node, at, where
            node[position + 1 : position + 3] = -1
        empty[start[leaf] : start[leaf] + more[leaf] + 1] = False
    ends = np.cumsum(evidence.sizes)
    sizes = evidence.sizes + np.array([more[a:b].sum() for a, b in zip(ends - evidence.sizes, ends, strict=True)])
    kept = ~np.isin(evidence.beta_at, [*chosen, *(beta[0] for beta in betas)])
    added = [np.array(column) for column in zip(*betas, strict=True)] or [np.zeros(0, np.int64)] * 3 + [np.zeros(0)]
    columns = [
        np.concatenate([old[kept], new])
        for old, new in zip(
            (evidence.beta_at, evidence.beta_node, evidence.beta_entry, evidence.beta), added, strict=True
        )
    ]
    columns[0] = start[columns[0].astype(np.int64)]
    return replace(
        evidence,
        node=node,
        entry=entry,
        place=place,
        sizes=sizes,
        empty=empty,
        beta_at=columns[0],
        beta_node=columns[1].astype(np.int64),
        beta_entry=columns[2].astype(np.int64),
        beta=columns[3],
    )
