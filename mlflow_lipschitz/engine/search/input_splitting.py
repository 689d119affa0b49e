"""Branch and bound over the input: cover boxes by pieces for each of which something is proved.

Pieces of all boxes are one batch. A piece that is not proved is cut in half where it is worth most; a piece that is proved needs no
memory. The last pieces come first, the furthest from a proof last of all: few are open at a time, and where a claim is
false, the search walks towards the place. The halves share the cut, so together they are the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries

# Open pieces are kept in memory; a search with this many is not going to end.
_MOST_ENTRIES = 1 << 28


@dataclass(frozen=True)
class Pieces:
    """Boxes `lower` to `upper`, (pieces, *input shape), each a part of the root number `owner`, (pieces,)."""

    lower: Tensor
    upper: Tensor
    owner: Tensor

    def chosen(self, which: Tensor | slice) -> Pieces:
        """Some of them, by a mask, by indices or by a slice."""
        return Pieces(self.lower[which], self.upper[which], self.owner[which])

    def __len__(self) -> int:
        return self.lower.shape[0]


class Judged(NamedTuple):
    """What is known of pieces.

    proved: (pieces,) bool. distance: (pieces,) how far from a proof. worth: (pieces, *input shape), largest where a cut helps most.
    rest: the pieces again, or smaller ones where something was proved of what they leave out.
    """

    proved: Tensor
    distance: Tensor
    worth: Tensor
    rest: Pieces


@dataclass(frozen=True)
class Coverage:
    """How a search ended.

    Attributes:
        complete: every piece was proved, and the pieces cover the roots.
        judged: how many pieces were looked at.
        reason: why it is not complete; empty when it is.
    """

    complete: bool
    judged: int
    reason: str = ""


Judge = Callable[[Pieces], Judged]


def cover(roots: Pieces, judge: Judge, *, batch: int, stop: Callable[[], bool]) -> Coverage:
    """Prove all roots by cutting them into pieces.

    Args:
        roots: the boxes.
        judge: says which pieces are proved; called with at most `batch` pieces.
        batch: pieces at a time.
        stop: asked before every batch; the search ends when it says yes.
    """
    stack, judged, kept = [roots], 0, roots.lower.numel()
    while stack:
        if stop():
            return Coverage(False, judged, "stopped")
        if kept > _MOST_ENTRIES:
            return Coverage(False, judged, "too many pieces are open")
        pieces = _taken(stack, batch)
        kept -= pieces.lower.numel()
        known = judge(pieces)
        judged += len(pieces)
        rest = (~known.proved).nonzero().squeeze(1)  # the host reads here how many are left
        if rest.numel() == 0:
            continue
        rest = rest[known.distance[rest].argsort()]
        halves = _halves(known.rest.chosen(rest), known.worth[rest])
        if halves is None:
            return Coverage(False, judged, "a piece cannot be cut any smaller")
        stack.append(halves)
        kept += halves.lower.numel()
    return Coverage(True, judged)


def _taken(stack: list[Pieces], batch: int) -> Pieces:
    """The last `batch` pieces, off the stack."""
    taken: list[Pieces] = []
    missing = batch
    while stack and missing:
        last = stack.pop()
        if len(last) > missing:
            stack.append(last.chosen(slice(0, len(last) - missing)))
            last = last.chosen(slice(len(last) - missing, None))
        taken.append(last)
        missing -= len(last)
    return Pieces(*(torch.cat([getattr(part, name) for part in taken]) for name in ("lower", "upper", "owner")))


def _halves(pieces: Pieces, worth: Tensor) -> Pieces | None:
    """Both halves of every piece, side by side; None where one has no number between its ends in any direction."""
    lower, upper = entries(pieces.lower, 1), entries(pieces.upper, 1)
    middle = lower / 2 + upper / 2
    possible = (lower < middle) & (middle < upper)
    if not bool(possible.any(1).all()):
        return None
    weight = entries(worth, 1).nan_to_num(0.0, 0.0, 0.0)
    cut = torch.where(possible, weight, -torch.inf).argmax(1, keepdim=True)
    at = middle.gather(1, cut)
    left, right = upper.scatter(1, cut, at), lower.scatter(1, cut, at)
    shape = (2 * len(pieces), *pieces.lower.shape[1:])
    return Pieces(
        torch.stack([lower, right], 1).reshape(shape),
        torch.stack([left, upper], 1).reshape(shape),
        pieces.owner.repeat_interleave(2),
    )
