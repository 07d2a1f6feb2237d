"""The page on which a model is tried, asked over HTTP as a browser would."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from test_workflows_ensemble import make_trial

from guidino_tune.config import Data
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.serve import main as serve_command
from guidino_tune.workflows.predict import TrainedModel, load_model
from guidino_tune.workflows.serve import MARK, address_of, bound, is_loopback, make_app


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TrainedModel]]:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("served")
    model = load_model(make_trial(home / "trial", Data(kind="folder", root=str(home), image_size=32), 0), device="cpu")
    with bound("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(model, "<b>mine</b>"), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", model
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def ask(address: str, content: bytes | None = None, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(address, content, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def png(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(array).save(written, "PNG")
    return written.getvalue()


def opened(address: str) -> np.ndarray:
    assert address.startswith("data:image/png;base64,")
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_an_image_is_answered_with_what_the_model_predicts(served: tuple[str, TrainedModel], tmp_path: Path) -> None:
    address, model = served
    image = generate(3, 50)[0][:, :40]
    proba = model.predict_proba(image)[1]
    level = float(np.median(proba))
    status, text = ask(f"{address}/predict?name=a%20b.png&threshold={level}", png(image), **{MARK: "1"})
    assert status == 200
    found = json.loads(text)
    mask = model.predict(image, threshold=level)
    assert (found["width"], found["height"]) == (40, 50)
    assert np.array_equal(opened(found["labels"]), mask * 255)
    assert np.array_equal(opened(found["mask"])[..., 3] > 0, mask > 0)
    assert np.abs(opened(found["probability16"]) / 65535 - proba).max() < 1e-5
    assert np.array_equal(opened(found["image"]), image)
    assert opened(found["guide"]).shape == (50, 40, 3)
    assert found["areas"] == [{"name": "foreground", "pixels": int(mask.sum()), "share": pytest.approx(mask.mean())}]
    assert 0 < mask.mean() < 1


def test_what_is_no_image_is_one_clear_sentence_without_a_path_of_this_machine(served: tuple[str, TrainedModel]) -> None:
    address, _ = served
    for content, query in ((b"nothing", "name=a.png"), (b"", "name=a.png"), (png(generate(1, 20)[0]), "name=a.png&threshold=1")):
        status, text = ask(f"{address}/predict?{query}", content, **{MARK: "1"})
        assert status == 422
        assert json.loads(text)["error"]
        assert "guidino-tune-" not in text
        assert "Traceback" not in text


def test_no_other_site_reaches_the_model(served: tuple[str, TrainedModel]) -> None:
    address, _ = served
    image = png(generate(1, 20)[0])
    assert ask(f"{address}/predict?name=a.png", image)[0] == 403  # a form of another page cannot send the header
    assert ask(f"{address}/predict?name=a.png", image, Host="evil.example", **{MARK: "1"})[0] == 400
    assert ask(address, Host="evil.example")[0] == 400
    assert ask(address, Host="localhost:1")[0] == 200


def test_the_page_needs_nothing_from_elsewhere(served: tuple[str, TrainedModel]) -> None:
    address, _ = served
    with urllib.request.urlopen(address, timeout=60) as reply:
        text, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in policy
    assert "NONCE" not in text
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert text.count(f'nonce="{nonce}"') == 2
    told = json.loads(ask(f"{address}/about")[1])
    assert (told["name"], told["classes"], told["binary"]) == ("<b>mine</b>", [{"name": "foreground", "colour": [255, 45, 210]}], True)


def test_a_port_that_is_taken_is_said_or_avoided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bound("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        with pytest.raises(UserError, match="nothing can be served there"):
            bound("127.0.0.1", port)
        model = make_trial(tmp_path / "trial", Data(kind="folder", root=str(tmp_path), image_size=32), 0)
        assert serve_command([str(model), "--port", str(port)]) == 2
        assert "choose another --port or --host" in capsys.readouterr().err
        assert serve_command([str(model), "--port", "70000"]) == 2
        assert serve_command([str(model), "--host", "203.0.113.7"]) == 2
        assert "has no password" in capsys.readouterr().err
    with bound("127.0.0.1", None) as first, bound("127.0.0.1", None) as second:
        assert first.getsockname()[1] != second.getsockname()[1]
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1")] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost"), ("::1", "[::1]"), ("[::1]", "[::1]"), ("::", "localhost"), ("lab", "lab")],
)
def test_the_address_that_is_told_is_one(host: str, address: str) -> None:
    assert address_of(host, 8080) == f"http://{address}:8080"
