"""Properties with answers known by hand, and random ones that sampling must not contradict."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mlflow_lipschitz.certify import property_units
from mlflow_lipschitz.certify.execution import rigorous_arithmetic
from mlflow_lipschitz.certify.property_bounds import judge
from mlflow_lipschitz.certify.property_numbers import PropertyNumbers
from mlflow_lipschitz.engine.attack.descent import outputs_at
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.errors import InvalidRegion, PropertyError
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.vnnlib.reading import parse_property
from tests.certify.properties import ABSOLUTE, IDENTITY, answer, property_text, random_network, relu_network
from tests.frontends.onnx_models import run_onnxruntime

SQUARE = ([-1, -1], [1, 1])


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        (["(>= Y_0 2.5)"], "certified"),
        (["(>= Y_0 2.0000001)"], "certified"),
        (["(>= Y_0 2)"], "violated"),  # at the four corners only
        (["(<= Y_0 0)"], "violated"),  # at one point only
        (["(<= Y_0 -0.0000001)"], "certified"),
        (["(<= Y_0 1)", "(>= Y_0 1)"], "violated"),
        (["(<= Y_0 0.25)", "(>= Y_0 1.75)"], "certified"),
        (["(or (<= Y_0 -1) (>= Y_0 3))"], "certified"),
        (["(or (<= Y_0 -1) (>= Y_0 2))"], "violated"),
        (["(or (and (<= X_0 -2) (>= Y_0 0)) (and (<= X_0 0) (>= Y_0 3)))"], "certified"),
        (["(or (and (>= X_0 0.5) (>= X_1 0.5) (<= Y_0 0.9)) (>= Y_0 2.5))"], "certified"),
        (["(or (and (>= X_0 0.5) (>= X_1 0.5) (<= Y_0 1)) (>= Y_0 2.5))"], "violated"),
        (["(>= (* 3 Y_0) 6.000001)"], "certified"),
        (["(>= (* 0.1 Y_0) 0.2)"], "violated"),
        (["(>= (* 0.1 Y_0) 0.2000001)"], "certified"),
        ([], "violated"),  # every input is unsafe
    ],
)
def test_the_sum_of_absolute_values_on_a_square(tmp_path: Path, conditions: list[str], status: str) -> None:
    found = answer(tmp_path, ABSOLUTE, property_text(*SQUARE, 1, *conditions))
    assert found.status == status
    if status == "violated":
        assert found.counterexample is not None and np.abs(found.counterexample.point).max() <= 1
        assert found.counterexample.outputs == pytest.approx([np.abs(found.counterexample.point).sum()])
        assert found.counterexample.point.dtype == np.float32 and not found.counterexample.nearest
    else:
        assert found.counterexample is None and found.reason == ""


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        (["(<= Y_0 Y_1)"], "violated"),
        (["(<= Y_0 (- Y_1 2.001))"], "certified"),
        (["(<= Y_0 (- Y_1 2))"], "violated"),
        (["(<= Y_0 -0.5)", "(>= Y_1 0.5)"], "violated"),
        (["(<= Y_0 -0.5)", "(>= Y_0 0.5)"], "certified"),
        (["(or (<= Y_0 -1.5) (>= Y_0 1.5))", "(or (<= Y_1 -0.5) (>= Y_1 0.5))"], "certified"),
        (["(or (<= Y_0 -1.5) (>= Y_0 0.5))", "(or (<= Y_1 -1.5) (>= Y_1 0.5))"], "violated"),
    ],
)
def test_conditions_on_two_outputs(tmp_path: Path, conditions: list[str], status: str) -> None:
    assert answer(tmp_path, IDENTITY, property_text(*SQUARE, 2, *conditions)).status == status


def test_a_border_that_is_reached_but_excluded_is_neither_proved_nor_contradicted(tmp_path: Path) -> None:
    found = answer(tmp_path, ABSOLUTE, property_text(*SQUARE, 1, "(< Y_0 0)"), timeout=0.5)
    assert found.status == "undecided" and found.reason != "" and found.counterexample is None


def test_an_input_that_no_float32_equals_is_served_as_the_nearest(tmp_path: Path) -> None:
    pinned = ([0.1, -1], [0.1, 1])
    found = answer(tmp_path, IDENTITY, property_text(*pinned, 2, "(<= Y_0 0.2)"))
    assert found.status == "violated" and found.counterexample is not None
    assert found.counterexample.nearest and found.counterexample.point[0] == np.float32(0.1)
    # The nearest float32 is above 0.1 and unsafe, the real 0.1 is not.
    assert Fraction(float(np.float32(0.1))) > Fraction("0.100000001") > Fraction("0.1")
    found = answer(tmp_path, IDENTITY, property_text(*pinned, 2, "(>= Y_0 0.100000001)"))
    assert found.status == "certified"


def test_a_box_between_two_numbers_of_the_model_holds_none(tmp_path: Path) -> None:
    one = Fraction(1)
    narrow = ([float(one + Fraction(1, 2**26)), 0], [float(one + Fraction(1, 2**25)), 0])
    found = answer(tmp_path, IDENTITY, property_text(*narrow, 2, "(<= Y_0 1)"))
    assert found.status == "certified"  # only float32 rounds such an input to 1


def test_boxes_that_touch_are_all_looked_at(tmp_path: Path) -> None:
    """Hundreds of boxes and two conditions each: one of them is wrong in one of the ways."""
    count = 300
    edges = [Fraction(i, count) for i in range(count + 1)]
    cases = [
        f"(and (>= X_0 {float(a)}) (<= X_0 {float(b)}) (>= X_1 0) (<= X_1 0) {relation})"
        for a, b in pairwise(edges)
        for relation in (f"(<= Y_0 {float(a) - 0.01})", f"(>= Y_0 {float(b) + 0.01})")
    ]
    text = property_text(*SQUARE, 1, f"(or {' '.join(cases)})")
    assert len(parse_property(text).cases) == count
    found = answer(tmp_path, ABSOLUTE, text, chunk_size=256)
    assert found.status == "certified" and found.pieces >= count
    a, b = float(edges[200]), float(edges[201])
    cases.append(f"(and (>= X_0 {a}) (<= X_0 {b}) (>= X_1 0) (<= X_1 0) (>= Y_0 {b - 0.0001}))")
    found = answer(tmp_path, ABSOLUTE, property_text(*SQUARE, 1, f"(or {' '.join(cases)})"))
    assert found.status == "violated" and found.counterexample is not None
    assert a <= found.counterexample.point[0] <= b


def test_cases_with_different_numbers_of_conditions_do_not_mix(tmp_path: Path) -> None:
    cases = (
        "(and (<= X_0 0) (>= Y_0 1.2) (<= Y_0 0.5) (>= Y_1 9))",
        "(and (<= X_0 0) (>= Y_1 1.5))",
        "(and (>= X_0 0) (>= Y_1 2))",
    )
    text = property_text(*SQUARE, 2, f"(or {' '.join(cases)})")
    assert answer(tmp_path, IDENTITY, text).status == "certified"
    assert answer(tmp_path, IDENTITY, text.replace("(>= Y_1 2)", "(>= Y_1 1)")).status == "violated"


@pytest.mark.parametrize("seed", range(8))
def test_nor_is_one_that_cuts_values(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(property_units, "MANY_INPUTS", 0)
    check_against_samples(tmp_path, seed)


@pytest.mark.parametrize("conditions", [["(>= Y_0 2.0000001)"], ["(or (<= Y_0 -1) (>= Y_0 3))"], ["(>= Y_0 2)"]])
def test_values_are_cut_until_the_answer_is_exact(
    tmp_path: Path, conditions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(property_units, "MANY_INPUTS", 0)
    found = answer(tmp_path, ABSOLUTE, property_text(*SQUARE, 1, *conditions))
    assert found.status == ("violated" if conditions == ["(>= Y_0 2)"] else "certified")


def test_many_inputs_are_proved_by_cutting_values(tmp_path: Path) -> None:
    """Cutting boxes of thirty inputs would take for ever."""
    layers = random_network(1, (30, 16, 16, 2))
    low, high = [-0.2] * 30, [0.2] * 30
    samples = np.random.default_rng(0).uniform(low, high, size=(20000, 30)).astype(np.float32)
    difference = np.subtract(*run_onnxruntime(relu_network(layers), samples).T.astype(np.float64))
    limit = difference.max() + 1.2 * np.ptp(difference)
    found = answer(tmp_path, layers, property_text(low, high, 2, f"(>= (- Y_0 Y_1) {limit:.17g})"), timeout=60.0)
    assert found.status == "certified" and found.pieces > 10


@pytest.mark.parametrize("seed", range(12))
def test_no_answer_is_contradicted_by_a_sample(tmp_path: Path, seed: int) -> None:
    check_against_samples(tmp_path, seed)


def check_against_samples(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = random_network(seed, (3, 16, 16, 2))
    model = relu_network(layers)
    center, radius = rng.normal(size=3).round(3), rng.uniform(0.1, 0.6, size=3).round(3)
    low, high = (center - radius).round(3), (center + radius).round(3)
    samples = rng.uniform(low, high, size=(20000, 3)).astype(np.float32)
    difference = np.subtract(*run_onnxruntime(model, samples).T.astype(np.float64))
    # Just outside of what sampling reaches, well outside, and just inside.
    spread = np.ptp(difference)
    for share, expected in ((0.3, {"certified"}), (0.002, {"certified", "violated"}), (-0.02, {"violated"})):
        limit = difference.max() + share * spread
        text = property_text(low, high, 2, f"(>= (- Y_0 Y_1) {limit:.17g})")
        found = answer(tmp_path, layers, text)
        assert found.status in expected
        if found.counterexample is not None:
            point = found.counterexample.point
            assert (point >= low.astype(np.float32)).all() and (point <= high.astype(np.float32)).all()
            assert np.subtract(*found.counterexample.outputs.astype(np.float64)) >= limit


def test_what_is_judged_to_be_proved_holds_at_samples() -> None:
    graph = lower(relu_network(random_network(3, (3, 24, 24, 2))))
    unsafe = parse_property(property_text([-1] * 3, [1] * 3, 2, "(or (<= Y_0 Y_1) (>= Y_0 1))", "(>= Y_1 -0.5)"))
    numbers = PropertyNumbers.of(unsafe, graph.input_shape, np.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(400, 3, generator=generator, dtype=torch.float64) * 2 - 1
    radius = 10 ** (-2 * torch.rand(400, 1, generator=generator, dtype=torch.float64))
    pieces = numbers.roots.chosen(torch.zeros(400, dtype=torch.long))
    pieces = type(pieces)((center - radius).clamp(-1, 1), (center + radius).clamp(-1, 1), pieces.owner)
    problem = Problem.of(graph, Box(numbers.lower, numbers.upper))
    with rigorous_arithmetic():
        judged, corners = judge(problem, numbers, pieces, 4096)
    assert 20 < int(judged.proved.sum()) < 380
    assert (corners >= pieces.lower).all() and (corners <= pieces.upper).all()
    assert (judged.distance[judged.proved] == -torch.inf).all() and judged.distance[~judged.proved].isfinite().all()
    share = torch.rand(200, 400, 3, generator=generator, dtype=torch.float64)
    x = pieces.lower + (pieces.upper - pieces.lower) * share
    y = outputs_at(problem, x)
    unsafe_at = ((y[..., 0] <= y[..., 1]) | (y[..., 0] >= 1)) & (y[..., 1] >= -0.5)
    assert unsafe_at.any(0).sum() > 20 and not unsafe_at[:, judged.proved].any()
    # What a piece shrinks to still holds all of it that is unsafe, and some pieces do shrink.
    rest = judged.rest
    left_out = ((x < rest.lower) | (x > rest.upper)).any(-1)
    assert not (left_out & unsafe_at).any()
    assert left_out[:, ~judged.proved].any()
    assert (rest.lower >= pieces.lower).all() and (rest.upper <= pieces.upper).all()


def test_boxes_and_half_spaces_only_grow_when_they_are_rounded() -> None:
    text = property_text(["0.1", "-0.3"], ["0.2", "0.7"], 2, "(<= (* 0.1 Y_0) (+ 0.3 (* 0.7 Y_1)))", "(<= Y_0 0.1)")
    unsafe = parse_property(text)
    for kind in (np.float32, np.float64):
        numbers = PropertyNumbers.of(unsafe, (2,), kind, torch.device("cpu"))
        for i, (low, high) in enumerate((("0.1", "0.2"), ("-0.3", "0.7"))):
            assert Fraction(float(numbers.lower[0, i])) <= Fraction(low) <= Fraction(float(numbers.served_lower[0, i]))
            assert Fraction(float(numbers.served_upper[0, i])) <= Fraction(high) <= Fraction(float(numbers.upper[0, i]))
            ends = numbers.served_lower[0, i], numbers.served_upper[0, i]
            assert all(float(kind(float(end))) == float(end) for end in ends)
        # 0.1 is no float64: the first condition is taken times 10, the second as it is.
        assert numbers.rows[0, 0].tolist() == [[1.0, -7.0], [1.0, 0.0]]
        first, second = (Fraction(limit) for limit in numbers.limits[0, 0].tolist())
        assert first >= 3 and Fraction(1, 10) <= second
        assert not numbers.nearest.any()


def test_coefficients_that_float64_cannot_hold_are_refused() -> None:
    text = property_text([0], [1], 2, "(<= (* 0.12345678901234567890123 Y_0) Y_1)")
    with pytest.raises(PropertyError, match="more digits") as error:
        PropertyNumbers.of(parse_property(text), (1,), np.float32, torch.device("cpu"))
    assert error.value.line == 6


def test_another_number_of_inputs_or_outputs_is_refused(tmp_path: Path) -> None:
    for text in (property_text([0], [1], 1, "(<= Y_0 1)"), property_text([0, 0], [1, 1], 2, "(<= Y_0 1)")):
        with pytest.raises(InvalidRegion, match="the model 2 and 1"):
            answer(tmp_path, ABSOLUTE, text)


def test_without_time_nothing_is_decided(tmp_path: Path) -> None:
    found = answer(tmp_path, ABSOLUTE, property_text(*SQUARE, 1, "(>= Y_0 2.5)"), timeout=0.0)
    assert (found.status, found.pieces) == ("undecided", 0) and "within 0 seconds" in found.reason


@pytest.mark.parametrize("first", [1.0, -1.0])
def test_a_bound_that_overflowed_rules_nothing_out(first: float) -> None:
    """Biases that cancel to 0 exactly, and overflow to either side on the way: y is 0 everywhere."""
    builder = GraphBuilder()
    hidden = ops.Linear(np.ones((64, 1)), np.full(64, 1.5e308))
    x = builder.add(hidden, builder.add(ops.Input((1,))))
    signs = first * np.repeat([1.0, -1.0], 32)[None]
    graph = builder.build(builder.add(ops.Linear(signs), x))
    unsafe = parse_property(property_text([-1], [1], 1, "(<= Y_0 1)", "(>= Y_0 -1)"))
    numbers = PropertyNumbers.of(unsafe, graph.input_shape, np.float32, torch.device("cpu"))
    with rigorous_arithmetic():
        judged, _ = judge(Problem.of(graph, Box(numbers.lower, numbers.upper)), numbers, numbers.roots, 64)
    assert not bool(judged.proved.any())
    assert torch.equal(judged.rest.lower, numbers.roots.lower) and torch.equal(judged.rest.upper, numbers.roots.upper)
