"""The graph itself: what does not fit is refused when it is added, and two graphs with one hash compute the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.rules.registry import is_supported

CONV = ops.Conv(np.ones((2, 3, 2, 2)), None, (2, 2), ((0, 0), (0, 0)), (1, 1))


def transposed(conv: ops.Conv, rows: int) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((1, 2, 3, 3)))
    return builder.build(builder.add(ops.Adjoint(conv, (1, 3, rows, 6)), x))


def test_the_hash_of_a_transposed_convolution_is_that_of_what_it_computes() -> None:
    hashes = {
        transposed(conv, rows).content_hash()
        for conv, rows in (
            (CONV, 6),
            (CONV, 7),
            (replace(CONV, weight=np.full((2, 3, 2, 2), 2.0)), 6),
            (replace(CONV, padding=((0, 0), (0, 1))), 6),
        )
    }
    assert len(hashes) == 4
    assert transposed(replace(CONV), 6).content_hash() in hashes


def test_a_transposed_convolution_is_supported() -> None:
    assert is_supported(ops.Adjoint(CONV, (1, 3, 6, 6)))


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (CONV, (3, 1, 4)),  # the kernel is larger than the image
        (CONV, (2, 4, 4)),  # channels
        (CONV, (4, 4)),  # no channel axis
        (replace(CONV, weight=np.ones((3, 1, 2, 2)), groups=2), (2, 4, 4)),
        (replace(CONV, weight=np.ones((2, 3))), (3, 4, 4)),
        (ops.Conv(np.ones((1, 1, 1, 1, 1, 1)), None, (1,) * 4, ((0, 0),) * 4, (1,) * 4), (1, 2, 2, 2, 2)),
    ],
)
def test_a_convolution_that_does_not_fit_is_refused(conv: ops.Conv, shape: tuple[int, ...]) -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input(shape))
    with pytest.raises(ValueError, match="Conv"):
        builder.add(conv, x)


def test_a_transposed_convolution_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="Adjoint"):
        transposed(CONV, 8)
