"""A registered model as MLflow itself loads it, and serves it over HTTP."""

import base64
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import EpsImagePlugin, Image

from guidino_tune.config import Experiment
from guidino_tune.data.intensity import IntensityRule
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.models import build_model
from guidino_tune.tracking import log_model_run
from guidino_tune.tracking.client import connect
from guidino_tune.tracking.flavour import CHAMPION, SCORE, crown
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.model_folder import export_model
from guidino_tune.workflows.export_model import export
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.serving import LOADER, Segmenter, example_image

ROOT = Path(__file__).parents[2]
IMAGE = generate(5, 48)[0]


def make_model(folder: Path) -> Path:
    values = {"data": {"kind": "demo", "image_size": 32}, "guide": {"kind": "none"}, "segmenter": {"kind": "unet", "base_width": 2}}
    experiment = Experiment.from_dict(values)
    model = build_model(experiment)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        head: Any = model.segmenter.head
        head.bias -= model.eval()(torch.randn(4, 3, 32, 32, generator=generator)).logits[0].mean()
    (folder / "best").mkdir()
    save_weights(folder / "best" / WEIGHTS, model.trained_state())
    return export_model(folder / "best", experiment, folder / "model", {})


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """MLflow's database with versions of validation 0.7, 0.9 and 0.8; and the model's folder."""
    import mlflow

    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    uri, folder = f"sqlite:///{home}/m.db", make_model(home)
    for score in (0.7, 0.9, 0.8):
        log_model_run(
            uri, "retrain", "U-Net", {}, {}, (), folder, "net", {}, artifact_location=home / "artifacts",
            loader_module=LOADER, example=example_image(3, False), description="a small U-Net", score=score,
        )  # fmt: skip
    mlflow.set_tracking_uri(uri)
    yield uri, folder
    mlflow.set_tracking_uri("")


def base64_of(image: np.ndarray) -> str:
    Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_pyfunc_predicts_what_the_model_predicts(registered: tuple[str, Path], tmp_path: Path) -> None:
    import mlflow

    _, folder = registered
    model = mlflow.pyfunc.load_model(f"models:/net@{CHAMPION}")
    own = load_model(folder)
    wanted = own.predict(IMAGE)
    assert 0.02 < (wanted > 0).mean() < 0.98
    Image.fromarray(IMAGE).save(file := tmp_path / "a.png")
    content = file.read_bytes()
    for one in (IMAGE, str(file), file, content, base64_of(IMAGE), f"data:image/png;base64,{base64_of(IMAGE)}"):
        assert np.array_equal(model.predict(one), wanted)
    table = pd.DataFrame({"image": [str(file), base64_of(IMAGE)]})
    for several in ([IMAGE, str(file)], np.stack([IMAGE, IMAGE]), table, {"image": [content, IMAGE]}, [IMAGE.tolist(), IMAGE]):
        found = model.predict(several)
        assert len(found) == 2
        assert all(np.array_equal(mask, wanted) for mask in found)
    assert np.array_equal(model.predict(IMAGE, params={"threshold": 0.9}), own.predict(IMAGE, threshold=0.9))
    assert np.array_equal(model.predict(IMAGE, params={"output": "probabilities"}), own.predict_proba(IMAGE))
    png = Image.open(io.BytesIO(base64.b64decode(model.predict(IMAGE, params={"output": "png"}))))
    assert np.array_equal(np.asarray(png) // 255, wanted)
    with pytest.raises(Exception, match="no output 'masks'"):
        model.predict(IMAGE, params={"output": "masks"})
    with pytest.raises(Exception, match="no such file"):
        model.predict("nowhere.png")


def test_bytes_are_decoded_as_the_training_decodes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-bit colours whole, and never by a program that a format starts, as PostScript would."""
    model = load_model(make_model(tmp_path))
    rule = IntensityRule("window", ((0.0, 4000.0),), ("deep",), "16 bits, 3 channels")
    deep = dataclasses.replace(model, rules=dataclasses.replace(model.rules, intensity=rule))
    file = tmp_path / "deep.png"
    file.write_bytes(imagecodecs.png_encode(IMAGE.astype(np.uint16) * 15))
    wanted = deep.predict(file)
    assert 0 < wanted.mean() < 1
    for image in (file.read_bytes(), base64.b64encode(file.read_bytes()).decode()):
        assert np.array_equal(Segmenter(deep).predict(image), wanted)
    with pytest.raises(UserError, match="16 bits"):
        Segmenter(model).predict(file.read_bytes())
    Image.fromarray(IMAGE).save(script := io.BytesIO(), "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("a program was started"))
    with pytest.raises(UserError, match="it is no image"):
        Segmenter(model).predict(script.getvalue())


def test_the_registry_tells_what_it_is(registered: tuple[str, Path], tmp_path: Path) -> None:
    import mlflow

    uri, _ = registered
    client = connect(uri)
    version = client.get_model_version_by_alias("net", CHAMPION)
    assert (version.version, version.description) in [("2", "a small U-Net"), (2, "a small U-Net")]
    info = mlflow.models.get_model_info(f"models:/net@{CHAMPION}")
    assert info.signature is not None
    assert {param.name: param.default for param in info.signature.params} == {"threshold": 0.5, "output": "mask"}
    files = Path(mlflow.artifacts.download_artifacts(f"models:/net@{CHAMPION}", dst_path=str(tmp_path)))
    example = json.loads((files / "serving_input_example.json").read_text())
    found = mlflow.pyfunc.load_model(str(files)).predict(example["inputs"])
    assert found[0].shape == (32, 32)
    # Neither pickled nor written: nothing of the model is code.
    described = yaml.safe_load((files / "MLmodel").read_text())["flavors"]["python_function"]
    assert set(described) == {"loader_module", "python_version"}
    assert not [file for file in files.rglob("*") if file.suffix in (".py", ".pkl", ".pickle")]


def test_a_registered_model_is_exported(registered: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, folder = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    export(f"models:/net@{CHAMPION}", "folder", tmp_path / "out")
    assert np.array_equal(load_model(tmp_path / "out").predict(IMAGE), load_model(folder).predict(IMAGE))


def test_a_champion_that_a_person_chose_stays(registered: tuple[str, Path]) -> None:
    uri, folder = registered
    client = connect(uri)
    client.set_registered_model_alias("net", CHAMPION, "1")
    log_model_run(uri, "retrain", "U-Net", {}, {}, (), folder, "net", {}, score=0.95)
    assert str(client.get_model_version_by_alias("net", CHAMPION).version) == "1"
    client.set_registered_model_alias("net", CHAMPION, "2")


def test_mlflow_serves_masks(registered: tuple[str, Path], tmp_path: Path) -> None:
    uri, folder = registered
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GUIDINO_TUNE_HOME": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/net@{CHAMPION}", "--env-manager", "local"]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port), "--workers", "1"],
            env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 180
        while time.monotonic() < until and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).read()
                break
            except OSError:
                time.sleep(0.3)
        else:
            pytest.fail((tmp_path / "log").read_text()[-3000:])
        wanted = load_model(folder).predict(IMAGE)
        found = ask(port, {"inputs": [base64_of(IMAGE), IMAGE.tolist()]})
        assert all(np.array_equal(mask, wanted) for mask in found)
        (png,) = ask(port, {"inputs": [base64_of(IMAGE)], "params": {"output": "png"}})
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) // 255, wanted)
        (tmp_path / "secret.png").write_bytes(base64.b64decode(base64_of(IMAGE)))
        with pytest.raises(urllib.error.HTTPError) as refused:  # a server opens no file that a stranger names
            ask(port, {"inputs": [str(tmp_path / "secret.png")]})
        assert b"is no image in base64" in refused.value.read()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def ask(port: int, request: dict[str, Any]) -> list[Any]:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        found: list[Any] = json.load(answer)["predictions"]
    return found


def test_a_score_that_is_no_number_is_no_champion(tmp_path: Path) -> None:
    """Tags can be changed on MLflow's pages: no later model may fail for it."""
    client = connect(f"sqlite:///{tmp_path}/m.db", timeout=60)
    client.create_registered_model("net")
    found = []
    for score in ("", "nan", "0.5", "inf", "good", "0.7", "0.6"):
        client.create_model_version("net", f"file://{tmp_path}", tags={SCORE: score} if score else {})
        found.append(crown(client, "net"))
    assert found == ["", "", "3", "3", "3", "6", "6"]
