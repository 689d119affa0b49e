"""Load a `.pt2` archive without running anything that is written in it.

`torch.export.load` unpickles the sample inputs and every payload marked so; beyond that torch evaluates shape
expressions with sympy, executes the stored guards, and calls whatever function a node names. So the archive is never
handed over as it is: it is taken apart, only plain records of known form are kept, the pickled sample inputs give way
to zeros of the same shapes, the guards are dropped, and the clean copy is loaded.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mlflow_lipschitz.errors import UntrustedModel

_REMEDY = "Export the model again with torch.export.save, or use --trust-pickle with a model whose origin you trust"
_TEXT = re.compile(r"[A-Za-z0-9._\-]{1,64}\n?")
_TEXT_NAMES = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_TARGET = re.compile(r"torch\.ops\.aten\.(?!from_file)[a-z_0-9]+\.[A-Za-z_0-9]+|_operator\.[a-z_]+|torch\.sym_[a-z_]+")
_SYMBOL = re.compile(r"Symbol\('[su][0-9]+'(?:, [a-z]+=(?:True|False))*\)")
_EXPRESSION = re.compile(r"[A-Za-z0-9_+\-*/%(),<>= ]*")
_FUNCTION = re.compile(r"[su][0-9]+|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv")
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def load_exported_program(path: str | Path) -> torch.export.ExportedProgram:
    """The exported program in `path`.

    Raises:
        UntrustedModel: the file is not such an archive, or holds anything but plain records; names the record.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            records = _clean_records(archive)
    except (zipfile.BadZipFile, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UntrustedModel(f"{path.name} is not a .pt2 archive as torch.export.save writes it: {error!r}") from error
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "clean.pt2"
        with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
            for name, content in records.items():
                archive.writestr(f"clean/{name}", content)
        return torch.export.load(copy)


def _clean_records(archive: zipfile.ZipFile) -> dict[str, bytes]:
    contents = {info.filename.partition("/")[2]: info for info in archive.infolist() if not info.is_dir()}
    if "models/model.json" not in contents:
        raise UntrustedModel(f"the archive holds no models/model.json. {_REMEDY}")
    kept: dict[str, bytes] = {}
    for kind, prefix in (("weights", "weight_"), ("constants", "tensor_")):
        name = f"data/{kind}/model_{kind}_config.json"
        config = json.loads(archive.read(contents[name]))
        kept[name] = json.dumps(config).encode()
        for payload in config["config"].values():
            record = f"data/{kind}/{payload['path_name']}"
            plain = re.fullmatch(prefix + "[0-9]+", payload["path_name"]) and payload["use_pickle"] is False
            if not plain:
                raise UntrustedModel(f"record {record} of the archive is a pickle, which can run code. {_REMEDY}")
            kept[record] = archive.read(contents[record])
    for name in _TEXT_NAMES:
        if name in contents:
            text = archive.read(contents[name])
            _require(_TEXT.fullmatch(text.decode("ascii", "replace")), name, text)
            kept[name] = text
    program = json.loads(archive.read(contents["models/model.json"]))
    _check_program(program)
    program["guards_code"] = []
    kept["models/model.json"] = json.dumps(program).encode()
    kept["data/sample_inputs/model.pt"] = _zero_inputs(program)
    return kept


def _check_program(program: Any) -> None:
    """Every string torch would evaluate or resolve while loading must be of a form that cannot do harm."""
    for key, value in _entries(program):
        if key in ("target", "as_operator") and isinstance(value, str):
            _require(_TARGET.fullmatch(value), key, value)
        elif key == "expr_str":
            rest = _SYMBOL.sub("s0", value)
            names = re.findall(r"[A-Za-z_][A-Za-z0-9_]*", rest)
            _require(_EXPRESSION.fullmatch(rest) and all(map(_FUNCTION.fullmatch, names)), key, value)
        elif key in ("in_spec", "out_spec") and isinstance(value, str):
            types = [spec for name, spec in _entries(json.loads(value)) if name == "type"]
            _require(all(spec in _CONTAINERS for spec in types), key, value)


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _entries(value)


def _require(condition: object, what: str, value: object) -> None:
    if not condition:
        raise UntrustedModel(f"the archive's {what} {str(value)[:80]!r} is not one that may be loaded. {_REMEDY}")


def _zero_inputs(program: dict[str, Any]) -> bytes:
    """Serialized example inputs, all zero, of the shapes the program was exported with."""
    module = program["graph_module"]
    tensors = module["graph"]["tensor_values"]
    inputs = []
    for spec in module["signature"]["input_specs"]:
        if "user_input" in spec:
            meta = tensors[spec["user_input"]["arg"]["as_tensor"]["name"]]
            inputs.append(torch.zeros([_length(size) for size in meta["sizes"]], dtype=_dtype(meta["dtype"])))
    buffer = io.BytesIO()
    torch.save((tuple(inputs), {}), buffer)
    return buffer.getvalue()


def _length(size: dict[str, Any]) -> int:
    if "as_int" in size:
        return int(size["as_int"])
    return int(((size["as_expr"].get("hint") or {}).get("as_int")) or 2)


def _dtype(number: int) -> torch.dtype:
    from torch._export.serde.schema import ScalarType

    names = {ScalarType.FLOAT: torch.float32, ScalarType.DOUBLE: torch.float64}
    dtype = names.get(ScalarType(number))
    if dtype is None:
        raise UntrustedModel(
            f"the archive's input has element type {ScalarType(number).name}; float32 or float64 expected"
        )
    return dtype
