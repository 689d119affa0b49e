"""Every code block of README.md and docs/ runs, page by page, as a reader would work through it."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import Reader, blocks_of
from tests.docs.commands import ROOT, Shell, programs

# docs/reference/ is generated, see docs/generate.py; its blocks are usage lines.
_WRITTEN = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent.name != "reference"]
PAGES = [ROOT / "README.md", *_WRITTEN]

# Pages that speak of a model `credit-scorer` in a store of the reader's own, and what they take for granted beside it.
_FILES = {
    "README.md": ["rows.parquet", "network.onnx", "property.vnnlib"],
    "docs/gate.md": ["policy.yaml", "keys"],
    "docs/attestation-format.md": ["policy.yaml", "rows.parquet"],
    "docs/soundness.md": ["audit"],
}

# Names that README.md leaves to the reader.
_NAMES = """\
import mlflow
import numpy as np
import pandas as pd

rows = pd.read_parquet("rows.parquet")
points = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
model_or_path, example, labels = "network.onnx", points, np.zeros(4, dtype=int)
"""

_SKIP = re.compile(r"<!--+\s*skip:\s*(.*?)\s*--+>", re.DOTALL)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def folder_of_programs() -> Iterator[Path]:
    if shutil.which("bash") is None:
        pytest.skip("the blocks are written for bash, which is not here")
    with programs() as folder:
        yield folder


@pytest.fixture(scope="session")
def credit_world(folder_of_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("credit") / "world"
    shell = Shell(folder, folder.parent / "state", folder_of_programs)
    shell.start(MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}")
    code, printed = shell.run(f"python '{Path(__file__).parent / 'credit_world.py'}' '{ROOT / 'README.md'}'")
    assert code == 0, printed
    return folder


@pytest.fixture
def reader(request: pytest.FixtureRequest, folder_of_programs: Path, tmp_path: Path) -> Reader:
    """In an empty folder; or, for pages about `credit-scorer`, beside that model and with keys configured."""
    page = named(request.getfixturevalue("page"))
    shell = Shell(tmp_path / "reader", tmp_path / "state", folder_of_programs)
    if page not in _FILES:
        shell.start()
        return Reader(shell)
    world: Path = request.getfixturevalue("credit_world")
    keys = {"LIPSCHITZ_SIGNING_KEY": "lipschitz-signing-key.pem", "LIPSCHITZ_TRUSTED_KEYS": "lipschitz-signing-key.pub"}
    paths = {name: str(world / "keys" / file) for name, file in keys.items()}
    # Each page has its own registry, so that it does not matter what another one did; the models' files are shared.
    shutil.copy2(world / "mlflow.db", tmp_path / "mlflow.db")
    shell.start(MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}", **paths)
    for name in _FILES[page]:
        copy = shutil.copytree if (world / name).is_dir() else shutil.copy2
        copy(world / name, shell.folder / name)  # type: ignore[operator]
    return Reader(shell, _NAMES)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_runs(page: Path, reader: Reader) -> None:
    reader.read(page)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_cannot_run_says_why(page: Path) -> None:
    reasons = [re.fullmatch(r'next\s+"[^"]{20,}"', found) for found in _SKIP.findall(page.read_text(encoding="utf-8"))]
    assert all(reasons)


@pytest.mark.parametrize("page", [page for page in PAGES if named(page) != "README.md"], ids=named)
def test_every_block_says_what_it_is(page: Path) -> None:
    assert [line for line, info, _ in blocks_of(page) if not info] == []


# The runner itself: a page that is wrong has to fail.


def read(text: str, folder_of_programs: Path, tmp_path: Path) -> Reader:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    found = Reader(Shell(tmp_path / "reader", tmp_path / "state", folder_of_programs))
    found.shell.start()
    found.read(page)
    return found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```sh\nfalse\n```", "exit code 1"),
        ("```sh\nfalse | true\n```", "exit code 1"),
        ("```console\n$ echo one\ntwo\n```", "the page shows 'two'"),
        ("```console\n$ false\n```", "exit code 1"),
        ("```console\n$ (exit 3)\n$ echo $?\n1\n```", "the page shows '1'"),
        ("```console\n$ printf 'a\\nb\\n'\nb\na\n```", "the page shows 'a'"),
        ("```python\nraise SystemExit('no')\n```", "exit code 1"),
        ("```python\nassert 1 == 2\n```", "AssertionError"),
        ('```python title="script.py"\nassert 1 == 2\n```\n```sh\npython script.py\n```', "AssertionError"),
        ("```sh\nmlflow-lipschitz explain nothing\n```", "no check type"),
        ('```sh\necho one\n```\n```text title="output"\ntwo\n```', "the page shows 'two'"),
        ("```fortran\nEND\n```", "nobody knows"),
        ('```python\n--8<-- "examples/nothing.py"\n```', "is not there"),
        ("```json\n{\n```", "Expecting"),
        ("```yaml\nkind: AuditPolicy\n```", "apiVersion"),
    ],
)
def test_a_wrong_page_fails(text: str, why: str, folder_of_programs: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=re.escape(why)):
        read(text, folder_of_programs, tmp_path)


def test_a_reader_keeps_variables_directory_and_files(folder_of_programs: Path, tmp_path: Path) -> None:
    found = read(
        "```sh\nexport WORD='two words'\nmkdir deeper\ncd deeper\n```\n"
        '```python title="say.py"\nimport os\nprint(os.environ["WORD"], os.getcwd()[-6:])\n```\n'
        "```console\n$ python say.py\ntwo … deeper\n$ mlflow-lipschitz explain nothing\nError: …\n$ echo $?\n2\n```\n"
        '<!-- skip: next "a reason that is long enough" -->\n```sh\nfalse\n```\n',
        folder_of_programs,
        tmp_path,
    )
    assert found.skipped == ["a reason that is long enough"]


def test_the_programs_are_those_of_this_checkout(folder_of_programs: Path, tmp_path: Path) -> None:
    found = read(
        "```python\nimport mlflow_lipschitz\nprint(mlflow_lipschitz.__file__)\n```", folder_of_programs, tmp_path
    )
    specification = importlib.util.find_spec("mlflow_lipschitz")
    assert specification is not None
    assert found.printed.strip() == specification.origin
