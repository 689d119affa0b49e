"""Constants that mean the place of a row in the batch: 'the first hundred', 'five rows before', 'two rows of padding'.

Rows are proved to stay apart in one short batch, and in that a constant that reaches beyond its end does nothing. So along an
axis that grows with the batch no operator may have places of its own: it must treat the axis alike however long it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mlflow_lipschitz.frontends.slicing import TO_THE_END
from mlflow_lipschitz.frontends.values import BATCH_REMEDY, Pieces, Shape, Value, refusal

PLACES = (
    "it tells rows of the batch by their place in it: along an axis that grows with the batch it has fixed positions"
)
_REACHES_ALL = min(TO_THE_END)  # what exporters write for "to the end", or "from the start" below zero


def require_no_places(
    nodes: Sequence[onnx.NodeProto], single: Mapping[str, Value], several: Mapping[str, Value]
) -> None:
    """Refuse the first node with positions of its own along an axis that grows with the batch.

    Args:
        nodes: the model's nodes in order.
        single, several: what each name stands for in a batch of one row, and of several.

    Raises:
        UnsupportedOperator: naming the node.
    """
    for node in nodes:
        rule = _RULES.get(node.op_type)
        if rule is not None and rule(_Seen(node, single, several)):
            raise refusal(node, PLACES, BATCH_REMEDY)


@dataclass(frozen=True)
class _Seen:
    """A node, and its inputs and outputs in both batches."""

    node: onnx.NodeProto
    single: Mapping[str, Value]
    several: Mapping[str, Value]

    def name(self, position: int) -> str:
        return str(self.node.input[position]) if position < len(self.node.input) else ""

    def shape(self, position: int = 0) -> Shape:
        """Of an input in the batch of several rows; () where there is none."""
        return _shape(self.several.get(self.name(position)))

    def growing(self, position: int = 0) -> set[int]:
        """Axes of an input that grow with the batch."""
        return _growing(self.single.get(self.name(position)), self.several.get(self.name(position)))

    def grows(self, axis: int, position: int = 0) -> bool:
        return axis % max(1, len(self.shape(position))) in self.growing(position)

    def attribute(self, name: str, default: Any = None) -> Any:
        found = next((a for a in self.node.attribute if a.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def integers(self, position: int, attribute: str) -> list[int] | None:
        """A list of constants, an input or in older operator sets an attribute."""
        value = self.single.get(self.name(position))
        if isinstance(value, np.ndarray):
            return [int(n) for n in value.reshape(-1)]
        found = self.attribute(attribute)
        return None if found is None else [int(n) for n in found]


def _shape(value: Value | None) -> Shape:
    return () if value is None else tuple(value.shape)


def _growing(one: Value | None, many: Value | None) -> set[int]:
    shapes = _shape(one), _shape(many)
    if len(shapes[0]) != len(shapes[1]):
        return set(range(len(shapes[1])))
    return {axis for axis, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b}


def _slice(seen: _Seen) -> bool:
    starts, ends = seen.integers(1, "starts") or [], seen.integers(2, "ends") or []
    axes = seen.integers(3, "axes") or list(range(len(starts)))
    steps = seen.integers(4, "steps") or [1] * len(starts)
    return any(
        seen.grows(axis) and not ((start == 0 or start <= -_REACHES_ALL) and end >= _REACHES_ALL and step == 1)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    )


def _pad(seen: _Seen) -> bool:
    pads = seen.integers(1, "pads") or []
    axes = seen.integers(3, "axes") or list(range(len(seen.shape())))
    return any(seen.grows(axis) and (pads[i] or pads[i + len(axes)]) for i, axis in enumerate(axes))


def _along_axis(seen: _Seen) -> bool:
    return seen.grows(int(seen.attribute("axis", 0)))


def _by_element(seen: _Seen) -> bool:
    """Entries are picked along one axis; along the others there must be indices for every row."""
    wanted, given = seen.shape(), seen.shape(1)
    return _along_axis(seen) or any(given[axis] != wanted[axis] for axis in seen.growing())


def _by_tuple(seen: _Seen) -> bool:
    first = int(seen.attribute("batch_dims", 0))
    return any(seen.grows(axis) for axis in range(first, first + seen.shape(1)[-1]))


def _split(seen: _Seen) -> bool:
    if not _along_axis(seen):
        return False
    length = _shape(seen.single[seen.name(0)])[int(seen.attribute("axis", 0))]
    return seen.integers(1, "split") is not None or length % len(seen.node.output) != 0


def _join(seen: _Seen) -> bool:
    """Every piece must grow where the whole does."""
    quantized = seen.node.op_type == "QLinearConcat"
    names = seen.node.input[2::3] if quantized else seen.node.input  # each piece has a scale and a zero point behind it
    pairs = [(seen.single[name], seen.several[name]) for name in names]
    sequences = [part.items for part in pairs[0] if isinstance(part, Pieces)]
    if sequences:
        if len(sequences[0]) != len(sequences[1]) or seen.attribute("new_axis", 0):
            return len(sequences[0]) != len(sequences[1])
        pairs = list(zip(*sequences, strict=True))
    axis = int(seen.attribute("axis", 0)) % len(pairs[0][1].shape)
    grows = [axis in _growing(*pair) for pair in pairs]
    return any(grows) and not all(grows)


def _window(seen: _Seen) -> bool:
    spatial = len(seen.shape()) - 2
    weight = {"Conv": 1, "ConvTranspose": 1, "QLinearConv": 3}.get(seen.node.op_type)
    kernel = seen.shape(weight)[2:] if weight else seen.attribute("kernel_shape", ())
    strides, pads = seen.attribute("strides", [1] * spatial), seen.attribute("pads", [0] * 2 * spatial)
    return any(
        seen.grows(axis + 2) and (kernel[axis], strides[axis], pads[axis], pads[axis + spatial]) != (1, 1, 0, 0)
        for axis in range(spatial)
    )


def _resize(seen: _Seen) -> bool:
    made = _shape(seen.several.get(seen.node.output[0]))
    crops = seen.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
    return any(crops or made[axis] != seen.shape()[axis] for axis in seen.growing())


def _blocks(seen: _Seen) -> bool:
    return bool(seen.growing() - {0})


def _triangle(seen: _Seen) -> bool:
    return seen.grows(-1) or seen.grows(-2)


_RULES: dict[str, Callable[[_Seen], bool]] = {
    **dict.fromkeys(("Gather", "SplitToSequence"), _along_axis),
    **dict.fromkeys(("GatherElements", "Scatter", "ScatterElements"), _by_element),
    **dict.fromkeys(("GatherND", "ScatterND"), _by_tuple),
    **dict.fromkeys(("Concat", "ConcatFromSequence", "QLinearConcat"), _join),
    **dict.fromkeys(("Conv", "ConvTranspose", "QLinearConv"), _window),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "QLinearAveragePool"), _window),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _blocks),
    "ArrayFeatureExtractor": lambda seen: seen.grows(-1),
    "LRN": lambda seen: seen.grows(1),
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Trilu": _triangle,
}
