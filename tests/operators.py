"""The operator table of README.md, made from the lowering table: `python -m tests.operators --write`."""

from __future__ import annotations

import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"

FAMILIES = {
    "lowering_products": "matrix products",
    "lowering_normalization": "normalization",
    "lowering_softmax": "softmax",
    "lowering_attention": "attention",
    "lowering_recurrent": "recurrent",
    "lowering_spatial": "convolution and pooling",
    "lowering_selection": "selection",
    "lowering_resampling": "padding and resampling",
    "lowering_arithmetic": "arithmetic",
    "lowering_elementwise": "curves",
    "lowering_quantized": "quantized",
    "lowering_microsoft": "quantized (com.microsoft)",
    "lowering_shape": "shape",
    "lowering_ml": "scikit-learn (ai.onnx.ml)",
}


def operator_table() -> str:
    """The table as Markdown, one line per family, operators by their ONNX names."""
    from importlib import import_module

    lines = ["| family | ONNX operators |", "|---|---|"]
    for module, title in FAMILIES.items():
        names = sorted(import_module(f"mlflow_lipschitz.frontends.{module}").ROWS)
        lines.append(f"| {title} | {', '.join(names)} |")
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
