"""Parts of a region as a binary tree of cuts: what is below a place and what is above it, both closed, so nothing is left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.engine.ir.graph import Graph


@dataclass(frozen=True, eq=False)
class Leaves:
    """Per leaf the question it is a part of and its number among the tree's nodes, both (leaves,); `held` per graph node (lower,
    upper), each (leaves, *shape)."""

    root: np.ndarray
    at: np.ndarray
    held: dict[int, tuple[np.ndarray, np.ndarray]]


def leaves_of(graph: Graph, roots: int, node: np.ndarray, entry: np.ndarray, place: np.ndarray) -> Leaves:
    """Read `roots` trees, one after the other, each in preorder with the lower part first; a node of −1 is a leaf.

    Args:
        node, entry, place: (tree nodes,) which graph node is cut, at which of its entries, and where.

    Raises:
        ValueError: the arrays are no such trees: a part is missing, or a cut is not of a node's entry at a finite place.
    """
    if not (node.shape == entry.shape == place.shape and node.ndim == 1):
        raise ValueError("the arrays of a tree must have one length")
    paths: list[list[tuple[int, int, float, bool]]] = []
    owner: list[tuple[int, int]] = []
    position = 0
    for root in range(roots):
        open_parts: list[list[tuple[int, int, float, bool]]] = [[]]
        while open_parts:
            if position == len(node):
                raise ValueError(f"a part of question {root} is missing")
            path, at = open_parts.pop(), int(node[position])
            if at < 0:
                paths.append(path)
                owner.append((root, position))
            else:
                cut = _checked(graph, at, int(entry[position]), float(place[position]))
                open_parts += [[*path, (*cut, True)], [*path, (*cut, False)]]
            position += 1
    if position != len(node):
        raise ValueError("there are more parts than questions")
    numbers = np.array(owner, dtype=np.int64).reshape(-1, 2)
    return Leaves(numbers[:, 0], numbers[:, 1], _held(graph, paths))


def _checked(graph: Graph, node: int, entry: int, place: float) -> tuple[int, int, float]:
    # Only what the model computes may be cut: of a gradient there is a set, at a kink.
    cotangent = graph.cotangent if graph.cotangent is not None else len(graph.nodes)
    size = int(np.prod(graph.nodes[node].shape)) if node < cotangent else 0
    if not (0 <= entry < size and np.isfinite(place)):
        raise ValueError(f"no cut: node {node}, entry {entry}, at {place}")
    return node, entry, place


def _held(graph: Graph, paths: list[list[tuple[int, int, float, bool]]]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for index in sorted({cut[0] for path in paths for cut in path}):
        shape = graph.nodes[index].shape
        size = int(np.prod(shape))
        low, high = np.full((len(paths), size), -np.inf), np.full((len(paths), size), np.inf)
        for leaf, path in enumerate(paths):
            for node, entry, place, above in path:
                if node == index and above:
                    low[leaf, entry] = max(low[leaf, entry], place)
                elif node == index:
                    high[leaf, entry] = min(high[leaf, entry], place)
        held[index] = (low.reshape(-1, *shape), high.reshape(-1, *shape))
    return held
