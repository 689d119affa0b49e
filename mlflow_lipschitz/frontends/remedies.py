"""What to do about operators that have no lowering, and cannot have one."""

from __future__ import annotations

from mlflow_lipschitz.frontends.lowering_ml import SCORES_REMEDY

_JUMP = "a jump has no Lipschitz constant: replace it by a continuous function such as tanh or clip"
_CHOICE = "a condition on the data is a jump: where the function is continuous, write it with max, min, relu or clip"
_ORDER = "what depends on the order of computed values jumps: choose an output that does not sort or pick by value"
_BRANCH = "export the model with its conditions and loops decided: torch.export unrolls those that do not read the data"
_RANDOM = "export the model for inference: what is audited must be a function"
_DYNAMIC = "quantize it statically, with scales from calibration data, or audit the model as it was before quantization"

REMEDIES = {
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"), _DYNAMIC),
    **dict.fromkeys(("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"), _DYNAMIC),
    **dict.fromkeys(("Sign", "Round", "Floor", "Ceil", "Mod", "Hardmax", "Binarizer"), _JUMP),
    **dict.fromkeys(
        ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsInf", "Compress"),
        _CHOICE,
    ),
    **dict.fromkeys(("TopK", "NonZero", "Unique", "NonMaxSuppression"), _ORDER),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _BRANCH),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"), _RANDOM
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), "choose an output with scores instead of labels"),
    **dict.fromkeys(("ZipMap", "Normalizer"), SCORES_REMEDY),
    "Tan": "it has poles; write it as sin / cos where cos is known to be positive",
    "OneHot": "audit the model behind the encoding: categories do not move",
}
