"""Fetching and unpacking the published data sets: addresses, downloads that go on where they broke off, and safe unpacking."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import ssl
import stat
import time
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from guidino_tune.errors import UserError

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in all (``None`` when the server does not say)."""

ATTEMPTS = 4
"""Connections in a row that may bring nothing before a download is given up."""

MAX_RATIO = 100
"""Unpacked to packed size beyond which an archive is taken for a ZIP bomb; pictures hardly shrink, masks up to about thirtyfold."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """One published ZIP archive.

    Attributes:
        url: Where it lies; where ``direct`` is false, the page on which a person can download it.
        file_name: Under this name it is kept beside the data.
        folders: The folders inside it that are wanted, whatever folder of the archive holds them.
        size: In bytes, where known.
        checksum: ``sha256:...`` or ``md5:...``, where known; otherwise the archive's own check sums must do.
        direct: Whether a plain request for ``url`` answers with the archive.
        source: Who publishes it.
    """

    url: str
    file_name: str
    folders: tuple[str, ...]
    size: int | None = None
    checksum: str | None = None
    direct: bool = True
    source: str = ""


def _isic(name: str, md5: str) -> Archive:
    url = f"https://isic-challenge-data.s3.amazonaws.com/2017/{name}.zip"
    return Archive(url, f"{name}.zip", (name,), checksum=f"md5:{md5}", source="https://challenge.isic-archive.com/data/#2017")


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "kvasir": (
        Archive(
            "https://datasets.simula.no/downloads/kvasir-seg.zip",
            "kvasir-seg.zip",
            ("images", "masks"),
            size=46_227_172,
            checksum="sha256:03b30e21d584e04facf49397a2576738fd626815771afbbf788f74a7153478f7",
            source="https://datasets.simula.no/kvasir-seg/",
        ),
    ),
    "isic2017": (
        _isic("ISIC-2017_Training_Data", "a14a7e622c67a358797ae59abb8a0b0c"),
        _isic("ISIC-2017_Training_Part1_GroundTruth", "77fdbeb6fbec4139937224416b250f4c"),
        _isic("ISIC-2017_Validation_Data", "8d6419d942112f709894c0d82f6c9038"),
        _isic("ISIC-2017_Validation_Part1_GroundTruth", "64d3e68fa2deeb8a5e89aa8dec2efd44"),
        _isic("ISIC-2017_Test_v2_Data", "5f6a0b5e1f2972bd1f5ea02680489f09"),
        _isic("ISIC-2017_Test_v2_Part1_GroundTruth", "b1742de6bd257faca3b2b21a4aa3b781"),
    ),
    "tn3k": (
        Archive(
            "https://drive.google.com/file/d/1reHyY5eTZ5uePXMVMzFOq5j3eFOSp50F/view",
            "tn3k.zip",
            ("trainval-image", "trainval-mask", "test-image", "test-mask"),
            direct=False,
            source="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
        ),
    ),
}
"""``data.kind`` -> what is to be fetched. The ISIC archives are about 12 GB in all, Kvasir-SEG is 46 MB."""


def fetch(archive: Archive, folder: Path, progress: Progress | None = None, *, wait: float = 1.0) -> Path:
    """Makes sure that the archive lies in ``folder``, whole and checked; one that lies there already needs no network.

    What has come so far is kept in ``FILE.part``, and a later call goes on from there.

    Args:
        archive: What to fetch.
        folder: Where to; made if it is not there.
        progress: Told how far it is.
        wait: Seconds before a second try; twice that before a third, and so on.

    Raises:
        UserError: It cannot be downloaded (with what to do by hand), it is damaged, or the folder cannot be written.
    """
    target = folder / archive.file_name
    if target.is_file():
        _check(archive, target, "remove this file and run the same command again")
        return target
    if not archive.direct:
        raise UserError(f"{archive.file_name} cannot be downloaded by a program", where=archive.source, todo=_by_hand(archive, target))
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(archive, part, target, progress, wait)
        try:
            _check(archive, part, "run the same command again; " + _by_hand(archive, target))
        except UserError:
            part.unlink()  # going on from damaged bytes would never come to a good end
            raise
        os.replace(part, target)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror or error}", where=str(folder), todo="free or choose another place (--root)"
        ) from None
    return target


def _by_hand(archive: Archive, target: Path) -> str:
    return (
        f"download {archive.url} with a browser, on any machine; save it as {target.absolute()}; then run the same command again: "
        "it goes on from there"
    )


def _download(archive: Archive, part: Path, target: Path, progress: Progress | None, wait: float) -> None:
    context: ssl.SSLContext | None = None
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _receive(archive, part, before, progress, context):
                return
            reason = "the connection ended early"
        except _ServerError as error:
            if error.final:
                raise _unreachable(archive, target, str(error)) from None
            reason = str(error)
        except _CertificateError as error:
            # Some servers leave out an intermediate certificate, which browsers fetch by themselves and Python does not. Where we know the
            # archive's SHA-256, that vouches for the bytes, and a certificate adds nothing.
            if context is not None or not (archive.checksum or "").startswith("sha256:"):
                raise _unreachable(archive, target, str(error)) from None
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            continue
        after = part.stat().st_size if part.is_file() else 0
        failures = 0 if after > before else failures + 1
        if failures >= ATTEMPTS:
            raise _unreachable(archive, target, reason)
        time.sleep(wait * max(1, failures))


class _ServerError(Exception):
    """The server is away (worth another try) or says no (``final``)."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class _CertificateError(Exception):
    """The server's certificate could not be verified."""


def _unreachable(archive: Archive, target: Path, reason: str) -> UserError:
    return UserError(f"cannot be downloaded: {reason}", where=archive.url, todo=_by_hand(archive, target))


def _receive(archive: Archive, part: Path, offset: int, progress: Progress | None, context: ssl.SSLContext | None) -> bool:
    """Adds what one connection brings to ``part``; true when it is complete."""
    headers = {"User-Agent": "guidino-tune", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(archive.url, headers=headers), timeout=60, context=context)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is not a beginning of what is there, or is all of it
            if _after_slash(error.headers.get("Content-Range")) == offset:
                return True
            part.unlink()
            raise _ServerError("the file on the server has changed") from None
        raise _ServerError(
            f"the server answered {error.code} {error.reason}", final=400 <= error.code < 500 and error.code not in (408, 429)
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _CertificateError(f"the server's certificate cannot be verified ({reason})") from None
        raise _ServerError(getattr(reason, "strerror", None) or str(reason) or type(error).__name__) from None
    with response:
        content_range = response.headers.get("Content-Range") or ""
        resumed = response.status == 206 and content_range.startswith(f"bytes {offset}-")
        done = offset if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else archive.size
        with part.open("ab" if resumed else "wb") as file:
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _ServerError(f"the connection broke ({error or type(error).__name__})") from None
                if not chunk:
                    return total is None or done >= total
                file.write(chunk)
                done += len(chunk)
                if archive.size is not None and done > archive.size:
                    raise _ServerError(f"it is larger than the {archive.size} bytes that are published", final=True)
                if progress:
                    progress(done, total)


def _after_slash(content_range: str | None) -> int | None:
    size = (content_range or "").rpartition("/")[2]
    return int(size) if size.isdigit() else None


def _check(archive: Archive, path: Path, todo: str) -> None:
    """Compares size and check sum, or tests the ZIP's own check sums where none is known."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise UserError(f"has {size} bytes and should have {archive.size}", where=str(path), todo=todo)
    if archive.checksum:
        kind, _, expected = archive.checksum.partition(":")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found != expected:
            raise UserError(f"is damaged or another file: its {kind} is {found} and should be {expected}", where=str(path), todo=todo)
        return
    try:
        with zipfile.ZipFile(path) as zipped:
            bad = zipped.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"is no readable ZIP archive ({error})", where=str(path), todo=todo) from None
    if bad:
        raise UserError(f"is damaged at {bad}", where=str(path), todo=todo)


def unpack(path: Path, folder: Path, folders: tuple[str, ...], progress: Progress | None = None) -> None:
    """Puts the wanted folders of a ZIP archive directly into ``folder``, each whole or not at all.

    They may lie inside any folder of the archive (``Kvasir-SEG/images`` becomes ``images``); the rest stays packed. A wanted folder that is
    in ``folder`` already is left as it is.

    Args:
        path: The archive.
        folder: Where to.
        folders: Names of the wanted folders.
        progress: Told how far it is.

    Raises:
        UserError: The archive is damaged, lacks a folder, or has an entry that would leave ``folder``, is a link, is encrypted or blows up;
            or the disk is full. Nothing of it is left then.
    """
    temporary = folder / f".unpack-{uuid.uuid4().hex}"
    damaged = f"remove {path} and run the same command again"
    try:
        with zipfile.ZipFile(path) as zipped:
            _refuse_evil(path, zipped)
            files = _wanted(path, zipped, folders)
            total, done = sum(info.file_size for info in files.values()), 0
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if total > free:
                raise UserError(f"needs {total:,} bytes and {free:,} are free", where=str(folder), todo="free some space and run it again")
            for relative, info in files.items():
                target = temporary / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(info) as packed, target.open("wb") as plain:
                    shutil.copyfileobj(packed, plain, _CHUNK)
                done += info.file_size
                if progress:
                    progress(done, total)
        for name in folders:
            if not (folder / name).exists():
                os.replace(temporary / name, folder / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"is no readable ZIP archive ({error})", where=str(path), todo=damaged) from None
    except OSError as error:
        raise UserError(f"cannot be unpacked: {error.strerror or error}", where=str(folder), todo="mend that and run it again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_evil(path: Path, zipped: zipfile.ZipFile) -> None:
    seen: set[str] = set()
    for info in zipped.infolist():
        # zipfile cuts names at a NUL byte and may turn backslashes into slashes: judge what the archive says, too.
        problem = next((p for name in (info.filename, info.orig_filename) if (p := _bad_name(name))), None)
        if stat.S_ISLNK(info.external_attr >> 16):
            problem = "is a link"
        elif info.flag_bits & 0x1:
            problem = "is encrypted"
        elif info.filename in seen:
            problem = "is there twice"
        if problem:
            raise UserError(
                f"the entry {info.filename!r} {problem}", where=str(path), todo="do not trust this archive: get it from its publisher"
            )
        seen.add(info.filename)
    total = sum(info.file_size for info in zipped.infolist())
    if total > MAX_RATIO * max(path.stat().st_size, 1 << 16):
        raise UserError(
            f"would unpack to {total:,} bytes, more than {MAX_RATIO} times its size",
            where=str(path),
            todo="do not trust this archive: get it from its publisher",
        )


def _bad_name(name: str) -> str | None:
    if name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "has an absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return "leaves the folder"
    return "has a forbidden character" if "\0" in name else None


def _wanted(path: Path, zipped: zipfile.ZipFile, folders: tuple[str, ...]) -> dict[str, zipfile.ZipInfo]:
    """Where it goes -> what; from the uppermost folder of the archive that holds all ``folders``."""
    files = [info for info in zipped.infolist() if not info.is_dir()]
    holders: dict[PurePosixPath, set[str]] = {}
    for info in files:
        parents = PurePosixPath(info.filename).parents
        for inner in parents:
            if inner.name in folders:
                holders.setdefault(inner.parent, set()).add(inner.name)
    whole = sorted(
        (holder for holder, found in holders.items() if found == set(folders)), key=lambda holder: (len(holder.parts), str(holder))
    )
    if not whole:
        top = sorted({PurePosixPath(info.filename).parts[0] for info in files})[:5]
        raise UserError(
            f"does not hold {', '.join(folders)}, but {', '.join(top) or 'nothing'}",
            where=str(path),
            todo=f"check that it is the right archive; or put the folders {', '.join(folders)} into {path.parent} by hand",
        )
    wanted = {}
    for info in files:
        name = PurePosixPath(info.filename)
        if not name.is_relative_to(whole[0]) or name.name.startswith("."):  # macOS adds ._FILE beside each file
            continue
        inside = name.relative_to(whole[0])
        if inside.parts[0] in folders and len(inside.parts) > 1:
            wanted[str(inside)] = info
    return wanted
