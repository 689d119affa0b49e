"""An interrupted audit goes on where it stopped, and only with rows that are, bit for bit, those it would measure itself."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.errors import AuditError, Interrupted, UsageError
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.gate.verdict import judge
from mlflow_lipschitz.pipeline import journal as journal_module
from mlflow_lipschitz.pipeline import measure as measure_module
from mlflow_lipschitz.pipeline.journal import HEADER, WORK_FOLDER, discard, opened
from mlflow_lipschitz.pipeline.measure import MeasureOptions, measure, seconds_before
from mlflow_lipschitz.pipeline.partial import NOT_MEASURED, NOTE, TABLE
from mlflow_lipschitz.pipeline.question import Question
from mlflow_lipschitz.pipeline.row_bounds import table_columns
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry.keys import SigningKey
from mlflow_lipschitz.rows import AuditedRows
from tests.pipeline.test_measure import kink, question, rows
from tests.registry.keyring import key

FIELDS = {"policy (digest)": "p", "device": "cpu"}
ROWS = tuple((float(i), i - 2.0) for i in range(5))
POLICY = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: tests, version: 1}
model: {output: 0}
perturbation: {norm: linf, radius: 0.5}
checks:
  - {id: steady, type: lipschitz_at_most, max: 1000.0, mostly: 0.5}
"""


def options(**changes: object) -> MeasureOptions:
    return MeasureOptions(**{"chunk_size": 2, "fields": FIELDS, **changes})  # type: ignore[arg-type]


def interrupted(directory: Path, after: int = 4, **changes: object) -> None:
    """An audit of ROWS that is stopped when so many rows are finished."""

    def stop(done: int, total: int, gap: float) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        measure(kink(), rows(*ROWS), question(), directory, options(**changes), stop)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the chunks that are really computed, from the start of the test on."""
    found: list[int] = []
    original = measure_module._measure_chunk

    def counting(graph: Graph, part: AuditedRows, asked: Question, device: str) -> dict[str, np.ndarray]:
        found.append(len(part))
        return original(graph, part, asked, device)

    monkeypatch.setattr(measure_module, "_measure_chunk", counting)
    return found


def parts(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / WORK_FOLDER).glob("*.npz"))


def table(arrays: dict[str, np.ndarray]) -> BoundsTable:
    return BoundsTable.from_columns(*table_columns(rows(*ROWS), question(), arrays))


def test_finished_rows_are_taken_and_none_is_computed_twice(tmp_path: Path, sizes: list[int]) -> None:
    interrupted(tmp_path)
    assert (parts(tmp_path), sizes) == (["00000000.npz", "00000002.npz"], [2, 2])
    told: list[tuple[int, int]] = []
    resumed = measure(
        kink(), rows(*ROWS), question(), tmp_path, options(resume=True), lambda n, total, gap: told.append((n, total))
    )
    assert sizes == [2, 2, 1]
    assert told == [(4, 5), (5, 5)]
    assert resumed["resumed"].tolist() == [True] * 4 + [False]
    assert seconds_before(resumed) == resumed["seconds"][:4].sum() > 0
    whole = measure(kink(), rows(*ROWS), question(), tmp_path / "other", options())
    assert table(resumed).bounds_digest() == table(whole).bounds_digest()
    assert seconds_before(whole) == 0
    evidence = [zipfile.ZipFile(folder / "evidence.npz") for folder in (tmp_path, tmp_path / "other")]
    contents = [{name: archive.read(name) for name in archive.namelist()} for archive in evidence]
    assert contents[0] == contents[1]
    assert len(contents[0]) > 0


def test_all_finished_is_all_taken(tmp_path: Path, sizes: list[int]) -> None:
    measure(kink(), rows(*ROWS), question(), tmp_path, options())
    assert sizes == [2, 2, 1]
    again = measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))
    assert sizes == [2, 2, 1]
    assert again["resumed"].all()


def test_without_resume_everything_is_new(tmp_path: Path, sizes: list[int]) -> None:
    interrupted(tmp_path)
    measure(kink(), rows(*ROWS), question(), tmp_path, options())
    assert sizes == [2, 2, 2, 2, 1]


def test_there_may_be_nothing_to_resume(tmp_path: Path, sizes: list[int]) -> None:
    measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fields": {**FIELDS, "policy (digest)": "q"}}, r"another policy \(digest\)"),
        ({"fields": {**FIELDS, "device": "cuda H100"}}, "another device"),
        ({"fields": {"device": "cpu"}}, r"another policy \(digest\)"),
        ({"fields": {**FIELDS, "seed": "1"}}, "another seed"),
        ({"chunk_size": 3}, "another chunk size"),
        ({"signer": key(1)}, "another signature"),
    ],
)
def test_another_audit_is_refused_and_its_journal_stays(
    changes: dict[str, object], named: str, tmp_path: Path, sizes: list[int]
) -> None:
    interrupted(tmp_path)
    with pytest.raises(UsageError, match=named):
        measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True, **changes))
    measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))
    assert sizes == [2, 2, 1]


def test_another_graph_or_other_rows_are_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with pytest.raises(UsageError, match="another graph"):
        measure(kink(-3.0), rows(*ROWS), question(), tmp_path, options(resume=True))
    moved = tuple((a, b + 1e-12) for a, b in ROWS)
    with pytest.raises(UsageError, match="another rows"):
        measure(kink(), rows(*moved), question(), tmp_path, options(resume=True))


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped", "text", "swapped", "other key"])
def test_a_record_that_cannot_be_verified_is_measured_again(damage: str, tmp_path: Path, sizes: list[int]) -> None:
    interrupted(tmp_path)
    last = tmp_path / WORK_FOLDER / "00000002.npz"
    if damage == "torn":
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    elif damage == "empty":
        last.write_bytes(b"")
    elif damage == "flipped":
        flip(last, 0.4)
    elif damage == "text":
        last.write_text("not an archive")
    elif damage == "swapped":  # right digest, wrong rows
        last.write_bytes((tmp_path / WORK_FOLDER / "00000000.npz").read_bytes())
    else:
        interrupted(tmp_path / "other", fields={**FIELDS, "device": "cuda"})
        last.write_bytes((tmp_path / "other" / WORK_FOLDER / "00000002.npz").read_bytes())
        del sizes[2:]
    with pytest.warns(UserWarning, match=r"00000002\.npz cannot be verified"):
        resumed = measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))
    assert sizes == [2, 2, 2, 1]
    assert resumed["resumed"].tolist() == [True, True, False, False, False]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_nothing_is_read_from_a_pipe(tmp_path: Path, sizes: list[int]) -> None:
    interrupted(tmp_path)
    for name in ("00000002.npz", HEADER):
        (tmp_path / WORK_FOLDER / name).unlink()
        os.mkfifo(tmp_path / WORK_FOLDER / name)
    measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))
    assert sizes == [2, 2, 2, 1]


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path, after=2)
    path = tmp_path / WORK_FOLDER / "00000000.npz"
    fields = {**FIELDS, **measure_module.measured_fields(kink(), rows(*ROWS)), "chunk size": "2"}
    kept = opened(tmp_path, fields, None, resume=True)
    content, truth = path.read_bytes(), kept.kept(0, 2)
    assert truth is not None
    generator = np.random.default_rng(5)
    found = 0
    for position in generator.choice(len(content), size=min(400, len(content)), replace=False):
        broken = bytearray(content)
        broken[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(broken))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal_module.warnings, "warn", lambda *a, **k: None)
            answer = kept.kept(0, 2)
        found += answer is None
        if answer is not None:  # a date in the directory, say
            assert journal_module.arrays_digest(answer) == journal_module.arrays_digest(truth)
    assert found > 200


def rewritten(path: Path, change: dict[str, np.ndarray]) -> None:
    """A record with other numbers and a right digest: what somebody can write who has no key."""
    arrays = journal_module.read_arrays(path)
    record = json.loads(arrays.pop("journal").tobytes())
    arrays |= change
    record["sha256"] = journal_module.arrays_digest(arrays)
    text = np.frombuffer(journal_module.canonical_json(record), dtype=np.uint8)
    journal_module.write_arrays(path, {**arrays, "journal": text})


def test_with_a_key_a_forged_record_is_not_taken(tmp_path: Path, sizes: list[int]) -> None:
    signer = key(1)
    interrupted(tmp_path, signer=signer)
    rewritten(tmp_path / WORK_FOLDER / "00000002.npz", {"lipschitz_upper": np.zeros(2)})
    with pytest.warns(UserWarning, match="not signed by the key of this audit"):
        resumed = measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True, signer=signer))
    assert sizes == [2, 2, 2, 1]
    assert (resumed["lipschitz_upper"] > 0).all()


def test_another_key_or_none_does_not_take_what_a_key_signed(tmp_path: Path) -> None:
    interrupted(tmp_path, signer=key(1))
    for signer in (key(2), None):
        with pytest.raises(UsageError, match="another signature"):
            measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True, signer=signer))


def test_a_header_swapped_by_hand_does_not_make_other_records_count(tmp_path: Path, sizes: list[int]) -> None:
    """Records say themselves which audit they are of."""
    signer: SigningKey = key(2)
    interrupted(tmp_path, signer=key(1))
    header = tmp_path / WORK_FOLDER / HEADER
    header.write_text(header.read_text().replace(key(1).public.keyid, signer.public.keyid))
    with pytest.warns(UserWarning, match="another key than expected"):
        measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True, signer=signer))
    assert sizes == [2, 2, 2, 2, 1]


def test_a_damaged_header_costs_nothing(tmp_path: Path, sizes: list[int]) -> None:
    interrupted(tmp_path)
    (tmp_path / WORK_FOLDER / HEADER).write_bytes(b"\xff{")
    measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))
    assert sizes == [2, 2, 1]


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(self.path),)


def test_a_pickle_in_a_record_is_not_loaded(tmp_path: Path) -> None:
    interrupted(tmp_path)
    path, sprung = tmp_path / WORK_FOLDER / "00000002.npz", tmp_path / "sprung"
    trap = np.empty(1, dtype=object)
    trap[0] = Trap(str(sprung))
    np.savez(path, lipschitz_upper=trap)
    with pytest.warns(UserWarning, match="cannot be verified"):
        measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(str(sprung))))
    assert sprung.exists()  # the trap works


def test_a_record_that_unfolds_without_end_is_not_unfolded(tmp_path: Path) -> None:
    interrupted(tmp_path)
    path = tmp_path / WORK_FOLDER / "00000002.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(600):
            file.write(bytes(1 << 20))
    with pytest.warns(UserWarning, match="records larger than the file allows"):
        measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))


def test_links_lead_nowhere(tmp_path: Path) -> None:
    """A folder from somebody else must not have files elsewhere removed or overwritten."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "00000000.npz").write_text("precious")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / WORK_FOLDER).symlink_to(elsewhere)
    with pytest.raises(UsageError, match="link to another place"):
        measure(kink(), rows(*ROWS), question(), tmp_path / "a", options())
    discard(tmp_path / "a")
    (tmp_path / "b" / WORK_FOLDER).mkdir(parents=True)
    for name in ("00000000.partial", "00000002.npz", "journal.partial", "journal.json"):
        (tmp_path / "b" / WORK_FOLDER / name).symlink_to(elsewhere / "00000000.npz")
    measure(kink(), rows(*ROWS), question(), tmp_path / "b", options())
    assert (elsewhere / "00000000.npz").read_text() == "precious"


def test_the_journal_goes_and_nothing_else(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (tmp_path / WORK_FOLDER / "00000004.partial").write_bytes(b"half a file")
    (tmp_path / WORK_FOLDER / "notes.npz").write_text("not ours")
    measure(kink(), rows(*ROWS), question(), tmp_path, options(resume=True))
    discard(tmp_path)
    assert [path.name for path in (tmp_path / WORK_FOLDER).iterdir()] == ["notes.npz"]
    (tmp_path / WORK_FOLDER / "notes.npz").unlink()
    discard(tmp_path)
    assert not (tmp_path / WORK_FOLDER).exists()


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_arrays", full)  # a disk cannot be filled here
        with pytest.raises(AuditError, match=r"No space left on device\. Make room, .* --resume"):
            measure(kink(), rows(*ROWS), question(), tmp_path, options())
    note = json.loads((tmp_path / NOTE).read_text())
    assert (note["status"], note["finished"]) == ("FAILED", 0)


def test_an_interruption_leaves_a_partial_table_that_no_policy_passes(tmp_path: Path) -> None:
    interrupted(tmp_path)
    note = json.loads((tmp_path / NOTE).read_text())
    assert (note["status"], note["finished"], note["points"], note["verdict"]) == ("KILLED", 4, 5, None)
    found = BoundsTable.read(tmp_path / TABLE)
    assert found.columns["point_id"].tolist() == ["p0", "p1", "p2", "p3", "p4"]
    assert (found.columns["status"][4], found.columns["method"][4]) == ("undecided", NOT_MEASURED)
    assert np.isfinite(found.columns["lipschitz_upper"]).tolist() == [True] * 4 + [False]
    assert NOT_MEASURED not in found.columns["method"][:4]
    whole = table(measure(kink(), rows(*ROWS), question(), tmp_path / "other", options()))
    for name, values in found.columns.items():
        if name != "seconds":
            assert values[:4].tolist() == whole.columns[name][:4].tolist(), name
    policy = load_policy(POLICY)
    assert judge(whole, policy, expected_points=5).status == "passed"
    judged = judge(found, policy, expected_points=5)
    assert judged.status == "blocked"
    assert [check.id for check in judged.failed] == ["implicit-certified-fraction"]
    # The finished rows alone are not the rows that were to be audited.
    alone = BoundsTable.from_columns(found.feature_names, {name: values[:4] for name, values in found.columns.items()})
    assert judge(alone, policy, expected_points=5).status == "error"


def test_a_table_without_a_finished_row_is_valid(tmp_path: Path) -> None:
    interrupted(tmp_path, after=0)
    found = BoundsTable.read(tmp_path / TABLE)
    assert set(found.columns["status"]) == {"undecided"}
    assert found.feature_names == ("a", "b")


def test_the_last_words_say_how_to_go_on(tmp_path: Path) -> None:
    def stop(done: int, total: int, gap: float) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        measure(kink(), rows(*ROWS), question(), tmp_path, options(), stop)
    assert str(caught.value).startswith("2 of 5 rows are finished and kept in ")
    assert str(caught.value).endswith(f"--out {tmp_path} --resume")
