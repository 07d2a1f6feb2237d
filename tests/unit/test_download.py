from __future__ import annotations

import datetime
import hashlib
import io
import itertools
import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guidino_tune import prepare
from guidino_tune.data import download
from guidino_tune.data.download import ARCHIVES, Archive, fetch, unpack
from guidino_tune.errors import UserError


def make_zip(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in entries.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def picture(ending: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, ending)
    return buffer.getvalue()


RANDOM = np.random.default_rng(0).bytes(300_000)
CONTENT = make_zip({"Kvasir-SEG/": b"", "Kvasir-SEG/images/a.jpg": RANDOM, "Kvasir-SEG/masks/a.jpg": b"mask"})
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def damaged_zip() -> bytes:
    content = bytearray(CONTENT)
    content[CONTENT.index(RANDOM) + 10] ^= 1
    return bytes(content)


class Server:
    """Serves one file; says how often it was asked and for which ranges, and breaks off when told to."""

    def __init__(self) -> None:
        self.content, self.status, self.ranges = CONTENT, 200, True
        self.break_after: list[int] = []  # bytes that each of the next connections brings before it breaks
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.asked.append(wanted)
                if outer.status != 200:
                    self.send_error(outer.status)
                    return
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and outer.ranges else 0
                whole = len(outer.content)
                if start >= whole:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{whole}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.break_after.pop(0)] if outer.break_after else body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/x.zip"

    def archive(self, **changes: object) -> Archive:
        return Archive(**{"url": self.url, "file_name": "x.zip", "folders": ("images", "masks"), "checksum": SHA, **changes})  # type: ignore[arg-type]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def test_fetch_brings_the_file_and_tells_progress(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    path = fetch(server.archive(), tmp_path / "new", lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert os.listdir(path.parent) == ["x.zip"]


def test_fetch_goes_on_after_broken_connections(server: Server, tmp_path: Path) -> None:
    server.break_after = [1000, 2000]
    assert fetch(server.archive(), tmp_path, wait=0).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=3000-"]


def test_fetch_goes_on_from_the_part_of_an_earlier_run(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(CONTENT[:777])
    told: list[tuple[int, int | None]] = []
    path = fetch(server.archive(), tmp_path, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=777-"]
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_fetch_takes_a_part_that_is_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(CONTENT)
    assert fetch(server.archive(), tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_fetch_starts_over_when_the_server_knows_no_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "x.zip.part").write_bytes(b"z" * 777)
    assert fetch(server.archive(), tmp_path).read_bytes() == CONTENT


def test_fetch_starts_over_when_the_part_is_longer_than_the_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(server.archive(), tmp_path, wait=0).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged or another file") as caught:
        fetch(server.archive(checksum="md5:" + "0" * 32), tmp_path)
    assert hashlib.md5(CONTENT).hexdigest() in caught.value.what
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_wrong_size_is_refused(server: Server, tmp_path: Path, size: int) -> None:
    with pytest.raises(UserError, match="bytes"):
        fetch(server.archive(size=size), tmp_path)
    assert not (tmp_path / "x.zip").exists()


def test_without_a_known_checksum_the_zip_must_be_whole(server: Server, tmp_path: Path) -> None:
    server.content = damaged_zip()
    with pytest.raises(UserError, match=r"damaged at Kvasir-SEG/images/a\.jpg"):
        fetch(server.archive(checksum=None), tmp_path)
    server.content = b"<html>please log in</html>"
    with pytest.raises(UserError, match="no readable ZIP"):
        fetch(server.archive(checksum=None), tmp_path)
    server.content = CONTENT
    assert fetch(server.archive(checksum=None), tmp_path).is_file()


def by_hand(error: UserError, archive: Archive, folder: Path) -> bool:
    return archive.url in str(error) and str(folder / archive.file_name) in error.todo and "same command again" in error.todo


def test_refusals_and_outages_say_what_to_do_by_hand(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match="404") as caught:
        fetch(server.archive(), tmp_path, wait=0)
    assert by_hand(caught.value, server.archive(), tmp_path)
    assert len(server.asked) == 1  # "not found" will not change: no second try
    server.status = 503
    with pytest.raises(UserError, match="503") as caught:
        fetch(server.archive(), tmp_path, wait=0)
    assert len(server.asked) == 1 + download.ATTEMPTS
    offline = server.archive(url="http://127.0.0.1:9/x.zip")
    with pytest.raises(UserError, match="refused") as caught:
        fetch(offline, tmp_path, wait=0)
    assert by_hand(caught.value, offline, tmp_path)
    by_person = server.archive(direct=False)
    with pytest.raises(UserError, match="by a program") as caught:
        fetch(by_person, tmp_path)
    assert by_hand(caught.value, by_person, tmp_path)


def test_what_has_come_is_kept_when_it_is_given_up(server: Server, tmp_path: Path) -> None:
    server.break_after = [5000] + [0] * download.ATTEMPTS
    with pytest.raises(UserError, match="connection"):
        fetch(server.archive(), tmp_path, wait=0)
    assert (tmp_path / "x.zip.part").read_bytes() == CONTENT[:5000]


def test_an_archive_that_is_there_needs_no_network(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(CONTENT)
    assert fetch(server.archive(direct=False), tmp_path) == tmp_path / "x.zip"
    (tmp_path / "x.zip").write_bytes(CONTENT[:-5])
    with pytest.raises(UserError, match="damaged") as caught:
        fetch(server.archive(), tmp_path)
    assert "remove this file" in caught.value.todo
    assert server.asked == []
    assert (tmp_path / "x.zip").exists()  # it may be the user's: it is his to remove


def test_a_folder_that_cannot_be_made_is_the_users_mistake(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(server.archive(), tmp_path / "file")


def self_signed(folder: Path) -> Path:
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    certificate = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(hours=1)).sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


def test_an_unknown_certificate_is_accepted_only_under_a_sha256(server: Server, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    for checksum in (None, "md5:" + hashlib.md5(CONTENT).hexdigest()):
        with pytest.raises(UserError, match="certificate cannot be verified"):
            fetch(server.archive(url=url, checksum=checksum), tmp_path, wait=0)
    assert server.asked == []
    with pytest.raises(UserError, match="damaged"):
        fetch(server.archive(url=url, checksum="sha256:" + "0" * 64), tmp_path, wait=0)
    assert fetch(server.archive(url=url), tmp_path, wait=0).read_bytes() == CONTENT


def store(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    return path


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("above", ["", "Kvasir-SEG/", "Thyroid Dataset/tn3k/"])
def test_unpack_finds_the_folders_wherever_they_are(tmp_path: Path, above: str) -> None:
    entries = {f"{above}images/a.jpg": b"1", f"{above}masks/a.jpg": b"2", f"{above}images/deep/b.jpg": b"3", f"{above}boxes.json": b"{}"}
    entries |= {f"__MACOSX/{above}images/._a.jpg": b"", f"{above}images/.DS_Store": b"", "other/images/c.jpg": b"", "images.txt": b""}
    entries |= {f"{above}0/{name}/old.jpg": b"" for name in ("images", "masks")}  # lies deeper
    folder = tmp_path / "out"
    unpack(store(tmp_path, make_zip(entries)), folder, ("images", "masks"))
    assert tree(folder) == {"images/a.jpg", "masks/a.jpg", "images/deep/b.jpg"}
    assert (folder / "masks/a.jpg").read_bytes() == b"2"


def test_unpack_leaves_what_is_there_and_completes_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "images").mkdir(parents=True)
    (folder / "images/mine.jpg").write_bytes(b"mine")
    unpack(store(tmp_path, CONTENT), folder, ("images", "masks"))
    assert tree(folder) == {"images/mine.jpg", "masks/a.jpg"}


def odd_zip(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        warnings.simplefilter("ignore")  # two entries of one name
        for name, content in (*entries, ("masks/a.jpg", b"")):
            zipped.writestr(name, content)
    return buffer.getvalue()


LINK = zipfile.ZipInfo("images/a.jpg")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16


def encrypted() -> bytes:
    content = bytearray(make_zip({"images/a.jpg": b"1", "masks/a.jpg": b"2"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1  # bit 0 of the flags in the central directory
    return bytes(content)


EVIL = {
    "absolute": (make_zip({"/tmp/evil": b"", "images/a": b"", "masks/a": b""}), "absolute"),
    "drive": (make_zip({"C:\\evil": b"", "images/a": b"", "masks/a": b""}), "absolute"),
    "upwards": (make_zip({"images/../../evil": b"", "images/a": b"", "masks/a": b""}), "leaves the folder"),
    "upwards with backslashes": (make_zip({"images\\..\\..\\evil": b"", "images/a": b"", "masks/a": b""}), "leaves the folder"),
    "link": (odd_zip((LINK, b"/etc/passwd")), "is a link"),
    "twice": (odd_zip(("images/a.jpg", b"1"), ("images/a.jpg", b"2")), "there twice"),
    "bomb": (odd_zip(("images/a.jpg", bytes(20_000_000))), "times its size"),
    "encrypted": (encrypted(), "encrypted"),
    "damaged": (damaged_zip(), "no readable ZIP"),
    "cut": (CONTENT[:-100], "no readable ZIP"),
    "file and folder of one name": (make_zip({"images/a": b"", "images/a/b": b"", "masks/a": b""}), "cannot be unpacked"),
    "other": (make_zip({"Readme/images/a.jpg": b""}), "does not hold images, masks, but Readme"),
    "empty": (make_zip({}), "does not hold"),
}


@pytest.mark.parametrize("name", EVIL)
def test_unpack_refuses_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    content, message = EVIL[name]
    path = store(tmp_path, content)
    with pytest.raises(UserError, match=message):
        unpack(path, tmp_path / "deep/out", ("images", "masks"))
    assert tree(tmp_path) == {"x.zip"}


def test_unpack_looks_at_the_free_space_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="1,000 are free"):
        unpack(store(tmp_path, CONTENT), tmp_path / "out", ("images", "masks"))


def test_the_published_archives_are_well_formed() -> None:
    every = list(itertools.chain.from_iterable(ARCHIVES.values()))
    assert len({archive.file_name for archive in every}) == len(every) == 8
    for archive in every:
        assert archive.url.startswith("https://")
        assert archive.source.startswith("https://")
        assert archive.file_name.endswith(".zip")
        if archive.direct:
            kind, _, digits = (archive.checksum or "").partition(":")
            assert len(digits) == hashlib.new(kind).digest_size * 2
    isic = {name for archive in ARCHIVES["isic2017"] for name in archive.folders}
    assert isic == {f"ISIC-2017_{p}_{q}" for p in ("Training", "Validation", "Test_v2") for q in ("Data", "Part1_GroundTruth")}


def test_prepare_fetches_unpacks_checks_and_says_what_is_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "abc"
    server.content = make_zip({f"Kvasir-SEG/{folder}/{n}.jpg": picture("jpeg") for folder in ("images", "masks") for n in names})
    monkeypatch.setitem(ARCHIVES, "kvasir", (server.archive(checksum=None),))
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path))
    root = tmp_path / "datasets/kvasir"
    assert prepare.main(["kvasir"]) == 0
    out, err = capsys.readouterr()
    assert f"kvasir: 3 images with masks in {root}" in out
    assert out.rstrip().endswith("guidino-tune search kvasir")
    assert "fetching x.zip: 100 %" in err
    assert tree(root) == {f"{folder}/{n}.jpg" for folder in ("images", "masks") for n in names}
    assert prepare.main(["kvasir"]) == 0
    assert len(server.asked) == 1  # the second time nothing is fetched


def test_prepare_keeps_your_own_archive_and_those_you_ask_to_keep(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = make_zip({f"{folder}/a.jpg": picture("jpeg") for folder in ("images", "masks")})
    monkeypatch.setitem(ARCHIVES, "kvasir", (server.archive(checksum=None),))
    assert prepare.main(["kvasir", "--root", str(tmp_path / "a b"), "--keep-archives"]) == 0
    assert (tmp_path / "a b/x.zip").is_file()
    assert f"--data-root '{tmp_path / 'a b'}'" in capsys.readouterr().out
    (tmp_path / "b").mkdir()
    (tmp_path / "a b/x.zip").rename(tmp_path / "b/x.zip")
    assert prepare.main(["kvasir", "--root", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b/x.zip").is_file()
    assert len(server.asked) == 1


def test_prepare_tells_a_published_split_and_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ARCHIVES["tn3k"][0].folders
    (tmp_path / "tn3k.zip").write_bytes(make_zip({f"Thyroid Dataset/tn3k/{name}/0.png": picture("png") for name in folders}))
    assert prepare.main(["tn3k", "--root", str(tmp_path)]) == 0
    assert "split: 1 trainval, 1 test (published); validation drawn by data.split_seed" in capsys.readouterr().out
    assert prepare.main(["tn3k", "--root", str(tmp_path / "empty")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "drive.google.com" in err
    assert str(tmp_path / "empty/tn3k.zip") in err


def test_prepare_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, guidino_tune.prepare, guidino_tune.data.sources.demo; print({'torch', 'ray', 'mlflow', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
