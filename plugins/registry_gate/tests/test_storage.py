"""Reading and freezing files without a server: local folders, and stores whose files have to be downloaded first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import signing
from mlflow.store.artifact import artifact_repository_registry as registry_module
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow_lipschitz_gate.config import Limits
from mlflow_lipschitz_gate.places import key_of, key_of_path
from mlflow_lipschitz_gate.storage import Unreadable, hash_files, manifest_digest, read_file


class Bucket(LocalArtifactRepository):
    """A store like a bucket, on this disk: files are listed and downloaded, and none has a local path."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri.removeprefix("bucket://here"), tracking_uri, registry_uri)

    def get_local_path(self, artifact_path: str) -> None:
        return None


FILES = {"MLmodel": b"flavors", "data/model.onnx": b"weights" * 1000, "data/deep/er.bin": b""}


@pytest.fixture(params=["", "bucket://here"], ids=["local", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    kinds = registry_module._artifact_repository_registry._registry
    kinds["bucket"] = Bucket
    yield f"{request.param}{tmp_path}/model"
    del kinds["bucket"]


def test_every_file_is_hashed(uri: str) -> None:
    found = hash_files(uri, Limits())
    assert {f.path: f.sha256 for f in found} == {name: signing.sha256(content) for name, content in FILES.items()}
    assert manifest_digest(found) == signing.manifest_digest(FILES)


def test_limits_hold(uri: str) -> None:
    for limits, said in ((Limits(bytes=100), "limits.bytes"), (Limits(files=2), "limits.files")):
        with pytest.raises(Unreadable, match=said):
            hash_files(uri, limits)


def test_one_file_is_read_up_to_a_limit(uri: str) -> None:
    assert read_file(uri, "data/model.onnx", 10_000) == FILES["data/model.onnx"]
    with pytest.raises(Unreadable):
        read_file(uri, "data/absent", 10)


def test_nothing_is_no_model(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(Unreadable):
            hash_files(str(place), Limits())


def test_what_mlflow_writes_while_downloading_and_uploading_is_no_part_of_a_model(tmp_path: Path) -> None:
    for name in ("MLmodel", "registered_model_meta", ".artifact.uploading.x"):
        (tmp_path / name).write_bytes(b"x")
    assert [f.path for f in hash_files(str(tmp_path), Limits())] == ["MLmodel"]


def test_links_and_names_that_cannot_be_shown_are_refused(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "MLmodel")
    with pytest.raises(Unreadable, match="is a link"):
        hash_files(str(tmp_path), Limits())
    (tmp_path / "link").unlink()
    (tmp_path / "a\u202eb").write_bytes(b"x")
    with pytest.raises(Unreadable, match="cannot be shown"):
        hash_files(str(tmp_path), Limits())


def test_one_place_has_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(tmp_path))
    (tmp_path / "0").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "0")
    spellings = [
        "mlflow-artifacts:/0/model",
        "mlflow-artifacts://host:5000/0/model",
        "mlflow-artifacts:/0//model/",
        "mlflow-artifacts:/0/x/../model",
        "mlflow-artifacts:/0/%6dodel",
        "mlflow-artifacts:/0/%256dodel",
        "http://localhost:5000/api/2.0/mlflow-artifacts/artifacts/0/model",
        f"{tmp_path}/0/model",
        f"file://{tmp_path}/0/model",
        f"{tmp_path}/link/model",
    ]
    assert {key_of(spelling) for spelling in spellings} == {key_of_path(str(tmp_path), "0/model")}
    (tmp_path / "0" / "model").mkdir()
    (tmp_path / "0" / "model" / "again").symlink_to(tmp_path / "0" / "model", target_is_directory=True)
    paths = [
        "0/model",
        "link/model",
        "0/model/again",
        "link/model/again/again",
        "0/./model/",
        "/" + str(tmp_path)[1:] + "/0/model",
    ]
    for path in [*paths, "absent", "0/absent/x", "link/absent/../x", "0/model/again/absent", "..", "../x", ""]:
        real = os.path.realpath(os.path.join(tmp_path, path))
        assert key_of_path(str(tmp_path), path) == "file:" + real
        assert key_of_path(str(tmp_path / "link"), path) == "file:" + os.path.realpath(tmp_path / "link" / path)
    assert key_of("s3://Bucket/a/./b//c/") == key_of_path("s3://bucket/a", "b/c")
    assert key_of("s3://bucket/a") != key_of("s3://other/a")
