"""Leading batch axes and the entries behind them."""

from __future__ import annotations

from torch import Tensor


def entries(x: Tensor, lead: int) -> Tensor:
    """All axes after the first `lead` as one; a value without axes of its own (shape ()) has one entry."""
    return x.reshape(*x.shape[:lead], -1) if x.dim() == lead else x.flatten(lead)
