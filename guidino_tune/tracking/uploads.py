"""Files of a run: uploaded under their own names, PNG pictures also into MLflow's image grid with its slider over epochs."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any

PICTURES = "pictures"
PREVIEW = 256
"""Height of the small picture in the image grid, in pixels."""

PREVIEWS, WIDTH = "previews", 640
"""Where the small pictures of descriptions are, and their pixels at most: MLflow shows a picture as wide as it is."""


class ContentHashes:
    """Hashes of file contents; a file is read again only when its size or time has changed."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[int, int], str]] = {}

    def of(self, path: Path) -> str:
        """SHA-256 of the content.

        Raises:
            OSError: The file can not be read.
        """
        stat = path.stat()
        version = (stat.st_mtime_ns, stat.st_size)
        if path not in self._seen or self._seen[path][0] != version:
            with path.open("rb") as file:
                self._seen[path] = version, hashlib.file_digest(file, "sha256").hexdigest()
        return self._seen[path][1]


def upload(client: Any, run_id: str, path: Path, folder: str, digest: str) -> None:
    """Stores ``path`` as ``folder/name`` in a run; a PNG in ``pictures`` goes into the image grid as well; one in ``previews`` is small.

    Args:
        client: An ``MlflowClient``.
        run_id: MLflow's id of the run.
        path: A file.
        folder: In the run; empty for its top.
        digest: Hash of the content.
    """
    if folder == PREVIEWS:
        _as_preview(client, run_id, path)
        return
    client.log_artifact(run_id, str(path), folder or None)
    if folder == PICTURES and path.suffix.lower() == ".png":
        _to_image_grid(client, run_id, path, digest)


def preview_name(name: str) -> str:
    """Of the small picture, by the name of the large one."""
    return f"{Path(name).stem}.jpg"


def _as_preview(client: Any, run_id: str, path: Path) -> None:
    from PIL import Image

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / preview_name(path.name)
        try:
            with Image.open(path) as picture:
                small = picture.convert("RGB")
            small.thumbnail((WIDTH, 4 * WIDTH))
            small.save(file, "JPEG", quality=80, optimize=True)
        except (OSError, SyntaxError, ValueError):
            return  # Pillow can not read it
        client.log_artifact(run_id, str(file), PREVIEWS)


def picture_step(stem: str) -> tuple[str, int]:
    """Key and epoch of a picture's name: ``case3_epoch0010`` to ``("case3", 10)``; no number at the end means step 0."""
    match = re.fullmatch(r"(.*?)[_\-. ]*(?:epoch|step)?[_\-. ]*(\d{1,9})", stem)
    return (match[1] or "picture", int(match[2])) if match else (stem, 0)


def _to_image_grid(client: Any, run_id: str, path: Path, digest: str) -> None:
    """What ``MlflowClient.log_image(key=, step=)`` does, but named by the picture's content, so that sending it twice keeps one."""
    from PIL import Image

    key, step = picture_step(path.stem)
    key = re.sub(r"[^A-Za-z0-9_. -]", "_", key)
    stem = f"{key}+step+{step}+timestamp+{int(path.stat().st_mtime * 1000)}+{digest[:32]}"
    small = io.BytesIO()
    try:
        with Image.open(path) as picture:
            preview = picture.convert("RGB")
        preview.thumbnail((4 * PREVIEW, PREVIEW))
        preview.save(small, "WEBP")
    except (OSError, SyntaxError, ValueError):
        return  # Pillow can not read it: it is kept as a file, but there is nothing to show
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in ((f"{stem}.png", path.read_bytes()), (f"{stem}+compressed.webp", small.getvalue())):
            file = Path(scratch) / name
            file.write_bytes(data)
            client.log_artifact(run_id, str(file), "images")
    client.set_tag(run_id, "mlflow.loggedImages", "True")
