"""A graph as an ONNX model with float32 constants, and as a torch module: for programs that serve it with kernels of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, Node
from tests import served
from tests.frontends.onnx_models import make_model, node

LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)

# Curves that are one operator of ONNX without attributes.
_ONE_OPERATOR = {
    "relu": "Relu", "abs": "Abs", "tanh": "Tanh", "sigmoid": "Sigmoid", "erf": "Erf", "atan": "Atan", "softsign": "Softsign",
    "softplus": "Softplus", "gelu": "Gelu", "mish": "Mish", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos",
    "reciprocal": "Reciprocal", "hard_swish": "HardSwish",
}  # fmt: skip


class NotExported(TypeError):
    """A node that is not written as ONNX here."""


def onnx_model(graph: Graph) -> onnx.ModelProto:
    """Raises NotExported for a node that is not written here, or a constant that float32 does not hold."""
    writer = _Writer(graph)
    writer.emit("Identity", writer.value(graph.output), out="y")
    return make_model(writer.nodes, graph.input_shape, writer.constants)


def onnx_session(
    model: onnx.ModelProto, level: onnxruntime.GraphOptimizationLevel
) -> Callable[[np.ndarray], np.ndarray]:
    """Takes (points, *input shape) to (points, outputs), of the inputs rounded to float32."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def answers(points: np.ndarray) -> np.ndarray:
        (found,) = session.run(None, {"x": points.astype(np.float32)})
        return np.asarray(found).reshape(len(points), -1).astype(np.float64)

    return answers


class _Writer:
    """Writes the nodes that are needed, each when it is asked for; values have the batch in front."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._known: dict[int, str] = {}

    def value(self, index: int) -> str:
        if index not in self._known:
            self._known[index] = self._written(self.graph.nodes[index])
        return self._known[index]

    def emit(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"v{len(self.nodes)}"
        self.nodes.append(node(operator, " ".join(inputs), name, **attributes))
        return name

    def constant(self, numbers: Any) -> str:
        with np.errstate(over="ignore"):
            held = np.asarray(numbers).astype(np.float32)
        if not np.isfinite(held).all():
            raise NotExported("float32 does not hold a constant")
        return self._kept(held)

    def whole(self, numbers: Any) -> str:
        return self._kept(np.asarray(numbers, dtype=np.int64))

    def _kept(self, numbers: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = numbers
        return name

    def reshaped(self, x: str, *shape: int) -> str:
        return self.emit("Reshape", x, self.whole([-1, *shape]))

    def _written(self, at: Node) -> str:
        if isinstance(at.op, ops.Input):
            return "x"
        xs = [self.value(i) for i in _used(at)]
        write = _WRITERS.get(type(at.op))
        if write is None:
            raise NotExported(type(at.op).__name__)
        return write(self, at.op, self.graph.nodes[at.inputs[0]].shape, *xs)


def _linear(to: _Writer, op: Any, shape: tuple[int, ...], x: str) -> str:
    if len(shape) == 1 and op.bias is not None:
        return to.emit("Gemm", x, to.constant(op.weight), to.constant(op.bias), transB=1)
    y = to.emit("MatMul", x, to.constant(op.weight.T))
    return y if op.bias is None else to.emit("Add", y, to.constant(op.bias))


def _convolution(to: _Writer, op: Any, shape: tuple[int, ...], x: str) -> str:
    lead = shape[: -1 - op.spatial_axes]
    if lead:
        x = to.reshaped(x, *shape[-1 - op.spatial_axes :])
    constants = [to.constant(c) for c in (op.weight, op.bias) if c is not None]
    y = to.emit("Conv", x, *constants, **_attributes(op))
    return to.reshaped(y, *op.output_shape(shape)) if lead else y


def _attributes(op: ops.Conv) -> dict[str, Any]:
    pads = [p[0] for p in op.padding] + [p[1] for p in op.padding]
    return {"strides": list(op.stride), "pads": pads, "dilations": list(op.dilation), "group": op.groups}


def _transposed(to: _Writer, op: Any, shape: tuple[int, ...], y: str) -> str:
    inner = op.inner
    if not isinstance(inner, ops.Conv) or len(op.shape) != 1 + inner.spatial_axes:
        raise NotExported("Adjoint")
    extra = _output_padding(inner, op.shape, shape)
    return to.emit("ConvTranspose", y, to.constant(inner.weight), output_padding=extra, **_attributes(inner))


def _output_padding(inner: ops.Conv, wanted: tuple[int, ...], given: tuple[int, ...]) -> list[int]:
    sizes = zip(wanted[1:], given[1:], inner.stride, inner.dilation, inner.weight.shape[2:], inner.padding, strict=True)
    return [n - ((m - 1) * s + d * (k - 1) + 1 - sum(p)) for n, m, s, d, k, p in sizes]


def _scale_shift(to: _Writer, op: Any, shape: tuple[int, ...], x: str) -> str:
    y = x if op.scale is None else to.emit("Mul", x, to.constant(op.scale))
    return y if op.shift is None else to.emit("Add", y, to.constant(op.shift))


def _curve(to: _Writer, op: Any, shape: tuple[int, ...], x: str) -> str:
    if op.curve in _ONE_OPERATOR:
        return to.emit(_ONE_OPERATOR[op.curve], x)
    match op.curve, op.parameters:
        case "leaky_relu", (alpha,):
            return to.emit("LeakyRelu", x, alpha=alpha)
        case "clip", (low, high):
            return to.emit("Clip", x, to.constant(low), to.constant(high))
        case "elu", (alpha, gamma):
            return to.emit("Selu", x, alpha=alpha, gamma=gamma)
        case "celu", (alpha,):
            return to.emit("Celu", x, alpha=alpha)
        case "silu", _:
            return to.emit("Mul", x, to.emit("Sigmoid", x))
        case "gelu_tanh", _:
            return to.emit("Gelu", x, approximate="tanh")
        case "square", _:
            return to.emit("Mul", x, x)
        case "power", (coefficient, exponent):
            return to.emit("Mul", to.emit("Pow", x, to.constant(exponent)), to.constant(coefficient))
    raise NotExported(f"curve {op.curve}")


def _log_softmax(to: _Writer, op: Any, shape: tuple[int, ...], x: str) -> str:
    if op.kept is not None:
        raise NotExported("LogSoftmax that leaves entries out")
    return to.emit("LogSoftmax", x, axis=-1)


def _expand(to: _Writer, op: Any, shape: tuple[int, ...], x: str) -> str:
    if len(op.shape) > len(shape):
        x = to.reshaped(x, *(1,) * (len(op.shape) - len(shape)), *shape)
    return to.emit("Expand", x, to.whole([1, *op.shape]))


def _pad(to: _Writer, op: Any, shape: tuple[int, ...], x: str) -> str:
    pads = [0, *(p[0] for p in op.padding), 0, *(p[1] for p in op.padding)]
    return to.emit("Pad", x, to.whole(pads), to.constant(op.value))


_WRITERS: dict[type[ops.Op], Callable[..., str]] = {
    ops.Linear: _linear,
    ops.Conv: _convolution,
    ops.Adjoint: _transposed,
    ops.ScaleShift: _scale_shift,
    ops.Elementwise: _curve,
    ops.LogSoftmax: _log_softmax,
    ops.Expand: _expand,
    ops.Pad: _pad,
    ops.Add: lambda to, op, shape, *xs: to.emit("Add", *xs),
    ops.Multiply: lambda to, op, shape, *xs: to.emit("Mul", *xs),
    ops.MatMul: lambda to, op, shape, *xs: to.emit("MatMul", *xs),
    ops.Maximum: lambda to, op, shape, *xs: to.emit("Max", *xs),
    ops.Normalized: lambda to, op, shape, x: x,
    ops.Reshape: lambda to, op, shape, x: to.reshaped(x, *op.shape),
    ops.Transpose: lambda to, op, shape, x: to.emit("Transpose", x, perm=[0, *(a + 1 for a in op.axes)]),
    ops.Sum: lambda to, op, shape, x: to.emit("ReduceSum", x, to.whole([a + 1 for a in op.axes]), keepdims=1),
    ops.Select: lambda to, op, shape, x: to.emit("Gather", x, to.whole(op.indices), axis=op.axis + 1),
    ops.Concat: lambda to, op, shape, *xs: to.emit("Concat", *xs, axis=op.axis + 1),
}


def _constants(op: ops.Op) -> Iterator[np.ndarray]:
    inner = op.inner if isinstance(op, ops.Adjoint) else op
    for name in ("weight", "bias", "scale", "shift"):
        constant = getattr(inner, name, None)
        if constant is not None:
            yield constant


class TorchNetwork(nn.Module):
    """The graph by torch's own operators, of inputs (batch, *input shape)."""

    def __init__(self, graph: Graph, kind: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.graph, self.kind = graph, kind
        self._held: dict[int, Tensor] = {}
        for at in graph.nodes:
            for constant in _constants(at.op):
                # Buffers, so that an export carries them.
                self.register_buffer(f"constant_{len(self._held)}", torch.tensor(constant).to(kind))
                self._held[id(constant)] = getattr(self, f"constant_{len(self._held)}")

    def forward(self, x: Tensor) -> Tensor:
        values: dict[int, Tensor] = {}
        for index in _needed(self.graph):
            at = self.graph.nodes[index]
            values[index] = x if isinstance(at.op, ops.Input) else self._applied(at.op, [values[i] for i in _used(at)])
        return values[self.graph.output].flatten(1)

    def _applied(self, op: Any, xs: list[Tensor]) -> Tensor:
        apply = _TORCH.get(type(op))
        return served.moved(op, xs[0]) if apply is None else apply(self, op, *xs)

    def held(self, constant: np.ndarray | None) -> Tensor | None:
        """A constant in the network's format."""
        return None if constant is None else self._held[id(constant)]


def _torch_scale_shift(to: TorchNetwork, op: Any, x: Tensor) -> Tensor:
    y = x if op.scale is None else x * to.held(op.scale)
    return y if op.shift is None else y + to.held(op.shift)


def _torch_log_softmax(to: TorchNetwork, op: Any, x: Tensor) -> Tensor:
    if op.kept is None:
        return torch.log_softmax(x, -1)
    kept = torch.tensor(op.kept).expand(x.shape) > 0
    return torch.log_softmax(x.masked_fill(~kept, -torch.inf), -1).masked_fill(~kept, 0.0)


def _torch_convolution(to: TorchNetwork, op: Any, x: Tensor) -> Tensor:
    lead = x.shape[1 : -1 - op.spatial_axes]
    x = F.pad(x.flatten(0, len(lead)), [p for pair in reversed(op.padding) for p in pair])
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[op.spatial_axes - 1]
    y = convolve(x, to.held(op.weight), to.held(op.bias), op.stride, 0, op.dilation, op.groups)
    return y.reshape(-1, *lead, *y.shape[1:])


def _torch_transposed(to: TorchNetwork, op: Any, y: Tensor) -> Tensor:
    inner: Any = op.inner
    axes, lead = inner.spatial_axes, y.shape[1 : -1 - inner.spatial_axes]
    padded = [n + sum(p) for n, p in zip(op.shape[-axes:], inner.padding, strict=True)]
    flat = y.flatten(0, len(lead))
    whole: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    x = whole(flat, to.held(inner.weight), None, inner.stride, 0, 0, inner.groups, inner.dilation)
    # What no kernel reached is zero; the padding is cut off.
    x = F.pad(x, [p for n, m in zip(reversed(padded), reversed(x.shape[-axes:]), strict=True) for p in (0, n - m)])
    for axis, (n, (before, _)) in enumerate(zip(op.shape[-axes:], inner.padding, strict=True)):
        x = x.narrow(x.dim() - axes + axis, before, n)
    return x.reshape(-1, *op.shape)


_TORCH: dict[type[ops.Op], Callable[..., Tensor]] = {
    ops.Linear: lambda to, op, x: F.linear(x, to.held(op.weight), to.held(op.bias)),
    ops.Conv: _torch_convolution,
    ops.Adjoint: _torch_transposed,
    ops.ScaleShift: _torch_scale_shift,
    ops.LogSoftmax: _torch_log_softmax,
    ops.Elementwise: lambda to, op, x: served.CURVES[op.curve](x, *op.parameters),
    ops.Sum: lambda to, op, x: x.sum(tuple(a + 1 for a in op.axes), keepdim=True),
    ops.Concat: lambda to, op, *xs: torch.cat(xs, op.axis + 1),
    ops.Add: lambda to, op, a, b: a + b,
    ops.Multiply: lambda to, op, a, b: a * b,
    ops.MatMul: lambda to, op, a, b: a @ b,
    ops.Maximum: lambda to, op, a, b: torch.maximum(a, b),
    ops.Normalized: lambda to, op, x: x,
}


def _used(at: Node) -> tuple[int, ...]:
    """The inputs whose values the node's own value takes."""
    match at.op:
        case ops.LogSoftmax():
            return at.inputs[:1]
        case ops.Maximum():
            return at.inputs[:2]
        case ops.Normalized():
            return at.inputs[2:]
    return at.inputs


def _needed(graph: Graph) -> list[int]:
    needed = {graph.output}
    for index in reversed(range(len(graph.nodes))):
        if index in needed:
            needed.update(_used(graph.nodes[index]))
    return sorted(needed)
