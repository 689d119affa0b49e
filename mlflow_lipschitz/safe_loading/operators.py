"""The functions a node of a pt2 archive may call: a list of pure tensor functions and of arithmetic on sizes.

torch resolves a node's target by attribute lookup from `torch`, `operator` or `math`. That reaches `torch.os.system`,
`operator.methodcaller`, `operator.call`, and `torch.ops.aten.relu.__setattr__`; among the true operators it reaches
those that read files (`from_file`), print, return uninitialized memory (`empty`) or skip their bounds checks. So
nothing is allowed but what is named here. An operator missing here costs a message; one too many could cost a machine.
"""

from __future__ import annotations

import re

_ATEN_NAMES = """
abs absolute acos acosh add addcdiv addcmul asin asinh atan atan2 atanh ceil clamp clamp_max clamp_min clip cos cosh
deg2rad div divide erf erfc exp exp2 expm1 floor floor_divide fmax fmin fmod frac hypot lerp lgamma log log10 log1p
log2 logaddexp logaddexp2 maximum minimum mul multiply neg negative positive pow rad2deg reciprocal remainder round
rsqrt rsub sgn sigmoid sign sin sinc sinh special_expit sqrt square sub subtract tan tanh true_divide trunc xlogy
gru gru_cell lstm_cell rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish prelu _prelu_kernel relu relu6
selu silu softplus softshrink threshold _log_softmax _safe_softmax _softmax log_softmax logsumexp softmax
addbmm addmm addmv addr baddbmm bilinear bmm chain_matmul dot einsum inner linalg_vecdot linalg_vector_norm linear
matmul mm mv norm outer tensordot vdot scaled_dot_product_attention
_convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool1d adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d
max_pool2d_with_indices max_pool3d
alpha_dropout batch_norm dropout feature_alpha_dropout feature_dropout group_norm instance_norm layer_norm
native_dropout native_group_norm native_layer_norm rms_norm _weight_norm
all amax amin aminmax any argmax argmin count_nonzero cummax cummin cumprod cumsum max mean median min prod std
std_mean sum topk sort var var_mean
_unsafe_view adjoint alias atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to cat
channel_shuffle chunk column_stack concat concatenate constant_pad_nd contiguous diag diagonal dsplit dstack expand
expand_as flatten flip fliplr flipud hsplit hstack movedim moveaxis narrow numpy_T pad permute pixel_shuffle
pixel_unshuffle ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d
replication_pad2d replication_pad3d reshape reshape_as roll rot90 select slice split split_with_sizes squeeze stack
swapaxes swapdims t tensor_split tile transpose tril triu unbind unflatten unfold unsqueeze view view_as vsplit vstack
embedding gather index index_add index_copy index_fill index_put index_select masked_fill masked_select scatter
scatter_add select_scatter slice_scatter take take_along_dim where
upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d grid_sampler
bitwise_and bitwise_not bitwise_or bitwise_xor eq ge greater greater_equal gt isfinite isinf isnan le less less_equal
logical_and logical_not logical_or logical_xor lt ne not_equal __and__ __or__ __xor__
_to_copy arange clone copy detach detach_copy full full_like lift_fresh lift_fresh_copy linspace new_full new_ones
new_zeros nan_to_num ones ones_like one_hot scalar_tensor to type_as zeros zeros_like fill zero
_assert_async _assert_scalar _assert_tensor_metadata _local_scalar_dense item sym_constrain_range
sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size sym_storage_offset sym_stride
"""
_ATEN = frozenset(_ATEN_NAMES.split())
_ATEN_TARGET = re.compile(r"torch\.ops\.aten\.([a-zA-Z0-9_]+)\.([a-zA-Z0-9_]+)")

# Seen to read memory beyond weights that are too small for it: torch itself writes it out as operators that do not.
NOT_SAFE = {"torch.ops.aten.lstm.input": "save the program with `program.run_decompositions()`, which has none"}

# Functions on Python numbers. No `pow` or shifts: they make numbers that fill the memory.
_OPERATOR_NAMES = "eq ne le ge lt gt neg pos add sub mul floordiv truediv mod and_ or_"
_SCALAR = frozenset(
    [f"_operator.{name}" for name in _OPERATOR_NAMES.split()]
    + [f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt")]
    + [f"math.{name}" for name in ("trunc", "ceil", "floor")]
)


def is_scalar_function(target: str) -> bool:
    """Whether `target` computes with sizes, such as `_operator.mul`."""
    return target in _SCALAR


def is_tensor_function(target: str) -> bool:
    """Whether `target` is an overload of a listed aten operator, in this torch, that returns its result."""
    match = _ATEN_TARGET.fullmatch(target)
    if match is None:
        return False
    name, overload = match.groups()
    in_place = name.endswith("_") and not name.endswith("__")
    if (name[:-1] if in_place else name) not in _ATEN:
        return False
    import torch

    packet = getattr(torch.ops.aten, name, None)
    # The declared overloads only: every other attribute of the packet is a method of a Python object.
    # `data` are recurrent layers of packed sequences, whose lengths are read from a tensor.
    return packet is not None and overload in packet.overloads() and not overload.endswith("out") and overload != "data"
