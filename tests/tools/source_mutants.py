"""Would the tests notice a wrong line? Changes one place of a module at a time and runs the tests that should fail.

    nice -n 15 python -m tests.tools.source_mutants --count 15 --seed 1 --out survivors.jsonl checker/planes.py rules/product.py

Runs on a copy of the package in a temporary folder. Libraries are loaded once; each mutant is tried in a fork of the process.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
LOADED_ONCE = ("torch", "scipy.optimize", "numpy", "mpmath", "gmpy2", "hypothesis", "beartype.vale", "pytest", "onnx")

# Module -> the tests that are asked.
CHECKER = ("tests/checker/test_rounding.py", "tests/checker/test_meaning.py", "tests/checker/test_mutations.py")
STEPS = ("tests/engine/test_last_bits.py", "tests/engine/test_extremes.py", "tests/engine/test_refinement.py")
PASSES = (
    *STEPS,
    "tests/engine/test_half_spaces.py",
    "tests/engine/test_multiplier_bounds.py",
    "tests/soundness/test_draws.py",
)
RULES = (*STEPS, "tests/engine/test_identities.py", "tests/engine/test_building.py", "tests/engine/test_operators.py")
CURVES = (*STEPS, "tests/engine/test_curves.py")
TESTS: dict[str, tuple[str, ...]] = {
    **{f"engine/rules/{name}.py": RULES for name in ("product", "maximum", "relaxation")},
    "engine/rules/curve_enclosure.py": CURVES,
    **{f"engine/propagation/{name}.py": PASSES for name in ("backward", "pre_activation")},
    **{
        f"checker/{name}.py": CHECKER
        for name in ("planes", "propagation", "regions", "trees", "affine", "arithmetic", "derivation")
    },
}

COMPARED = {ast.Lt: ast.GtE, ast.LtE: ast.Lt, ast.Gt: ast.LtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Mult: ast.Add}
_PAIRS = (
    "minimum maximum|min max|amin amax|floor ceil|next_up next_down|floats_up floats_down|lower upper|argmin argmax"
)
NAMES = {a: b for pair in _PAIRS.split("|") for a, b in (pair.split(), pair.split()[::-1])}


class Mutant(NamedTuple):
    module: str
    line: int
    before: str
    after: str
    source: str


def places_of(source: str) -> list[tuple[int, int]]:
    """Every change of one place: the number of its node, and which of the changes there."""
    nodes = ast.walk(_bare(ast.parse(source)))
    return [(number, choice) for number, node in enumerate(nodes) for choice, _ in enumerate(_changes(node))]


def mutant_of(module: str, source: str, place: tuple[int, int]) -> Mutant:
    tree = _bare(ast.parse(source))
    target = list(ast.walk(tree))[place[0]]
    before, fresh = ast.unparse(target), list(_changes(target))[place[1]]
    after = ast.unparse(fresh)
    _replace(tree, target, fresh)
    return Mutant(module, getattr(target, "lineno", 0), before, after, ast.unparse(ast.fix_missing_locations(tree)))


def _bare(tree: ast.Module) -> ast.Module:
    """Without documentation and annotations of functions, which are no behavior."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body[0] = ast.copy_location(ast.Pass(), first)
            if isinstance(node, ast.Module):  # nothing but documentation comes before an import from the future
                node.body = [statement for statement in node.body if not isinstance(statement, ast.Pass)]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.copy_location(ast.Name("object", ast.Load()), node)
    return tree


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    changed: Any = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        changed.ops[0] = COMPARED[type(node.ops[0])]()
        yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        changed.op = SWAPPED[type(node.op)]()
        yield changed
        if isinstance(node.op, (ast.Add, ast.Sub)):
            yield copy.deepcopy(node.left)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert, ast.Not)):
        yield copy.deepcopy(node.operand)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        changed.attr = NAMES[node.attr]
        yield changed
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        changed.id = NAMES[node.id]
        yield changed
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        changed.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
        yield changed
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "where" and len(node.args) == 3:
            changed.args[1:] = changed.args[:0:-1]
            yield changed
        elif node.func.attr in ("nextafter", "abs"):
            yield copy.deepcopy(node.args[0] if node.args else node.func.value)


def _replace(tree: ast.AST, target: ast.AST, fresh: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, field, fresh)
            elif isinstance(value, list):
                setattr(parent, field, [fresh if item is target else item for item in value])


def _run(copied: Path, tests: tuple[str, ...], limit: float) -> str:
    """`killed`, `survived`, `timeout`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.chdir(copied)
        sys.path.insert(0, str(copied))
        import pytest

        code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])
        os._exit(int(code))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="+", choices=sorted(TESTS))
    parser.add_argument("--count", type=int, default=15, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each")
    parser.add_argument("--only", default=None, help="arguments of pytest instead of the tests that are named here")
    parser.add_argument("--again", type=Path, default=None, help="only those that survived according to this file")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    for name in LOADED_ONCE:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "project"
        for part in ("mlflow_lipschitz", "tests"):
            shutil.copytree(ROOT / part, copied / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copied)
        for name in list(sys.modules):
            if name.split(".")[0] in ("tests", "mlflow_lipschitz"):
                del sys.modules[name]
        sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))]
        for module in asked.modules:
            tests = tuple(shlex.split(asked.only)) if asked.only else TESTS[module]
            _try_module(copied, module, tests, asked)
    return 0


def _try_module(copied: Path, module: str, tests: tuple[str, ...], asked: argparse.Namespace) -> None:
    path = copied / "mlflow_lipschitz" / module
    source = path.read_text(encoding="utf-8")
    found = places_of(source)
    path.write_text(ast.unparse(_bare(ast.parse(source))), encoding="utf-8")
    if (unchanged := _run(copied, tests, 4 * asked.limit)) != "survived":
        raise SystemExit(f"{module}: {unchanged} without a change; is a test failing, or slow?")
    survived = None if asked.again is None else [json.loads(line) for line in asked.again.read_text().splitlines()]
    for place in random.Random(asked.seed).sample(found, min(asked.count, len(found))):
        mutant = mutant_of(module, source, place)
        if survived is not None and not any(_is_survivor(mutant, told) for told in survived):
            continue
        path.write_text(mutant.source, encoding="utf-8")
        outcome = {**mutant._asdict(), "outcome": _run(copied, tests, asked.limit), "of": len(found)}
        del outcome["source"]
        with asked.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(outcome) + "\n")
    path.write_text(source, encoding="utf-8")


def _is_survivor(mutant: Mutant, told: dict[str, Any]) -> bool:
    same = all(told[name] == getattr(mutant, name) for name in ("module", "line", "before", "after"))
    return same and told["outcome"] != "killed"


if __name__ == "__main__":
    sys.exit(main())
