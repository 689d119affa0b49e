"""What a property file says is read exactly, and what is not understood is refused with its line."""

from __future__ import annotations

import gzip
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.errors import PropertyError, UsageError
from mlflow_lipschitz.vnnlib import UnsafeSet, read_property
from mlflow_lipschitz.vnnlib.numbers import floats_above, floats_below
from mlflow_lipschitz.vnnlib.reading import parse_property

DECLARED = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 -1) (<= X_1 1)))\n"


def property_of(text: str) -> UnsafeSet:
    return parse_property(DECLARED + BOX + text)


def half_spaces(unsafe: UnsafeSet, case: int = 0) -> list[list[tuple[dict[int, Fraction], Fraction, bool]]]:
    return [[(dict(h.coefficients), h.limit, h.strict) for h in c] for c in unsafe.cases[case].conjunctions]


def test_numbers_are_read_as_they_are_written() -> None:
    unsafe = property_of("(assert (<= X_0 0.1))(assert (>= X_0 1.5e-3))(assert (<= Y_0 -.25))")
    assert unsafe.cases[0].lower[0] == Fraction(3, 2000) and unsafe.cases[0].upper[0] == Fraction(1, 10)
    assert half_spaces(unsafe) == [[({0: Fraction(1)}, Fraction(-1, 4), False)]]


def test_the_tightest_of_several_bounds_counts() -> None:
    unsafe = property_of("(assert (<= X_0 0.5))(assert (<= X_0 0.75))(assert (<= 0.25 X_0))(assert (<= Y_0 0))")
    assert (unsafe.cases[0].lower[0], unsafe.cases[0].upper[0]) == (Fraction(1, 4), Fraction(1, 2))


@pytest.mark.parametrize(
    ("condition", "coefficients", "limit", "strict"),
    [
        ("(<= Y_0 Y_1)", {0: 1, 1: -1}, 0, False),
        ("(>= Y_0 Y_1)", {0: -1, 1: 1}, 0, False),
        ("(>= Y_0 2)", {0: -1}, -2, False),
        ("(<= 2 Y_0)", {0: -1}, -2, False),
        ("(< Y_0 2)", {0: 1}, 2, True),
        ("(> Y_0 2)", {0: -1}, -2, True),
        ("(<= (+ Y_0 (* 2.0 Y_1) 1) (- Y_1 3))", {0: 1, 1: 1}, -4, False),
        ("(<= (- Y_0) (/ Y_1 4))", {0: -1, 1: Fraction(-1, 4)}, 0, False),
        ("(<= (* 3 (- Y_0 Y_1 1)) 0)", {0: 3, 1: -3}, 3, False),
    ],
)
def test_linear_conditions_on_outputs(condition: str, coefficients: dict, limit: int, strict: bool) -> None:
    assert half_spaces(property_of(f"(assert {condition})")) == [[(coefficients, limit, strict)]]


def test_equality_is_two_half_spaces() -> None:
    assert [(h[0], h[1]) for h in half_spaces(property_of("(assert (= Y_0 1))"))[0]] == [({0: 1}, 1), ({0: -1}, -1)]


def test_everything_asserted_holds_together() -> None:
    unsafe = property_of("(assert (<= Y_0 0))(assert (<= Y_1 0))")
    assert len(unsafe.cases) == 1 and [len(c) for c in unsafe.cases[0].conjunctions] == [2]


def test_alternatives_multiply() -> None:
    unsafe = property_of("(assert (or (<= Y_0 0) (<= Y_0 -1)))(assert (or (and (<= Y_1 0) (<= Y_1 2)) (<= Y_1 1)))")
    assert len(unsafe.cases) == 1
    assert sorted(len(conjunction) for conjunction in unsafe.cases[0].conjunctions) == [2, 2, 3, 3]


def test_alternatives_of_one_box_are_kept_together() -> None:
    text = "(assert (or (and (<= X_0 0.5) (<= Y_0 0)) (and (>= X_0 0.5) (<= Y_0 1)) (and (<= X_0 0.5) (>= Y_0 9))))"
    unsafe = property_of(text)
    assert [(case.lower[0], case.upper[0]) for case in unsafe.cases] == [(0, Fraction(1, 2)), (Fraction(1, 2), 1)]
    assert [len(case.conjunctions) for case in unsafe.cases] == [2, 1]


def test_an_empty_box_is_left_out_and_nothing_but_empty_boxes_is_refused() -> None:
    unsafe = property_of("(assert (or (and (<= X_0 -1) (<= Y_0 0)) (<= Y_0 1)))")
    assert len(unsafe.cases) == 1 and half_spaces(unsafe)[0][0][1] == 1
    with pytest.raises(PropertyError, match="no input satisfies"):
        property_of("(assert (<= X_0 -1))(assert (<= Y_0 1))")


def test_a_property_without_conditions_on_outputs_is_unsafe_for_every_input() -> None:
    unsafe = parse_property(DECLARED + BOX)
    assert unsafe.cases[0].conjunctions == ((),)
    assert unsafe.cases[0].is_unsafe([3.0, -1.0])


@pytest.mark.parametrize(("value", "inside"), [(2.0, True), (np.nextafter(2.0, 3.0), False), (-np.inf, None)])
def test_membership_is_exact(value: float, inside: bool | None) -> None:
    case = property_of("(assert (<= Y_0 2))").cases[0]
    if inside is None:
        with pytest.raises(OverflowError):
            case.is_unsafe([value, 0.0])
    else:
        assert case.is_unsafe([value, 0.0]) is inside


def test_a_strict_half_space_does_not_hold_its_border() -> None:
    case = property_of("(assert (< Y_0 2))").cases[0]
    assert not case.is_unsafe([2.0, 0.0]) and case.is_unsafe([np.nextafter(2.0, 1.0), 0.0])


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("(assert (<= Y_0 1)", 6, "never closed"),
        ("(assert (<= Y_0 1)))", 6, "never opened"),
        ("\n(check-sat)", 7, "unknown command 'check-sat'"),
        ("hello", 6, "outside of brackets"),
        ('(assert (<= Y_0 "1"))', 6, "cannot read"),
        ("(assert)", 6, "one condition"),
        ("(assert Y_0)", 6, "a condition is expected"),
        ("(assert (not (<= Y_0 1)))", 6, "unknown condition 'not'"),
        ("(assert ((<= Y_0 1)))", 6, "unknown condition"),
        ("(assert (and))", 6, "joins nothing"),
        ("(assert (<= Y_0 1 2))", 6, "compares two terms, here are 3"),
        ("(assert (<= Y_0 Y_7))", 6, "'Y_7' is neither a number nor declared"),
        ("(assert (<= Y_0 nan))", 6, "neither a number"),
        ("(assert (<= Y_0 inf))", 6, "neither a number"),
        ("(assert (<= Y_0 0x1p3))", 6, "neither a number"),
        ("(assert (<= Y_0 1e99999))", 6, "neither a number"),
        ("(assert (<= (* Y_0 Y_1) 1))", 6, "not linear"),
        ("(assert (<= (/ 1 Y_1) 1))", 6, "not linear"),
        ("(assert (<= (/ Y_1 0) 1))", 6, "division by zero"),
        ("(assert (<= (ite Y_0 1) 1))", 6, "unknown term 'ite'"),
        ("(assert (<= 0 1))", 6, "says nothing about the network"),
        ("(assert (<= (- Y_0 Y_0) 1))", 6, "says nothing about the network"),
        ("(assert (<= X_0 X_1))", 6, "one by one"),
        ("(assert (<= (+ X_0 Y_0) 1))", 6, "one by one"),
        ("(assert (or (<= (+ X_0 Y_0) 1) (<= Y_0 1)))", 6, "one by one"),
        ("(assert (< X_0 0.5))", 6, "write <= or >="),
        ("(declare-const X_0 Real)", 6, "declared twice, first in line 1"),
        ("(declare-const Z_0 Real)", 6, "is no input"),
        ("(declare-const X_01 Real)", 6, "is no input"),
        ("(declare-const X_2 Int)", 6, "expected (declare-const NAME Real)"),
        ("(declare-fun X_2 () Real)", 6, "unknown command 'declare-fun'"),
        ("(vnnlib-version <2.0>)", 6, "VNN-LIB 2"),
        ("(assert " + "(and " * 80 + "(<= Y_0 1)" + ")" * 81, 6, "brackets inside each other"),
        (f"(assert (<= Y_0 {'1' * 2000}))", 6, "2000 characters"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(PropertyError) as error:
        property_of(text)
    assert words in str(error.value) and error.value.line == line and str(error.value).startswith(f"line {line}: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no X_0 is declared"),
        ("(declare-const X_0 Real)", "no Y_0 is declared"),
        ("(declare-const X_1 Real)(declare-const Y_0 Real)", "X_0 is not declared, and X_1 is"),
        ("(declare-const X_0 Real)(declare-const Y_0 Real)", "asserts nothing"),
        ("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 1))", "X_0 has no upper bound"),
        ("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= Y_0 1))", "X_0 has no lower bound"),
        (
            "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 1))(assert (or (<= X_0 2) (<= Y_0 0)))",
            "X_0 has no upper bound",
        ),
    ],
)
def test_what_is_missing_is_named(text: str, words: str) -> None:
    with pytest.raises(PropertyError, match=words):
        parse_property(text)


def test_too_many_alternatives_are_refused_before_they_are_written_out() -> None:
    choice = "(assert (or (<= Y_0 0) (<= Y_0 1) (<= Y_1 2)))"
    with pytest.raises(PropertyError, match="more than 200000 alternatives"):
        property_of(choice * 30)
    with pytest.raises(PropertyError, match="more than 200000 alternatives"):
        property_of("(assert (or (<= Y_0 7) (and" + choice.replace("(assert ", "")[:-1] * 30 + ")))")


def test_comments_are_skipped_and_lines_counted_on() -> None:
    with pytest.raises(PropertyError, match="line 7"):
        property_of("; (assert (never closed\n(assert (wrong Y_0 1)) ; at the end")


def test_a_compressed_file_is_the_same_property(tmp_path: Path) -> None:
    text = DECLARED + BOX + "(assert (<= Y_0 1))"
    plain, packed = tmp_path / "a.vnnlib", tmp_path / "a.vnnlib.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_property(plain) == read_property(packed) == parse_property(text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.vnnlib.gz", b"no gzip"),
        ("cut.vnnlib.gz", gzip.compress(b"x" * 99, mtime=0)[:-9]),
        ("b.vnnlib", b"\xff\xfe"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        read_property(tmp_path / name)
    with pytest.raises(UsageError, match="absent"):
        read_property(tmp_path / "absent.vnnlib")


@given(st.fractions(min_value=-(10**6), max_value=10**6), st.sampled_from([np.float32, np.float64]))
def test_rounding_encloses_and_wastes_nothing(value: Fraction, kind: type) -> None:
    (below,), (above,) = floats_below([value], kind), floats_above([value], kind)
    assert below.dtype == above.dtype == kind
    assert Fraction(float(below)) <= value <= Fraction(float(above))
    assert above in (below, np.nextafter(below, kind(np.inf)))


def test_a_number_beyond_the_type_is_refused() -> None:
    for value, kind in ((Fraction(10) ** 400, np.float64), (Fraction(10) ** 40, np.float32)):
        with pytest.raises(PropertyError):
            floats_above([value], kind)
        with pytest.raises(PropertyError):
            floats_below([-value], kind)
