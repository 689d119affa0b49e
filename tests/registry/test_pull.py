"""A model URI becomes hashed files and a callable, and code in those files never runs unasked."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import yaml
from mlflow.models import infer_signature
from onnx import numpy_helper

from mlflow_lipschitz.errors import RegistryError, UntrustedModel, UsageError
from mlflow_lipschitz.registry.manifest import manifest_of
from mlflow_lipschitz.registry.pull import load_model_object, pull
from tests.registry.stores import artifact_folder, fresh_name, log_onnx, network, onnx_model, rows


class LeavesAMark:
    """Unpickling this creates the file: the proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_every_form_of_uri_reaches_the_same_files(store: str) -> None:
    name = fresh_name()
    info = log_onnx(name)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(name, "champion", "1")
    folder = artifact_folder(client, info.model_id)
    forms = [f"models:/{name}/1", f"models:/{name}@champion", f"models:/{info.model_id}"]
    forms += [f"runs:/{info.run_id}/model", str(folder), folder.as_uri()]
    pulled = [pull(form) for form in forms]
    assert len({p.manifest.digest for p in pulled}) == 1
    assert {p.model_id for p in pulled} == {info.model_id}
    for p in pulled[:4]:
        assert (p.name, p.version, p.run_id) == (name, "1", info.run_id)
    assert (pulled[4].name, pulled[4].version) == (None, None)


def test_onnx_is_served_as_the_network_answers(store: str) -> None:
    pulled = pull(log_onnx().model_uri)
    assert pulled.flavor == "onnx"
    assert isinstance(load_model_object(pulled), onnx.ModelProto)
    assert pulled.served(rows().astype(np.float64)) == pytest.approx(network(rows()), abs=1e-6)
    assert np.asarray(pulled.input_example) == pytest.approx(rows(2))
    assert pulled.feature_names == ()


def test_an_explicit_store_leaves_mlflows_own_choice_alone(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    info = log_onnx(name)
    elsewhere = f"sqlite:///{tmp_path / 'empty.db'}"
    mlflow.set_tracking_uri(elsewhere)
    mlflow.set_registry_uri(elsewhere)
    for uri in (f"models:/{name}/1", info.model_uri, f"runs:/{info.run_id}/model"):
        assert pull(uri, tracking_uri=store).name == name
    assert mlflow.get_tracking_uri() == elsewhere
    assert not (tmp_path / "empty.db").exists()


def test_a_plain_folder_needs_no_store(store: str, tmp_path: Path) -> None:
    folder = artifact_folder(mlflow.MlflowClient(), log_onnx().model_id)
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    assert pull(str(folder)).flavor == "onnx"


def test_a_copied_version_keeps_the_id_of_the_logged_model(store: str) -> None:
    name, target = fresh_name(), fresh_name("prod")
    info = log_onnx(name)
    mlflow.MlflowClient().copy_model_version(f"models:/{name}/1", target)
    assert pull(f"models:/{target}/1").model_id == info.model_id


def test_pt2_is_loaded_without_its_pickled_records(store: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).eval()
    expected = module(torch.tensor(rows())).detach().numpy()
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(
            module,
            name="model",
            serialization_format="pt2",
            input_example=rows(3),
            signature=infer_signature(rows(), expected),
            pip_requirements=["torch"],
        )
    pulled = pull(info.model_uri)
    assert pulled.flavor == "pytorch-pt2"
    assert isinstance(load_model_object(pulled), torch.export.ExportedProgram)
    assert pulled.served(rows().astype(np.float64)) == pytest.approx(expected, abs=1e-6)


def _mlp_regressor(frame: pd.DataFrame) -> object:
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network_ = MLPRegressor(hidden_layer_sizes=(5,), max_iter=30, random_state=0)
    return make_pipeline(StandardScaler(), network_).fit(frame, frame["bmi"])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_skops_pipeline_is_loaded_with_our_own_list(store: str) -> None:
    frame = pd.DataFrame(rows(40).astype(float), columns=["age", "bmi", "bp"])
    estimator = _mlp_regressor(frame)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            estimator,
            name="model",
            serialization_format="skops",
            skops_trusted_types=["sklearn.neural_network._stochastic_optimizers.AdamOptimizer"],
            input_example=frame.head(2),
            pip_requirements=["scikit-learn"],
        )
    pulled = pull(info.model_uri)
    assert pulled.flavor == "sklearn-skops"
    assert pulled.feature_names == ("age", "bmi", "bp")
    assert list(pulled.input_example.columns) == ["age", "bmi", "bp"]
    assert pulled.served(frame.to_numpy()) == pytest.approx(estimator.predict(frame))


def test_skops_types_outside_the_list_are_named_though_the_model_trusts_them(store: str) -> None:
    from sklearn.preprocessing import FunctionTransformer

    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            FunctionTransformer(np.exp),
            name="model",
            serialization_format="skops",
            skops_trusted_types=["numpy.exp"],
            pip_requirements=["scikit-learn"],
        )
    with pytest.raises(UntrustedModel, match=r"numpy\.exp \(FunctionNode\)") as refusal:
        pull(info.model_uri)
    assert "mlflow.onnx.log_model" in str(refusal.value)


def test_a_pickled_sklearn_model_is_refused_before_loading(store: str, tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    estimator = LinearRegression().fit(rows(), rows()[:, 0])
    folder = tmp_path / "pickled"
    mlflow.sklearn.save_model(estimator, folder, serialization_format="cloudpickle", pip_requirements=["scikit-learn"])
    mark = tmp_path / "code-ran"
    (folder / "model.pkl").write_bytes(pickle.dumps(LeavesAMark(mark)))
    with pytest.raises(UntrustedModel, match="serialization_format='skops'"):
        pull(str(folder))
    assert not mark.exists()
    # The counter-check: the same bytes do leave the mark once the user says that they are trusted.
    with pytest.raises(RegistryError, match="cannot predict"):
        pull(str(folder), trust_pickle=True)
    assert mark.exists()


def test_a_trusted_pickle_is_served(store: str, tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    estimator = LinearRegression().fit(rows(), rows()[:, 0])
    mlflow.sklearn.save_model(
        estimator, tmp_path / "m", serialization_format="pickle", pip_requirements=["scikit-learn"]
    )
    pulled = pull(str(tmp_path / "m"), trust_pickle=True)
    assert pulled.flavor == "sklearn-pickle"
    assert pulled.served(rows()) == pytest.approx(estimator.predict(rows()))


def test_a_pickled_torch_model_is_refused_before_loading(store: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "pickled"
    mlflow.pytorch.save_model(torch.nn.Linear(3, 1), folder, serialization_format="pickle", pip_requirements=["torch"])
    mark = tmp_path / "code-ran"
    torch.save(LeavesAMark(mark), folder / "data" / "model.pth")
    with pytest.raises(UntrustedModel, match="serialization_format='pt2'"):
        pull(str(folder))
    assert not mark.exists()


def test_a_trusted_torch_pickle_is_served(store: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(3, 1).eval()
    mlflow.pytorch.save_model(module, tmp_path / "m", serialization_format="pickle", pip_requirements=["torch"])
    pulled = pull(str(tmp_path / "m"), trust_pickle=True)
    assert pulled.flavor == "pytorch-pickle"
    assert pulled.served(rows()) == pytest.approx(module(torch.tensor(rows())).detach().numpy())


@pytest.fixture
def onnx_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "onnx-model"
    mlflow.onnx.save_model(onnx_model(), folder, pip_requirements=["onnxruntime"])
    return folder


def _edit(folder: Path, change) -> None:
    content = yaml.safe_load((folder / "MLmodel").read_text())
    change(content)
    (folder / "MLmodel").write_text(yaml.safe_dump(content))


def test_a_loader_module_of_its_own_is_refused_and_not_imported(onnx_folder: Path, monkeypatch, tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"
    (tmp_path / "evil_loader.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _edit(onnx_folder, lambda c: c["flavors"]["python_function"].update(loader_module="evil_loader"))
    with pytest.raises(UntrustedModel, match="evil_loader"):
        pull(str(onnx_folder))
    assert not mark.exists()


@pytest.mark.parametrize("flavor", ["onnx", "python_function"])
def test_a_code_folder_is_refused_and_stays_off_the_import_path(onnx_folder: Path, flavor: str) -> None:
    (onnx_folder / "code").mkdir()
    (onnx_folder / "code" / "numpy_patch.py").write_text("")
    _edit(onnx_folder, lambda c: c["flavors"][flavor].update(code="code"))
    before = list(sys.path)
    with pytest.raises(UntrustedModel, match="ships Python code"):
        pull(str(onnx_folder))
    assert sys.path == before


def test_models_from_code_are_refused(store: str, tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"
    script = tmp_path / "script.py"
    script.write_text(
        "import mlflow, os, pathlib\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input):\n        return model_input\n"
        f"pathlib.Path({str(mark)!r}).touch()\n"
        "mlflow.models.set_model(Model())\n"
    )
    mlflow.pyfunc.save_model(tmp_path / "m", python_model=str(script), pip_requirements=["mlflow"])
    mark.unlink(missing_ok=True)
    with pytest.raises(UntrustedModel, match="Python code only"):
        pull(str(tmp_path / "m"))
    assert not mark.exists()


@pytest.mark.parametrize("data", ["../secret.onnx", "/etc/passwd", ["model.onnx"]])
def test_paths_that_leave_the_folder_are_refused(onnx_folder: Path, data: object) -> None:
    shutil.copy(onnx_folder / "model.onnx", onnx_folder.parent / "secret.onnx")
    _edit(onnx_folder, lambda c: c["flavors"]["onnx"].update(data=data))
    with pytest.raises(UntrustedModel, match="outside the model's folder"):
        pull(str(onnx_folder))


def test_weights_outside_the_folder_are_refused(onnx_folder: Path, tmp_path: Path) -> None:
    model = onnx_model()
    tensor = model.graph.initializer[0]
    (tmp_path / "stolen.bin").write_bytes(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../stolen.bin")
    (onnx_folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UntrustedModel, match="outside the model's folder"):
        pull(str(onnx_folder))


def test_symbolic_links_are_refused(onnx_folder: Path) -> None:
    (onnx_folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(UntrustedModel, match="symbolic link"):
        pull(str(onnx_folder))


def test_an_unreachable_store_is_said_at_once() -> None:
    with pytest.raises(RegistryError, match="mlflow server --host 127"):
        pull("models:/scorer/1", tracking_uri="http://127.0.0.1:9")


@pytest.mark.parametrize(
    "uri", ["models:/absent/1", "models:/absent@champion", "models:/m-absent", "runs:/absent/model"]
)
def test_what_the_store_does_not_know_is_a_registry_error(store: str, uri: str) -> None:
    with pytest.raises(RegistryError, match="mlflow ui"):
        pull(uri)


@pytest.mark.parametrize("uri", ["no/such/folder", "models:/scorer/Production", "s3://bucket/model"])
def test_other_spellings_are_usage_errors(store: str, uri: str) -> None:
    with pytest.raises(UsageError, match="models:/"):
        pull(uri)


def test_a_folder_without_mlmodel_and_an_unknown_flavor(onnx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no MLmodel"):
        (tmp_path / "plain").mkdir()
        pull(str(tmp_path / "plain"))
    _edit(onnx_folder, lambda c: c.update(flavors={"xgboost": {}, "python_function": {}}))
    with pytest.raises(RegistryError, match="xgboost"):
        pull(str(onnx_folder))


def test_a_manifest_notices_every_kind_of_change(onnx_folder: Path) -> None:
    before = manifest_of(onnx_folder)
    assert type(before).from_json(before.to_json()) == before
    (onnx_folder / "MLmodel").write_text("changed")
    (onnx_folder / "model.onnx").unlink()
    (onnx_folder / "extra").write_text("")
    after = manifest_of(onnx_folder)
    assert before.differences(after) == ("MLmodel has changed", "extra is new", "model.onnx is missing")
    assert before.digest != after.digest
    assert before.differences(before) == ()
