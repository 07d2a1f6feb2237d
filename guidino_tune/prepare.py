"""The command ``prepare``: download, check and unpack a data set, draw the demo images, or convert the weights of a backbone."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from guidino_tune import paths
from guidino_tune.cli import parser, positive, run

if TYPE_CHECKING:
    from guidino_tune.data.cases import Listing
    from guidino_tune.data.download import Archive, Progress

EXAMPLES = """\
  guidino-tune prepare demo                       draw the demo images (seconds, no network)
  guidino-tune prepare kvasir                     fetch Kvasir-SEG (46 MB), check it, unpack it
  guidino-tune prepare isic2017 --root /data/isic  fetch ISIC 2017 (about 12 GB) into /data/isic
  guidino-tune prepare tn3k                       says what to download by hand; then the same command goes on
  guidino-tune prepare kvasir --find-copies       which images are there twice, or nearly so?
  guidino-tune prepare backbone dinov3_vits16_pretrain.pth --output models/vits16
                                                  a model folder of Meta's file, of timm's, or of the teacher of a pretraining

A download that broke off goes on when the command is repeated. Without a network: put the archives that the command names into
the folder that it names, and repeat it. What is there already is neither fetched nor unpacked again.

That --find-copies finds none is no proof that there are none: the same polyp from another angle is no copy."""

KINDS = ("kvasir", "isic2017", "tn3k", "demo")
BACKBONE = "backbone"


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prepares; see ``--help``."""
    made = parser("prepare", "Download, check and unpack a data set, in the layout that its publisher gave it.", EXAMPLES)
    made.add_argument("kind", choices=(*KINDS, BACKBONE), help="the data set, as in data.kind; or backbone")
    made.add_argument("file", nargs="?", help="for a backbone: its checkpoint (.pth, .safetensors), or the folder of a timm model")
    made.add_argument("--output", metavar="DIR", help="for a backbone: the new model folder, for guide.backbone=DIR")
    made.add_argument("--heads", type=positive, metavar="N", help="for a backbone: its attention heads, where its file does not tell them")
    made.add_argument("--root", metavar="DIR", help="where to (default: datasets/KIND in the home folder)")
    made.add_argument("--keep-archives", action="store_true", help="keep what was downloaded (archives of your own are always kept)")
    made.add_argument("--find-copies", action="store_true", help="compare all images, test included, and name copies and near-copies")
    return run(_prepare, made, argv)


def _prepare(options: argparse.Namespace) -> int:
    from guidino_tune.data.download import ARCHIVES
    from guidino_tune.data.sources import SOURCES
    from guidino_tune.errors import UserError

    if options.kind == BACKBONE:
        return _convert(options)
    if options.file or options.output or options.heads:
        raise UserError("takes no file, no --output and no --heads", where=f"prepare {options.kind}", todo="see --root")
    root = Path(options.root).expanduser().absolute() if options.root else paths.datasets() / options.kind
    for archive in ARCHIVES.get(options.kind, ()):
        _obtain(archive, root, options.keep_archives)
    listing = SOURCES[options.kind](root, "error")
    print(f"{options.kind}: {len(listing.cases)} images with masks in {root}")
    print(f"split: {_split(listing)}")
    for note in listing.notes:
        print(f"note: {note}")
    if options.find_copies:
        from guidino_tune.data.checks import copies_in

        for note in copies_in(listing, _Lines("comparing images")):
            print(f"copies: {note}")
    paths.remember_home()
    print("next: " + paths.next_command(f"search {options.kind}{f' --data-root {shlex.quote(str(root))}' if options.root else ''}"))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from guidino_tune.errors import UserError
    from guidino_tune.models.conversion import convert

    if not options.file or not options.output:
        raise UserError("needs the file and the folder to be made", where="prepare backbone", todo="prepare backbone FILE --output DIR")
    if options.root or options.keep_archives or options.find_copies:
        raise UserError("takes no option of data sets", where="prepare backbone", todo="prepare backbone FILE --output DIR")
    target = Path(options.output).expanduser().absolute()
    made = convert(Path(options.file).expanduser().absolute(), target, options.heads)
    print(f"{made.folder}: {made.about}, fingerprint {made.fingerprint}")
    for note in made.notes:
        print(f"note: {note}")
    place = shlex.quote(str(target))
    print(f"next: --set guide.backbone={place} in a search; or look at it: {paths.next_command(f'doctor --backbone {place}')}")
    return 0


def _obtain(archive: Archive, root: Path, keep: bool) -> None:
    from guidino_tune.data.download import fetch, unpack

    if all((root / name).is_dir() for name in archive.folders):
        return
    own = (root / archive.file_name).is_file()
    with _progress(f"fetching {archive.file_name}") as progress:
        path = fetch(archive, root, progress)
    with _progress(f"unpacking {archive.file_name}") as progress:
        unpack(path, root, archive.folders, progress)
    if not own and not keep:
        path.unlink()


def _split(listing: Listing) -> str:
    if not listing.published:
        return "none is published; validation and test are drawn by data.split_seed"
    counts = Counter(listing.published.values())
    text = ", ".join(f"{counts[part]} {part}" for part in ("train", "trainval", "validation", "test") if counts[part])
    missing = [part for part in ("validation", "test") if not counts[part]]
    return text + (f" (published); {' and '.join(missing)} drawn by data.split_seed" if missing else " (published)")


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line for every tenth, so that a log stays readable."""
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """Prints a line for every tenth of the whole, or every 100 MB where the whole is unknown."""

    def __init__(self, what: str) -> None:
        self.what, self.last = what, 0

    def __call__(self, done: int, total: int | None) -> None:
        step = done * 10 // total if total else done // 100_000_000
        if step > self.last:
            self.last = step
            print(f"{self.what}: {f'{10 * step} %' if total else f'{done // 1_000_000} MB'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
