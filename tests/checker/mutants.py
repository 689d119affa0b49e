"""Certificates that are wrong: of each it is known without the checker that what it claims does not follow.

Three things can be known. A claim is *false*: a gradient that is met in the region, differentiated in exact arithmetic, is larger
than claimed. A claim is *tighter than what follows*: one float64 number below what the unchanged certificate proves. Or a proof is
*not there*: a part of it, or of the files, was taken away. A change that leaves a true claim does not count.

    python -m tests.checker.mutants        prints the table of the documentation
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.checker.derivation import derivative_range, lipschitz_upper, radius_holds
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.search.evidence import SearchEvidence
from tests.checker.certified import (
    SEARCH,
    Certified,
    asked,
    attained,
    certified,
    exceeds,
    gradients,
    increasing,
    inside,
    mlp,
)
from tests.exact import values_at

COPIES = 6
_COMMON = ("radius_per_feature", "feature_scale", "domain_lower", "domain_upper")
_TREE = ("node", "entry", "place", "sizes", "empty", "beta_at", "beta_node", "beta_entry", "beta")


@dataclass
class Score:
    """How many mutants of a class were tried, of how many the claim is known not to follow, and which of those were accepted."""

    tried: int = 0
    counted: int = 0
    accepted: list[str] = field(default_factory=list)

    def add(self, tried: int, wrong: np.ndarray, rejected: np.ndarray, what: str) -> None:
        self.tried += tried
        self.counted += int(wrong.sum())
        self.accepted += [f"{what}, {place.tolist()}" for place in np.argwhere(wrong & ~rejected)]


Scores = dict[str, Score]


DOMAIN = (np.full(2, -0.5), np.full(2, 0.5))
CASES: dict[str, tuple[Graph, dict[str, Any]]] = {
    "relu": (mlp("relu", (2, 5, 4, 2), 1), {"budget": SEARCH, "size": 0.5}),
    "relu in a domain": (mlp("relu", (2, 4, 1), 5), {"domain": DOMAIN, "max_radius": 1.0, "size": 0.4}),
    "relu, l2 margins": (mlp("relu", (3, 5, 3), 4), {"norm": "l2", "output": "margin", "budget": SEARCH}),
    "tanh, margins": (mlp("tanh", (2, 3, 3), 24), {"output": "margin", "size": 0.05}),
    "tanh, l2": (mlp("tanh", (2, 4, 2), 2), {"norm": "l2", "max_radius": 1.0, "size": 0.1}),
    "softplus, l1": (mlp("softplus", (3, 4, 2), 3), {"norm": "l1", "size": 0.2}),
    "signs": (
        mlp("relu", (2, 4, 2), 8),
        {"monotone": (increasing(0),), "sign_budget": replace(SEARCH, parts_per_point=6)},
    ),
}
"""Small networks whose certificates have trees, multipliers, slopes and radii: graph, and what is asked."""


def made(name: str, folder: Path) -> Certified:
    """The certificates that an audit writes for a case."""
    graph, question = CASES[name]
    points = np.round(np.random.default_rng(7).uniform(-0.5, 0.5, (4, *graph.input_shape)), 3)
    return certified(graph, points, asked(graph.input_shape, **question), folder)


def repeated(case: Certified, times: int) -> Certified:
    """Every point so many times, one after the other; what all points had in common belongs to each."""
    count, stated = len(case.stated["points"]), {}
    for name, values in case.stated.items():
        if "/tree/" in name or name == "derivative/searched":
            continue
        if name in _COMMON and name != "feature_scale":
            values = np.broadcast_to(values, case.stated["points"].shape)
        stated[name] = values if name == "feature_scale" else np.repeat(values, times, axis=0)
    for kind in ("lipschitz", "derivative"):
        if f"{kind}/tree/node" in case.stated:
            pieces = SearchEvidence(**{n: case.stated[f"{kind}/tree/{n}"] for n in _TREE}).split()
            each = len(pieces) // count if kind == "lipschitz" else len(pieces)
            several = [pieces[i : i + each] * times for i in range(0, len(pieces), each)]
            joined = SearchEvidence.joined([piece for part in several for piece in part])
            stated |= {f"{kind}/tree/{n}": getattr(joined, n) for n in _TREE}
    return replace(case, stated=stated)


def rejects_lipschitz(case: Certified, claim: np.ndarray) -> np.ndarray:
    """(points,) whether the checker refutes the claims; if it refuses what is stated, all of them."""
    with np.errstate(all="ignore"):
        try:
            return ~(lipschitz_upper(case.subject(), case.stated) <= claim)
        except (ValueError, KeyError):
            return np.ones(len(claim), dtype=bool)


def is_false(case: Certified, claim: np.ndarray, seed: int) -> np.ndarray:
    """(points,) whether a gradient is met that is larger than claimed."""
    rng = np.random.default_rng(seed)
    found = np.zeros(len(claim), dtype=bool)
    for index, number in enumerate(claim.tolist()):
        about, place = attained(case, index, rng)
        found[index] = about > number and exceeds(case, index, place, number)
    return found


def below_attained(case: Certified, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(points,) claims just below a gradient that is met, and whether exact arithmetic says so."""
    rng = np.random.default_rng(seed)
    met = [attained(case, index, rng, 512) for index in range(len(case.stated["points"]))]
    claims = np.array([about * (1 - 1e-12) for about, _ in met])
    return claims, np.array([exceeds(case, i, place, claims[i]) for i, (_, place) in enumerate(met)])


# Claims


def tightened(name: str, case: Certified, scores: Scores) -> None:
    """One float64 number below what follows."""
    with np.errstate(all="ignore"):
        upper = lipschitz_upper(case.subject(), case.stated)
        _just_below(scores["Lipschitz bound one number below what follows"], upper, upper, name)
        if case.output != "margin":
            low, high = derivative_range(case.subject(), case.stated)
            again = derivative_range(case.subject(), case.stated)
            for found, repeated_ in ((high, again[1]), (-low, -again[0])):
                _just_below(scores["derivative bound one number inside what follows"], found, repeated_, name)


def _just_below(score: Score, proved: np.ndarray, again: np.ndarray, name: str) -> None:
    claim = np.nextafter(proved, -np.inf)
    score.add(claim.size, np.ones(claim.shape, dtype=bool), ~(again <= claim), name)


def understated(name: str, case: Certified, scores: Scores) -> None:
    claims, known = below_attained(case, 1)
    score = scores["Lipschitz bound below a gradient that is met"]
    for part in (1.0, 0.99, 0.9, 0.5, 0.0, -1.0):
        score.add(len(claims), known, rejects_lipschitz(case, claims * part), f"{name} times {part}")


def swapped_claims(name: str, case: Certified, scores: Scores) -> None:
    for shift in range(1, len(case.stated["points"])):
        claim = np.roll(case.stated["lipschitz_upper"], shift)
        rejected = rejects_lipschitz(case, claim)
        scores["claims of two points swapped"].add(len(claim), is_false(case, claim, shift), rejected, name)


def signs_tightened(name: str, case: Certified, scores: Scores) -> None:
    """Derivatives that take both signs, or come as close to 0 as is claimed, said to keep their sign."""
    if case.output == "margin":
        return
    many, rng = repeated(case, 2), np.random.default_rng(3)
    with np.errstate(all="ignore"):
        low, high = derivative_range(many.subject(), many.stated)
    for index in range(len(low)):
        met = gradients(case.graph, inside(many, index, rng, 128))[:, int(case.output)]
        for proved, at, side in ((low[index], met.min(0), -1), (high[index], met.max(0), 1)):
            for claim in (at * (1 - side * np.sign(at) * 1e-9), 0 * at):
                false = side * (at - claim) > 1e-10  # of float64 gradients, whose error is far smaller
                scores["derivative range that leaves out a derivative that is met"].add(
                    claim.size, false, ~(side * proved <= side * claim), name
                )


def radius_enlarged(name: str, case: Certified, scores: Scores) -> None:
    """Larger radii, until one holds another decision; a point of the ball with that decision says so exactly."""
    if "radius" not in case.stated:
        return
    rng = np.random.default_rng(5)
    for factor in (1.02, 1.1, 1.3, 2.0, 4.0, 8.0):
        claim = np.maximum(case.stated["radius"], 0.05) * factor
        ball = case.stating(radius_per_feature=claim[:, None] * np.ones(case.stated["points"].shape[1:]))
        false = np.array([_decided_otherwise(ball, index, rng) for index in range(len(claim))])
        with np.errstate(all="ignore"):
            rejected = ~radius_holds(case.subject(), case.stated, claim)
        scores["radius with another decision inside"].add(len(claim), false, rejected, f"{name} times {factor}")


def _decided_otherwise(ball: Certified, index: int, rng: np.random.Generator) -> bool:
    label = int(ball.stated["labels"][index])
    for place in inside(ball, index, rng, 12):
        values = values_at(ball.graph, place)
        margin = (2 * label - 1) * values[0] if len(values) == 1 else min(values[label] - np.delete(values, label))
        if margin < 0:
            return True
    return False


# The question


def questions_changed(name: str, case: Certified, scores: Scores) -> None:
    """The claim stays, the region it is about does not."""
    many, rng = repeated(case, COPIES), np.random.default_rng(11)
    points, radius = many.stated["points"], many.stated["radius_per_feature"]
    one = np.eye(points.shape[1])[rng.integers(0, points.shape[1], len(points))]
    changes: dict[str, dict[str, np.ndarray]] = {
        "radius of one feature grown": {"radius_per_feature": radius * (1 + one * rng.uniform(0.1, 8, (len(one), 1)))},
        "point moved": {"points": points + rng.normal(size=points.shape) * rng.choice([0.05, 0.3, 1], (len(one), 1))},
    }
    if np.isfinite(case.stated["domain_lower"]).any():
        wide = np.full(points.shape, np.inf)
        changes["domain widened"] = {"domain_lower": -wide, "domain_upper": wide}
    if case.output == "margin":
        label = (many.stated["labels"] + rng.integers(1, 3, len(points))) % case.graph.output_shape[0]
        changes["label changed"] = {"labels": label}
    for kind, arrays in changes.items():
        _unchanged_claim(scores[kind], many.stating(**arrays), name, len(kind))
    scale = case.stated["feature_scale"]
    for factor in (1.05, 1.5, -1.5, 4.0):
        for feature in range(scale.size):
            changed = case.stating(feature_scale=scale * (1 + (factor - 1) * np.eye(scale.size)[feature]))
            _unchanged_claim(scores["feature_scale changed"], changed, name, feature)


def objectives_changed(name: str, case: Certified, scores: Scores) -> None:
    outputs = case.graph.output_shape[0]
    if case.output != "margin":
        for other in range(1, outputs):
            _unchanged_claim(scores["another output"], replace(case, output=other), name, other)
        if outputs > 1:
            for label in range(outputs):
                labels = np.full(len(case.stated["points"]), label)
                changed = replace(case.stating(labels=labels), output="margin")
                _unchanged_claim(scores["a margin in place of an output"], _without_evidence(changed), name, label)
    for norm in ("linf", "l2", "l1"):
        if norm != case.norm:
            _unchanged_claim(scores["norm changed"], replace(case, norm=norm), name, 0)
            _unchanged_claim(scores["norm changed"], _without_evidence(replace(case, norm=norm)), name, 1)


def _without_evidence(case: Certified) -> Certified:
    return replace(case, stated={name: values for name, values in case.stated.items() if "/" not in name})


def _unchanged_claim(score: Score, changed: Certified, name: str, seed: int) -> None:
    claim = changed.stated["lipschitz_upper"]
    score.add(len(claim), is_false(changed, claim, seed), rejects_lipschitz(changed, claim), name)


def graphs_changed(name: str, case: Certified, scores: Scores) -> None:
    """A weight or a bias of the graph changed, in the files with all hashes made anew: only the proof can notice."""
    rng = np.random.default_rng(13)
    layers = [index for index, node in enumerate(case.graph.nodes) if isinstance(node.op, ops.Linear)]
    for layer in layers:
        for kind in ("weight", "bias"):
            for _ in range(5):
                changed = replace(case, graph=_with(case.graph, layer, kind, rng))
                _unchanged_claim(scores[f"a {kind} of the graph changed, hashes made anew"], changed, name, layer)


def _with(graph: Graph, layer: int, kind: str, rng: np.random.Generator) -> Graph:
    builder = GraphBuilder()
    for index, node in enumerate(graph.nodes):
        op: Any = node.op
        if index == layer:
            values = np.array(getattr(op, kind))
            flat = values.reshape(-1)
            at = int(rng.integers(flat.size))
            flat[at] = flat[at] * -1.5 if rng.integers(2) else flat[at] + rng.normal()
            op = replace(op, **{kind: ops.frozen_array(values)})
        builder.add(op, *node.inputs)
    return builder.build(graph.output)


# The evidence, and a claim that no evidence can prove


def evidence_changed(name: str, case: Certified, scores: Scores) -> None:
    """A false claim, and evidence turned in every way that might make it look proved."""
    many = repeated(case, COPIES)
    claims, known = below_attained(case, 17)
    claim, false = np.repeat(claims, COPIES), np.repeat(known, COPIES)
    rng = np.random.default_rng(19)
    for kind, change in (("slopes moved", _slopes_moved), ("slopes that are no numbers", _slopes_broken)):
        if any("/slopes/" in key or "/last/" in key for key in case.stated):
            scores[f"{kind}, false claim"].add(len(claim), false, rejects_lipschitz(change(many, rng), claim), name)
    if "lipschitz/tree/node" in case.stated:
        for kind, turn in _TREES.items():
            for _ in range(2):
                changed = turn(many, rng)
                scores[f"{kind}, false claim"].add(len(claim), false, rejects_lipschitz(changed, claim), name)


def _slopes_moved(case: Certified, rng: np.random.Generator) -> Certified:
    size = rng.choice([-1.0, 0.0, 0.5, 2.0, 100.0, 1e12], len(case.stated["points"]))
    moved = {}
    for key, values in case.stated.items():
        if key.startswith("lipschitz/") and "/tree/" not in key:
            factor = size.reshape(-1, *(1,) * (values.ndim - 1))
            moved[key] = values * factor + rng.normal(size=values.shape) * 0.1 * np.abs(factor)
    return replace(case, stated=case.stated | moved)


def _slopes_broken(case: Certified, rng: np.random.Generator) -> Certified:
    keys = [k for k in case.stated if k.startswith("lipschitz/") and "/tree/" not in k]
    broken = {}
    for key in keys:
        values = case.stated[key].copy()
        values[rng.uniform(size=values.shape) < 0.5] = rng.choice([np.nan, np.inf, -np.inf, 1e308])
        broken[key] = values
    return replace(case, stated=case.stated | broken)


def _tree(case: Certified, **changed: np.ndarray) -> Certified:
    return case.stating(**{f"lipschitz__tree__{name}": values for name, values in changed.items()})


def _cuts(case: Certified) -> np.ndarray:
    return np.flatnonzero(case.stated["lipschitz/tree/node"] >= 0)


def _places_moved(case: Certified, rng: np.random.Generator) -> Certified:
    place = case.stated["lipschitz/tree/place"].copy()
    cut = _cuts(case)
    place[cut] += rng.normal(size=cut.size) * rng.choice([0.1, 1, 1e6], cut.size)
    return _tree(case, place=place)


def _entries_changed(case: Certified, rng: np.random.Generator) -> Certified:
    node, entry = case.stated["lipschitz/tree/node"], case.stated["lipschitz/tree/entry"].copy()
    cut = _cuts(case)
    sizes = np.array([case.graph.nodes[i].shape[0] for i in node[cut]])
    entry[cut] = (entry[cut] + 1) % sizes
    return _tree(case, entry=entry)


def _nodes_changed(case: Certified, rng: np.random.Generator) -> Certified:
    node, entry = case.stated["lipschitz/tree/node"].copy(), case.stated["lipschitz/tree/entry"].copy()
    cut = _cuts(case)
    node[cut] = rng.integers(0, len(case.graph.nodes), cut.size)
    entry[cut] = [e % case.graph.nodes[n].shape[0] for n, e in zip(node[cut], entry[cut], strict=True)]
    return _tree(case, node=node, entry=entry)


def _multipliers_changed(case: Certified, rng: np.random.Generator) -> Certified:
    beta = case.stated["lipschitz/tree/beta"]
    return _tree(case, beta=beta * rng.choice([-1.0, 0.5, 1e3, -1e6, np.inf, np.nan], beta.size))


def _claimed_empty(case: Certified, rng: np.random.Generator) -> Certified:
    """Multipliers for every part, where there were any or not."""
    node = case.stated["lipschitz/tree/node"]
    at, by, entry = [], [], []
    path: list[tuple[int, int]] = []
    depth: list[int] = [0]
    for position, cut in enumerate(node.tolist()):
        level = depth.pop() if depth else 0
        del path[level:]
        if cut >= 0:
            path.append((cut, int(case.stated["lipschitz/tree/entry"][position])))
            depth += [level + 1, level + 1]
        else:
            for held, place in set(path):
                at.append(position)
                by.append(held)
                entry.append(place)
            depth = depth or [0]
    beta = rng.normal(size=len(at)) * 10.0 ** rng.integers(-2, 6, len(at))
    names = {"beta_at": np.array(at), "beta_node": np.array(by), "beta_entry": np.array(entry), "beta": beta}
    return _tree(case, **names, empty=node < 0)


def _children_swapped(case: Certified, rng: np.random.Generator) -> Certified:
    node = case.stated["lipschitz/tree/node"]
    ends = _ends(node)
    order = list(range(len(node)))
    for cut in _cuts(case)[::-1].tolist():  # inner ones first
        middle, end = ends[cut + 1], ends[cut]
        order[cut + 1 : end] = order[middle:end] + order[cut + 1 : middle]
    return _tree(case, **{name: case.stated[f"lipschitz/tree/{name}"][order] for name in ("node", "entry", "place")})


def _ends(node: np.ndarray) -> list[int]:
    """Where the part of the tree that begins at each place ends."""
    ends = [0] * len(node)
    for position in range(len(node) - 1, -1, -1):
        ends[position] = position + 1 if node[position] < 0 else ends[ends[position + 1]]
    return ends


def _subtree_replaced(case: Certified, rng: np.random.Generator) -> Certified:
    """Of every question's first cut, a leaf in place of the lower or of the upper part."""
    keep, node = [], case.stated["lipschitz/tree/node"].copy()
    ends, position = _ends(node), 0
    while position < len(node):
        end = ends[position]
        if node[position] < 0:
            keep.append(position)
        else:
            middle = ends[position + 1]
            first, last = (position + 1, middle) if rng.integers(2) else (middle, end)
            node[first] = -1
            keep += [i for i in range(position, end) if not first < i < last]
        position = end
    names = {name: case.stated[f"lipschitz/tree/{name}"][keep] for name in ("entry", "place")}
    none = {f"beta{part}": case.stated[f"lipschitz/tree/beta{part}"][:0] for part in ("", "_at", "_node", "_entry")}
    return _tree(case, node=node[keep], **names, **none)


_TREES: dict[str, Callable[[Certified, np.random.Generator], Certified]] = {
    "places of cuts moved": _places_moved,
    "entries of cuts changed": _entries_changed,
    "nodes of cuts changed": _nodes_changed,
    "multipliers changed": _multipliers_changed,
    "every part claimed to be empty": _claimed_empty,
    "lower and upper parts swapped": _children_swapped,
    "parts left uncut": _subtree_replaced,
}


# Proofs that are not there


def parts_removed(name: str, case: Certified, scores: Scores) -> None:
    """A leaf, or all below a cut, taken out of a tree; each is refused, whatever is claimed."""
    if "lipschitz/tree/node" not in case.stated:
        return
    node = case.stated["lipschitz/tree/node"]
    ends = _ends(node)
    for position in range(len(node)):
        gone = list(range(position, ends[position]))
        kind = "a leaf removed" if len(gone) == 1 else "all below a cut removed"
        names = {n: np.delete(case.stated[f"lipschitz/tree/{n}"], gone) for n in ("node", "entry", "place")}
        rejected = rejects_lipschitz(_tree(case, **names), np.full(len(case.stated["points"]), np.inf))
        scores[kind].add(1, np.array([True]), np.array([rejected.all()]), f"{name} at {position}")


CLASSES = (
    tightened,
    understated,
    swapped_claims,
    signs_tightened,
    radius_enlarged,
    questions_changed,
    objectives_changed,
    graphs_changed,
    evidence_changed,
    parts_removed,
)


class _Scores(dict):
    def __missing__(self, name: str) -> Score:
        self[name] = Score()
        return self[name]


def scores(name: str, folder: Path) -> Scores:
    """Of every class of mutants of a case, how many there were and what became of them."""
    found, case = _Scores(), made(name, folder)
    for mutate in CLASSES:
        mutate(name, case, found)
    return found


def added(several: Iterable[Scores]) -> Scores:
    total = _Scores()
    for found in several:
        for kind, score in found.items():
            total[kind].tried += score.tried
            total[kind].counted += score.counted
            total[kind].accepted += score.accepted
    return total


def table(found: Scores) -> Iterator[str]:
    """Markdown."""
    yield "| changed | mutants | claim known not to follow | rejected |"
    yield "| --- | ---: | ---: | ---: |"
    for kind, score in found.items():
        yield f"| {kind} | {score.tried} | {score.counted} | {score.counted - len(score.accepted)} |"
    tried, counted, accepted = (
        sum(x) for x in zip(*((s.tried, s.counted, len(s.accepted)) for s in found.values()), strict=True)
    )
    yield f"| all | {tried} | {counted} | {counted - accepted} |"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        every = added(scores(name, Path(place) / f"{number}") for number, name in enumerate(CASES))
        sys.stdout.write("\n".join(table(every)) + "\n")
