"""The parts that are still open, of all rows together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.search.splits import Splits


@dataclass(frozen=True)
class Frontier:
    """Per part: its row, the conditions that define it, its upper bound, the cuts to make next, and whether there are any.

    `places` (parts, cuts) are of one entry.
    """

    owner: Tensor
    splits: Splits
    upper: Tensor
    entry: Tensor
    places: Tensor
    open: Tensor

    @staticmethod
    def empty(device: torch.device, cuts: int) -> Frontier:
        index = torch.zeros(0, dtype=torch.int64, device=device)
        number = torch.zeros(0, dtype=torch.float64, device=device)
        places = number.reshape(0, cuts)
        return Frontier(index, Splits.none(0, device), number, index, places, index.to(torch.bool))

    def joined(self, *others: Frontier) -> Frontier:
        every = (self, *others)
        return Frontier(
            torch.cat([part.owner for part in every]),
            Splits.joined([part.splits for part in every]),
            torch.cat([part.upper for part in every]),
            torch.cat([part.entry for part in every]),
            torch.cat([part.places for part in every]),
            torch.cat([part.open for part in every]),
        )

    def select(self, index: Tensor) -> Frontier:
        numbers = (self.upper[index], self.entry[index], self.places[index], self.open[index])
        return Frontier(self.owner[index], self.splits.select(index), *numbers)

    def taken(self, priority: Tensor, count: int) -> tuple[Frontier, Frontier]:
        """The parts of the highest priority, and the others."""
        order = priority.argsort(descending=True)
        return self.select(order[:count]), self.select(order[count:])
