"""Lowering of RNN, GRU and LSTM: unrolled, one step after the other, for the fixed length of their sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Concat, Linear
from mlflow_lipschitz.frontends.lowering_context import Call, Shape, Value, Variable
from mlflow_lipschitz.frontends.recurrent_activations import Activation, activations

State: TypeAlias = tuple[Value, ...]
DIRECTIONS = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}
X, W, R, B, LENGTHS, INITIAL_H, INITIAL_C, PEEPHOLES = range(8)  # positions of the inputs


@dataclass(frozen=True)
class Cell:
    """One direction: `inputs` is what the sequence adds to every gate, (steps, batch, gates · hidden), biases included.

    `recurrent` is (gates · hidden, hidden), `bias` what is added to the product with it, `peepholes` (3 · hidden,) or None.
    """

    inputs: Variable
    recurrent: np.ndarray
    bias: np.ndarray
    peepholes: np.ndarray | None
    curves: Sequence[Activation]

    @property
    def hidden(self) -> int:
        return self.recurrent.shape[1]


@dataclass(frozen=True)
class Kind:
    """What tells RNN, GRU and LSTM apart: gates, default activations, how many states are passed on, and the step."""

    gates: int
    defaults: tuple[str, ...]
    states: int
    step: Callable[[Call, Cell, Variable, State], State]


def _rows(call: Call, x: Variable, first: int, last: int) -> Variable:
    return call.select(x, 1, range(first, last))


def _times_matrix(call: Call, x: Value, matrix: np.ndarray) -> Value:
    return call.emit(Linear(matrix), x) if isinstance(x, Variable) else x @ matrix.T


def _plus(call: Call, x: Variable, addend: Value) -> Variable:
    if isinstance(addend, Variable):
        return call.add(x, addend)
    return call.scale_shift(x, None, addend) if np.any(addend) else x


def _times(call: Call, x: Variable, factor: Value) -> Value:
    if isinstance(factor, Variable):
        return call.multiply(x, factor)
    return call.scale_shift(x, factor, None) if np.any(factor) else np.zeros(x.shape)


def _rnn_step(call: Call, cell: Cell, given: Variable, state: State) -> State:
    (h,) = state
    return (cell.curves[0](call, _plus(call, given, _times_matrix(call, h, cell.recurrent))),)


def _gru_step(call: Call, cell: Cell, given: Variable, state: State) -> State:
    """H′ = h̃ + z ∘ (H − h̃): one product where (1 − z) ∘ h̃ + z ∘ H has two."""
    (h,) = state
    n = cell.hidden
    gates = _plus(call, _rows(call, given, 0, 2 * n), _times_matrix(call, h, cell.recurrent[: 2 * n]))
    opened = cell.curves[0](call, gates)
    z, r = _rows(call, opened, 0, n), _rows(call, opened, n, 2 * n)
    matrix, bias = cell.recurrent[2 * n :], cell.bias[2 * n :]
    if call.attribute("linear_before_reset", 0):
        product = _times_matrix(call, h, matrix)
        shifted = _plus(call, product, bias) if isinstance(product, Variable) else product + bias
        recalled = _times(call, r, shifted)
    else:
        recalled = _times_matrix(call, _times(call, r, h), matrix)
    candidate = cell.curves[1](call, _plus(call, _rows(call, given, 2 * n, 3 * n), recalled))
    difference = call.subtract(h, candidate) if isinstance(h, Variable) else call.scale_shift(candidate, MINUS, h)
    return (call.add(candidate, call.multiply(z, difference)),)


def _lstm_step(call: Call, cell: Cell, given: Variable, state: State) -> State:
    h, c = state
    n = cell.hidden
    total = _plus(call, given, _times_matrix(call, h, cell.recurrent))
    opening, candidate, closing = cell.curves
    if cell.peepholes is None:
        opened = opening(call, _rows(call, total, 0, 3 * n))
        i, o, f = (_rows(call, opened, k * n, (k + 1) * n) for k in range(3))
    else:
        i, f = (_peeping(call, cell, k, total, c) for k in (0, 2))
    kept = _times(call, f, c)
    added = call.multiply(i, candidate(call, _rows(call, total, 3 * n, 4 * n)))
    c = _plus(call, added, kept)
    o = o if cell.peepholes is None else _peeping(call, cell, 1, total, c)
    return call.multiply(o, closing(call, c)), c


def _peeping(call: Call, cell: Cell, gate: int, total: Variable, c: Value) -> Variable:
    """A gate (in the order i, o, f) that also sees the state of the cell."""
    n = cell.hidden
    assert cell.peepholes is not None
    weights = cell.peepholes[gate * n : (gate + 1) * n]
    seen = call.scale_shift(c, weights, None) if isinstance(c, Variable) else c * weights
    return cell.curves[0](call, _plus(call, _rows(call, total, gate * n, (gate + 1) * n), seen))


MINUS = np.array(-1.0)
RNN = Kind(1, ("Tanh",), 1, _rnn_step)
GRU = Kind(3, ("Sigmoid", "Tanh"), 1, _gru_step)
LSTM = Kind(4, ("Sigmoid", "Tanh", "Tanh"), 2, _lstm_step)


def _lowered(call: Call, kind: Kind) -> tuple[Variable, ...]:
    """Y, Y_h and, for LSTM, Y_c."""
    sequence = _sequence(call)
    steps = sequence.shape[0]
    signs = DIRECTIONS.get(call.attribute("direction", "forward"))
    if signs is None:
        call.refuse(f"direction {call.attribute('direction')!r} is not one that ONNX has")
    curves = activations(call, kind.defaults * len(signs))
    ends: list[State] = []
    outputs: list[list[Value]] = []
    for direction, sign in enumerate(signs):
        own = curves[direction * len(kind.defaults) : (direction + 1) * len(kind.defaults)]
        cell = _cell(call, kind, sequence, direction, own)
        state = _initial(call, kind, (len(signs), sequence.shape[1], cell.hidden), direction)
        states: dict[int, Value] = {}
        for t in range(steps)[::sign]:
            given = call.reshape(call.select(cell.inputs, 0, (t,)), cell.inputs.shape[1:])
            state = kind.step(call, cell, given, state)
            states[t] = state[0]
        ends.append(state)
        outputs.append([states[t] for t in range(steps)])
    return _all_steps(call, outputs), *(_last_states(call, [end[i] for end in ends]) for i in range(kind.states))


def _sequence(call: Call) -> Variable:
    """The sequence as (steps, batch, entries). Refuses what is not supported, and steps that differ from row to row."""
    x = call.variable()
    if len(x.shape) != 3:
        call.refuse(f"a tensor of shape {x.shape}; three axes are expected")
    x = call.transpose(x, (1, 0, 2)) if call.attribute("layout", 0) else x
    if call.attribute("clip") is not None:
        call.refuse("it clips its gates", "export the model without clipping")
    if call.attribute("input_forget", 0):
        call.refuse("it couples its input and forget gates")
    if call.input(LENGTHS) is not None and np.any(call.constant(LENGTHS, "the length") != x.shape[0]):
        call.refuse("its sequences end at different steps", "export the model for sequences of one length")
    return x


def _cell(call: Call, kind: Kind, sequence: Variable, direction: int, curves: Sequence[Activation]) -> Cell:
    weight, recurrent = call.constant(W, "the weight")[direction], call.constant(R, "the recurrent weight")[direction]
    rows, hidden = recurrent.shape
    if rows != kind.gates * hidden or weight.shape != (rows, sequence.shape[2]):
        call.refuse(f"weights of shapes {weight.shape} and {recurrent.shape} do not fit a tensor of {sequence.shape}")
    biases = np.zeros(2 * rows) if call.input(B) is None else call.constant(B, "the bias")[direction]
    first, second = biases[:rows].copy(), biases[rows:]
    # The bias of the recurrent product goes to the input, where it is not multiplied by the reset gate.
    merged = 2 * hidden if call.attribute("linear_before_reset", 0) else rows
    first[:merged] += second[:merged]
    peepholes = None if call.input(PEEPHOLES) is None else call.constant(PEEPHOLES, "the peepholes")[direction]
    inputs = call.emit(Linear(weight, first), sequence)
    return Cell(inputs, recurrent, second, peepholes, curves)


def _initial(call: Call, kind: Kind, shape: Shape, direction: int) -> State:
    """The states before the first step, (batch, hidden) each: given, or zero."""
    state: list[Value] = []
    for position in (INITIAL_H, INITIAL_C)[: kind.states]:
        value = call.input(position)
        value = np.zeros(shape) if value is None else value
        if call.attribute("layout", 0) and call.input(position) is not None:
            value = call.transpose(value, (1, 0, 2)) if isinstance(value, Variable) else value.transpose(1, 0, 2)
        if value.shape != shape:
            remedy = "an LSTM with projections (proj_size) has no ONNX operator" if position == INITIAL_C else ""
            call.refuse(f"an initial state of shape {value.shape}; {shape} is expected", remedy)
        if isinstance(value, Variable):
            state.append(call.reshape(call.select(value, 0, (direction,)), shape[1:]))
        else:
            state.append(value[direction])
    return tuple(state)


def _all_steps(call: Call, outputs: list[list[Value]]) -> Variable:
    """Every state, (steps, directions, batch, hidden); with layout 1 (batch, steps, directions, hidden)."""
    columns = [_stacked(call, states) for states in outputs]
    joined = columns[0] if len(columns) == 1 else call.emit(Concat(1), *columns)
    return call.transpose(joined, (2, 0, 1, 3)) if call.attribute("layout", 0) else joined


def _last_states(call: Call, states: list[Value]) -> Variable:
    """The states after the last step, (directions, batch, hidden); with layout 1 (batch, directions, hidden)."""
    stacked = _stacked(call, states)
    joined = call.reshape(stacked, (stacked.shape[0], *stacked.shape[2:]))
    return call.transpose(joined, (1, 0, 2)) if call.attribute("layout", 0) else joined


def _stacked(call: Call, states: list[Value]) -> Variable:
    """States of (batch, hidden) as (states, 1, batch, hidden)."""
    parts = [call.reshape(h, (1, 1, *h.shape)) for h in states if isinstance(h, Variable)]
    return parts[0] if len(parts) == 1 else call.emit(Concat(0), *parts)


ROWS: dict[str, Callable[[Call], tuple[Variable, ...]]] = {
    "RNN": lambda call: _lowered(call, RNN),
    "GRU": lambda call: _lowered(call, GRU),
    "LSTM": lambda call: _lowered(call, LSTM),
}
