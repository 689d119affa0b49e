"""A random network, from a seed and a number."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from tests.soundness.blocks import BLOCKS, OPERATORS, rounding
from tests.soundness.drafts import Draft, Rng

_INPUTS = ((1,), (2,), (4,), (4,), (5,), (2, 2), (1, 3), (2, 1, 2))
# One network in so many rounds a value: it has no derivative, but bounds of values and a radius.
_ROUNDING_EVERY = 12


@dataclass(frozen=True)
class Network:
    """A graph with a vector output, a point where its kinks are, whether it has a derivative, and what it is made of."""

    graph: Graph
    home: np.ndarray
    differentiable: bool
    told: Counter[str]


def random_network(rng: Rng, number: int) -> Network:
    """Two to five blocks; the first goes through all blocks in turn as `number` grows."""
    shape = _INPUTS[int(rng.integers(len(_INPUTS)))]
    draft, x = Draft.of(rng, shape)
    rounds = number % _ROUNDING_EVERY == _ROUNDING_EVERY - 1
    names = [list(BLOCKS)[number % len(BLOCKS)], *_more(rng)]
    for place, name in enumerate(names):
        if place or draft.chance(0.7):
            x = draft.linear(draft.small(x), draft.one_of(2, 4))
        x = draft.small(BLOCKS[name](draft, x))
        draft.told[f"block: {name}"] += 1
        if rounds and place == 0:
            x = rounding(draft, x)
    graph = draft.builder.build(_output(draft, x))
    draft.told.update(_what_is_held(graph))
    return Network(graph, draft.home, not rounds, draft.told)


def _more(rng: Rng) -> list[str]:
    curves = [name for name in BLOCKS if name not in OPERATORS]
    usual = ["curve relu", "curve tanh", "curve abs", "curve leaky_relu"]
    pools = [list(OPERATORS), curves, usual]
    return [str(rng.choice(pools[int(rng.integers(3))])) for _ in range(int(rng.integers(1, 4)))]


def _output(draft: Draft, x: int) -> int:
    outputs = draft.one_of(1, 3)
    if draft.chance(0.25):
        return draft.fitted(x, (min(outputs, math.prod(draft.shape(x))),))
    size = math.prod(draft.shape(x))
    return draft.linear(draft.add(ops.Reshape((size,)), x), outputs)


def _what_is_held(graph: Graph) -> list[str]:
    held = [f"op: {type(node.op).__name__}" for node in graph.nodes]
    return held + [f"curve: {node.op.curve}" for node in graph.nodes if isinstance(node.op, ops.Elementwise)]
