"""A page on which a trained model is tried: drop an image, see what it makes of it, take the mask away."""

from __future__ import annotations

import base64
import io
import ipaddress
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from guidino_tune.analysis.pictures import CLASSES, PREDICTION, heat_colours
from guidino_tune.errors import UserError
from guidino_tune.framing import viewable
from guidino_tune.inference import ImagePrediction
from guidino_tune.workflows.predict import TrainedModel

PAGE = Path(__file__).with_name("serve_page.html")

LARGEST = 200 * 10**6
"""Bytes of an image file that is taken."""

PORT = 7860
"""Where the page is, if that is free."""

MARK = "x-guidino-tune"
"""Header of the page's own requests: a page of another site that sends it has to ask first, and is not answered."""


def make_app(model: TrainedModel, name: str, *, host: str = "127.0.0.1") -> FastAPI:
    """The page and what it asks: ``GET /``, ``GET /about``, ``POST /predict?name=FILE&threshold=0.5`` with the bytes of an image file.

    Args:
        model: Of ``load_model``.
        name: Of the model, for people.
        host: Address of this machine at which it may be asked; where it is a loopback address, by all of its names and no others, so that
            no page elsewhere reaches it under a name of its own.
    """
    app = FastAPI(title="guidino-tune", docs_url=None, redoc_url=None, openapi_url=None)
    if is_loopback(host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host.strip("[]"), "127.0.0.1", "localhost", "[::1]"])
    described = about(model, name)

    @app.get("/")
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; img-src data: blob:; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'"
        text = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
        return HTMLResponse(text, headers={"Content-Security-Policy": policy + "; base-uri 'none'; frame-ancestors 'none'"})

    @app.get("/about")
    def told() -> dict[str, Any]:
        return described

    @app.post("/predict")
    async def predict(request: Request, name: str = "image", threshold: float = 0.5) -> JSONResponse:
        if MARK not in request.headers:
            return _refused(403, f"the header {MARK} is missing")
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > LARGEST:
                return _refused(413, f"the file has more than {LARGEST // 10**6} MB; `guidino-tune predict` takes it")
        try:
            return JSONResponse(await run_in_threadpool(answer, model, bytes(content), name, threshold))
        except UserError as error:
            return _refused(422, "; ".join(filter(None, (error.what, error.todo))))

    return app


def about(model: TrainedModel, name: str) -> dict[str, Any]:
    """What the page tells of a model."""
    data = model.experiment.data
    colours = _colours(model)
    return {
        "name": name,
        "experiment": model.experiment.name,
        "image_size": model.image_size,
        "protocol": model.protocol.describe(scores=False),
        "classes": [{"name": c, "colour": list(colours[number])} for number, c in enumerate(model.class_names[1:], 1)],
        "binary": data.num_classes == 1,
        "form": model.rules.intensity.form,
        "device": str(model.device),
        "val_dice": model.provenance.get("val_dice"),
    }


def answer(model: TrainedModel, content: bytes, name: str, threshold: float) -> dict[str, Any]:
    """What a model makes of an image file.

    Args:
        model: Of ``load_model``.
        content: Of the file.
        name: Of the file, whose ending tells its format.
        threshold: Of the probability; for binary masks only.

    Returns:
        Size, seconds, pixels of each class, the least and the greatest value of heat maps (``ranges``), and pictures as ``data:``
        addresses: ``image``, ``mask`` (coloured, clear where nothing is), ``probability`` and ``guide`` (heat maps; the latter only where
        there is one), and to take away ``labels`` (0 and 255, or of several classes their numbers) and ``probability16`` (of foreground,
        0 to 65,535).

    Raises:
        UserError: It is no image of the kind that the model was trained on, or the threshold does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="guidino-tune-") as scratch:
        file = Path(scratch) / f"image{''.join(PurePosixPath(name).suffixes[-2:])[:16]}"  # of the name nothing else: it is a stranger's
        file.write_bytes(content)
        begun = time.perf_counter()
        try:
            pixels = model.decode(file)
        except UserError as error:
            raise UserError(error.what.replace(str(file), name), todo=error.todo) from None
        found = model.segment(pixels, threshold)
        seconds = time.perf_counter() - begun
    height, width = found.mask.shape
    counts = np.bincount(found.mask.ravel(), minlength=len(model.class_names))
    areas = [{"name": c, "pixels": int(counts[n]), "share": float(counts[n] / found.mask.size)} for n, c in enumerate(model.class_names)]
    ranges = {"probability": (0.0, 1.0)} | ({} if found.guide is None else {"guide": _range(found.guide)})
    return {
        "width": width, "height": height, "seconds": seconds, "areas": areas[1:], "ranges": ranges, **_pictures(model, pixels, found),
    }  # fmt: skip


def _pictures(model: TrainedModel, pixels: np.ndarray, found: ImagePrediction) -> dict[str, str]:
    colours = _colours(model)
    painted = np.zeros((*found.mask.shape, 4), np.uint8)
    for number, colour in colours.items():
        painted[found.mask == number] = (*colour, 255)
    binary = model.experiment.data.num_classes == 1
    probability = found.probability.clip(0, 1)
    pictures = {
        "image": Image.fromarray(np.ascontiguousarray(viewable(pixels))),
        "mask": Image.fromarray(painted),
        "probability": Image.fromarray(heat_colours(probability)),
        "labels": Image.fromarray(found.mask * 255 if binary else found.mask),
        "probability16": Image.fromarray(np.rint(probability * 65535).astype(np.uint16)),
    }
    if found.guide is not None:
        low, high = _range(found.guide)
        pictures["guide"] = Image.fromarray(heat_colours((found.guide - low) / (high - low)))
    return {name: _address(picture) for name, picture in pictures.items()}


def _range(guide: np.ndarray) -> tuple[float, float]:
    """Its least and greatest value, at least 0.05 apart: a flat guide looks flat."""
    low, high = float(guide.min()), float(guide.max())
    middle, half = (low + high) / 2, max((high - low) / 2, 0.025)
    return middle - half, middle + half


def _colours(model: TrainedModel) -> dict[int, tuple[int, int, int]]:
    names = model.class_names[1:]
    return {number: PREDICTION if len(names) == 1 else CLASSES[(number - 1) % len(CLASSES)] for number in range(1, len(names) + 1)}


def _address(picture: Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, format="PNG", compress_level=2)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def _refused(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)


def _is_everywhere(host: str) -> bool:
    """Whether it stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


def address_of(host: str, port: int) -> str:
    """Of the page, for a browser on this machine."""
    named = "localhost" if _is_everywhere(host) else host
    return f"http://[{named.strip('[]')}]:{port}" if ":" in named else f"http://{named}:{port}"


def bound(host: str, port: int | None) -> socket.socket:
    """A socket that listens.

    Args:
        host: Address of this machine.
        port: ``None``: ``PORT``, or any free one where that is taken.

    Raises:
        UserError: The port is taken, or the address is not of this machine.
    """
    wanted = [PORT, 0] if port is None else [port]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in wanted:
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host.strip("[]"), number))
            listening.listen()  # a browser that comes before the server is up waits
        except (OSError, OverflowError) as error:
            listening.close()
            if number == wanted[-1]:
                raise UserError(
                    f"nothing can be served there ({error})", where=f"{host}:{number}", todo="choose another --port or --host"
                ) from None
        else:
            return listening
    raise AssertionError


def serve(model: TrainedModel, name: str, *, host: str, port: int | None, ready: Callable[[str], None]) -> None:
    """Serves the page until it is interrupted.

    Args:
        model: Of ``load_model``.
        name: Of the model, for people.
        host: Address of this machine.
        port: See ``bound``.
        ready: Told the page's address once it listens.

    Raises:
        UserError: As ``bound``.
        KeyboardInterrupt: It was interrupted.
    """
    with bound(host, port) as listening:
        app = make_app(model, name, host=host)
        address = address_of(host, listening.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        ready(address)
        server.run(sockets=[listening])
