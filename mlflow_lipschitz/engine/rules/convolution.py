"""Cross-correlation and its transpose, as sums of products only: the γ_n bound of rounding.py holds for either.

On a CPU these are PyTorch's own kernels. On a GPU those go through a batch sample by sample, and cuDNN may choose transforms whose
error is not bounded entrywise (FFT, Winograd); there, each place of the kernel is one matrix product over the whole batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from mlflow_lipschitz.engine.ir import ops

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLVE_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolve(op: ops.Conv, weight: Tensor, padded: Tensor) -> Tensor:
    """(samples, out channels, *spatial) of (samples, in channels, *padded spatial)."""
    if padded.is_cuda:
        return by_places(op, weight, padded)
    return _CONVOLVE[op.spatial_axes](padded, weight, None, op.stride, 0, op.dilation, op.groups)


def convolve_transposed(op: ops.Conv, weight: Tensor, y: Tensor) -> Tensor:
    """The adjoint of `convolve`: (samples, in channels, *spatial), as far as the strided kernel reached."""
    if y.is_cuda:
        return transposed_by_places(op, weight, y)
    return _CONVOLVE_TRANSPOSED[op.spatial_axes](y, weight, None, op.stride, 0, 0, op.groups, op.dilation)


def by_places(op: ops.Conv, weight: Tensor, padded: Tensor) -> Tensor:
    """As `convolve`, one matrix product per place of the kernel."""
    sizes = _reached(op, tuple(padded.shape[2:]))
    grouped = padded.unflatten(1, (op.groups, -1))
    total: Tensor | None = None
    for matrix, window in _places(op, weight, sizes):
        seen = grouped[(slice(None),) * 3 + window]
        product = matrix @ seen.reshape(*seen.shape[:3], -1)
        total = product if total is None else total.add_(product)
    assert total is not None
    return total.reshape(len(padded), -1, *sizes)


def transposed_by_places(op: ops.Conv, weight: Tensor, y: Tensor) -> Tensor:
    """As `convolve_transposed`, one matrix product per place of the kernel."""
    sizes = tuple(y.shape[2:])
    kernel = weight.shape[2:]
    reached = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(sizes, op.stride, op.dilation, kernel, strict=True)]
    total = y.new_zeros((len(y), op.groups, weight.shape[1], *reached))
    flat = y.reshape(len(y), op.groups, -1, y[0, 0].numel())
    for matrix, window in _places(op, weight, sizes):
        total[(slice(None),) * 3 + window] += (matrix.mT @ flat).reshape(len(y), op.groups, -1, *sizes)
    return total.flatten(1, 2)


def _reached(op: ops.Conv, padded: tuple[int, ...]) -> tuple[int, ...]:
    kernel_sizes = op.weight.shape[2:]
    return tuple(
        (n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(padded, op.dilation, kernel_sizes, op.stride, strict=True)
    )


def _places(op: ops.Conv, weight: Tensor, sizes: tuple[int, ...]) -> Iterator[tuple[Tensor, tuple[slice, ...]]]:
    """Per place of the kernel: its matrices (groups, out / groups, in / groups), and which entries of the padded input it meets."""
    flat = weight.unflatten(0, (op.groups, -1)).flatten(3)
    for number, place in enumerate(itertools.product(*(range(k) for k in weight.shape[2:]))):
        window = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(place, op.dilation, sizes, op.stride, strict=True)
        )
        yield flat[..., number], window
