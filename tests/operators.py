"""The operator table of README.md, made from the lowering table: `python -m tests.operators --write`."""

from __future__ import annotations

import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"

# module: family, and how its bounds relate to what the operators do
FAMILIES = {
    "lowering_products": ("matrix products", "exact with a constant factor, else relaxed"),
    "lowering_spatial": ("convolution and pools of sums", "exact; LpPool and GlobalLpPool relaxed"),
    "lowering_selection": ("selection", "exact where one entry is the largest, else relaxed"),
    "lowering_arithmetic": ("arithmetic", "exact with constants; products, quotients and powers of variables relaxed"),
    "lowering_reductions": ("reductions", "sums and means exact, others relaxed"),
    "lowering_elementwise": ("curves", "exact where they are affine over the region, else relaxed"),
    "lowering_normalization": ("normalization", "BatchNormalization exact, others relaxed"),
    "lowering_softmax": ("softmax", "relaxed"),
    "lowering_attention": ("attention", "relaxed"),
    "lowering_recurrent": ("recurrent, unrolled", "relaxed"),
    "lowering_shape": ("shape", "exact"),
    "lowering_indexing": ("constant positions", "exact"),
    "lowering_choice": ("constant conditions", "exact"),
    "lowering_resampling": ("padding and resampling", "exact"),
    "lowering_quantized": ("quantized", "weights exact, rounding between layers relaxed"),
    "lowering_microsoft": ("quantized (com.microsoft)", "weights exact, rounding between layers relaxed"),
    "lowering_ml": ("scikit-learn (ai.onnx.ml)", "linear models exact, kernel machines relaxed"),
}


def operator_table() -> str:
    """The table as Markdown, one line per family, operators by their ONNX names."""
    from importlib import import_module

    lines = ["| family | ONNX operators | bounds |", "|---|---|---|"]
    for module, (title, bounds) in FAMILIES.items():
        names = sorted(import_module(f"mlflow_lipschitz.frontends.{module}").ROWS)
        lines.append(f"| {title} | {', '.join(names)} | {bounds} |")
    return "\n".join(lines)


def readme_table() -> str:
    """What README.md says now."""
    text = README.read_text(encoding="utf-8")
    return text.split(BEGIN)[1].split(END)[0].strip()


def write() -> None:
    """Put the current table into README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{operator_table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    else:
        sys.stdout.write(operator_table() + "\n")
