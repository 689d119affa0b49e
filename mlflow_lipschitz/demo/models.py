"""Two ways to train the same small network: as usual, and so that it can never fall with BMI or blood pressure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

from mlflow_lipschitz.demo.data import INCREASING

STEEPNESS_FLOOR = 0.1
"""Least slope of the monotone model in BMI and blood pressure; input and target in standard deviations."""


class Progression(nn.Module):
    """Disease progression from raw measurements: standardize, then a linear part plus a ReLU network.

    The standardization is part of the model, so the served model and the audit both speak raw units.
    """

    center: torch.Tensor
    spread: torch.Tensor

    def __init__(self, center: torch.Tensor, spread: torch.Tensor, target: tuple[float, float], width: int) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("spread", spread)
        self.target_mean, self.target_spread = target
        self.trend = nn.Linear(len(center), 1)
        self.network = nn.Sequential(
            nn.Linear(len(center), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, measurements: torch.Tensor) -> torch.Tensor:
        standardized = (measurements - self.center) / self.spread
        return self.target_mean + self.target_spread * (self.trend(standardized) + self.network(standardized))

    @torch.no_grad()
    def keep_increasing(self, features: list[int]) -> None:
        """Project the weights: every path from `features` to the output has a positive product of weights.

        A sum of nonnegative paths through ReLU is nondecreasing, and the linear part adds a slope above zero, so the
        property holds for every input, not only near the training rows.
        """
        first, second, last = (layer for layer in self.network if isinstance(layer, nn.Linear))
        first.weight[:, features] = first.weight[:, features].clamp(min=0.0)
        second.weight.clamp_(min=0.0)
        last.weight.clamp_(min=0.0)
        self.trend.weight[:, features] = self.trend.weight[:, features].clamp(min=STEEPNESS_FLOOR)


def train_plain(rows: pd.DataFrame, target: np.ndarray, seed: int = 0) -> Progression:
    """Fit with some weight decay and no constraint: as accurate on held-out rows as the monotone model."""
    model = _untrained(rows, target, seed, width=16)
    return _fit(model, rows, target, epochs=150, weight_decay=0.5, increasing=[])


def train_monotone(rows: pd.DataFrame, target: np.ndarray, seed: int = 0) -> Progression:
    """Fit with more weight decay, and project after every step: BMI and blood pressure can only raise the answer."""
    model = _untrained(rows, target, seed, width=16)
    increasing = [list(rows.columns).index(name) for name in INCREASING]
    return _fit(model, rows, target, epochs=150, weight_decay=4.0, increasing=increasing)


def _untrained(rows: pd.DataFrame, target: np.ndarray, seed: int, width: int) -> Progression:
    torch.manual_seed(seed)
    values = torch.tensor(rows.to_numpy(), dtype=torch.float32)
    scale = (float(target.mean()), float(target.std()))
    return Progression(values.mean(dim=0), values.std(dim=0), scale, width)


def _fit(
    model: Progression,
    rows: pd.DataFrame,
    target: np.ndarray,
    *,
    epochs: int,
    weight_decay: float,
    increasing: list[int],
) -> Progression:
    inputs = torch.tensor(rows.to_numpy(), dtype=torch.float32)
    wanted = torch.tensor(target, dtype=torch.float32)[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=weight_decay)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss((model(inputs) - wanted) / model.target_spread, torch.zeros_like(wanted))
        loss.backward()
        optimizer.step()
        if increasing:
            model.keep_increasing(increasing)
    return model.eval()
