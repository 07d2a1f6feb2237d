"""Copies and near-copies among images: the same picture under two names, or two frames of a video taken a moment apart.

An exact copy has the same pixels once decoded. A near-copy is judged on pictures of 32x32 pixels, in two steps. Candidates are pairs
whose 8x8 grey pictures correlate by more than 0.88: a matrix product, so that ten thousand images cost seconds. A candidate is scored
by its details (what is left when a broad blur is taken away; black borders do not count), which are correlated at every shift of up to
3 pixels, less the difference in colour at the best shift. It is a near-copy when its score is at least 0.57, and at least four standard
deviations above that of pairs drawn at random from the same set (but never more than 0.9 is asked for): spots in the middle of plain
skin all look alike, so there more is asked than in a colon. Where images share a layout, as X-rays do, nearly all pairs are candidates:
of each image only the most alike are then scored, about ``MOST`` pairs in all, and it is told that others were not.

Hashes of 64 bits (difference hash, discrete cosine transform) and plain correlation were tried and rejected: in endoscopy all images
share a round frame and boxes of text, and at any distance that finds the true pairs most of what is found are different polyps. Judged by
eye: on 995 images of Kvasir-SEG it finds 7 pairs, all true, and misses about ten of one polyp from another angle; on 119 of the
ultrasound set DDTI 3 pairs, each of one patient; on 200 of ISIC 2017 none, where without the second condition 13 false ones were found.
So what it finds is there, but no pair found is no proof that there is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guidino_tune.data.cases import Case, Pair
from guidino_tune.data.raw import Values
from guidino_tune.data.reading import read_raw
from guidino_tune.data.windowing import stretched
from guidino_tune.errors import UserError
from guidino_tune.framing import viewable

Bytes = NDArray[np.uint8]

VERSION = 3
"""Raised when anything below changes what is found."""

CANDIDATE = 0.88  # the least of the 7 pairs on Kvasir-SEG has 0.90
NEAR = 0.57  # the last true pair on Kvasir-SEG has 0.575, the first false one 0.56
SURELY = 0.9
MOST = 50_000  # candidates that are scored, at some five thousand a second, but for FEWEST of each image
FEWEST = 5
DEVIATIONS = 4.0  # true pairs have 4.9 and more on Kvasir-SEG and 9.5 on DDTI, false ones up to 3.4 on ISIC 2017
COLOUR = 150.0  # this difference in grey levels weighs as much as a whole correlation

_SIDE, _COARSE, _SHIFT = 32, 8, 3
_PADDED = 64  # shifts do not wrap round
_DARK = 24  # grey levels up to this are border: outside the lens, boxes, cropped edges
_OVERLAP = 0.25  # of all pixels must be lit in both
_DRAWN = 1500  # pairs at random, to know what is usual
_BLOCK = 2**24  # correlations at once
_PAIRS = 256  # compared at once; larger batches leave the processor's cache

Grey = NDArray[np.float32]

_NO_LOOK = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Copies:
    """Pairs of case ids, each pair and the pairs sorted.

    Attributes:
        exact: Same pixels: of identical images the first with each of the others.
        near: Nearly the same picture; holds no exact pair, and of identical images the first only.
        unreadable: Ids whose images could not be decoded, which were not compared.
        passed_over: Pairs that look alike from afar, but were too many to be looked at closely.
    """

    exact: tuple[Pair, ...]
    near: tuple[Pair, ...]
    unreadable: tuple[str, ...] = ()
    passed_over: int = 0

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Both kinds."""
        return self.exact + self.near

    @property
    def note(self) -> tuple[str, ...]:
        """What a person should know of the comparison itself; mostly nothing."""
        if not self.passed_over:
            return ()
        return (
            f"the images share a layout: {self.passed_over} pairs that look alike from afar were not looked at closely for near-copies, "
            "only the most alike of each image",
        )

    def across(self, part_of: Mapping[str, str]) -> Copies:
        """Only pairs whose two ids are in different parts; ids in no part do not count.

        Of identical images, the first that is in a part stands for them.
        """
        same: dict[str, list[str]] = {}
        for first, other in self.exact:
            same.setdefault(first, [first]).append(other)
        placed = {first: [name for name in names if name in part_of] for first, names in same.items()}
        exact = [(names[0], name) for names in placed.values() for name in names[1:] if part_of[name] != part_of[names[0]]]

        def by_part(name: str) -> dict[str, str]:
            """The first in each part of the images identical to this one."""
            return {part_of[one]: one for one in reversed(placed.get(name, [name] if name in part_of else []))}

        near = []
        for a, b in self.near:
            apart = [(x, y) for p, x in by_part(a).items() for q, y in by_part(b).items() if p != q]
            near += sorted(tuple(sorted(pair)) for pair in apart)[:1]
        return Copies(tuple(sorted(exact)), tuple((x, y) for x, y in sorted(near)), self.unreadable, self.passed_over)


def copies_among(pictures: Iterable[tuple[str, Values]], *, near: bool = True) -> Copies:
    """Finds the pairs among decoded images.

    Args:
        pictures: Id and (H, W, C), uint8 or uint16; read one by one, and not kept.
        near: Look for near-copies too, and not only for the same pixels.
    """
    looks = [(name, _digest(image), _small(viewable(image)) if near else _NO_LOOK) for name, image in pictures]
    return _compare(looks, near=near)


def copies_in_files(cases: Sequence[Case], progress: Callable[[int, int], None] | None = None) -> Copies:
    """Finds the pairs among the image files of cases. Masks are not opened.

    Args:
        cases: Ids unique.
        progress: Told (done, in all).
    """
    looks, unreadable = [], []
    with ThreadPoolExecutor(4) as threads:
        for done, (case, look) in enumerate(zip(cases, threads.map(_file_look, cases), strict=True), start=1):
            if look is None:
                unreadable.append(case.id)
            else:
                looks.append((case.id, *look))
            if progress:
                progress(done, len(cases))
    found = _compare(looks)
    return replace(found, unreadable=tuple(sorted(unreadable)))


def _file_look(case: Case) -> tuple[bytes, Bytes] | None:
    try:
        raws = [read_raw(path) for path in case.images]
    except UserError:
        return None  # told in full by whoever decodes the case
    pixels = [raw.values if raw.deep else viewable(stretched(raw)) for raw in raws]  # grey and the same in colours are one picture
    digest = _digest(pixels[0]) if len(raws) == 1 else hashlib.sha256(b"".join(map(_digest, pixels))).digest()
    return digest, _small(viewable(stretched(raws[0])))  # nothing is learned from it, only compared


def _digest(pixels: Values) -> bytes:
    depth = "" if pixels.dtype == np.uint8 else f" {pixels.dtype}"
    return hashlib.sha256(f"{pixels.shape}{depth}".encode() + np.ascontiguousarray(pixels).tobytes()).digest()


def _small(image: Bytes) -> Bytes:
    return np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _compare(looks: list[tuple[str, bytes, Bytes]], *, near: bool = True) -> Copies:
    looks.sort(key=lambda look: look[0])
    firsts: dict[bytes, tuple[str, Bytes]] = {}
    exact = []
    for name, digest, small in looks:
        first, _ = firsts.setdefault(digest, (name, small))
        if first != name:
            exact.append((first, name))
    if len(firsts) < 2 or not near:
        return Copies(tuple(sorted(exact)), ())
    names = [name for name, _ in firsts.values()]
    pairs, passed_over = near_copies(np.stack([small for _, small in firsts.values()]))
    return Copies(tuple(sorted(exact)), tuple((names[i], names[j]) for i, j in pairs), passed_over=passed_over)


def near_copies(pictures: Bytes) -> tuple[list[tuple[int, int]], int]:
    """Finds nearly equal pictures.

    Args:
        pictures: uint8 (N, 32, 32, 3).

    Returns:
        Pairs of indices (smaller first, sorted), and the number of pairs that were too many to be looked at closely.
    """
    colours = pictures.astype(np.float32)
    grey = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    candidates, passed_over = _candidates(grey)
    if not len(candidates):
        return [], passed_over
    drawn = np.random.default_rng(0).integers(0, len(pictures), (_DRAWN, 2))
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    involved, position = np.unique(np.concatenate([candidates, drawn]), return_inverse=True)
    scores = _scores(colours[involved], grey[involved], position.reshape(-1, 2))
    usual = scores[len(candidates) :]
    least = np.clip(usual.mean() + DEVIATIONS * usual.std(), NEAR, SURELY)
    return [(int(i), int(j)) for i, j in candidates[scores[: len(candidates)] >= least]], passed_over


def _candidates(grey: NDArray[np.float32]) -> tuple[NDArray[np.int64], int]:
    """Rows (i, j), i < j, of pairs that look alike from afar, the most alike of each picture; and how many pairs are left out."""
    step = _SIDE // _COARSE
    coarse = grey.reshape(len(grey), _COARSE, step, _COARSE, step).mean(axis=(2, 4)).reshape(len(grey), -1)
    coarse -= coarse.mean(axis=1, keepdims=True)
    coarse /= np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1e-6)
    most, rows = max(FEWEST, MOST // len(coarse)), max(1, _BLOCK // len(coarse))
    found, total = [], 0
    for start in range(0, len(coarse), rows):
        alike = coarse[start : start + rows] @ coarse.T
        alike[np.arange(len(alike)), np.arange(start, start + len(alike))] = -1.0  # each with itself
        taken = alike > CANDIDATE
        total += int(np.count_nonzero(np.triu(taken, start + 1)))
        crowded = np.flatnonzero(np.count_nonzero(taken, axis=1) > most)
        if len(crowded):
            best = np.argpartition(alike[crowded], -most, axis=1)[:, -most:]
            taken[crowded] = False
            taken[crowded[:, None], best] = True
        i, j = np.nonzero(taken)
        found.append(np.sort(np.stack([i + start, j], axis=1), axis=1))
    pairs = np.unique(np.concatenate(found).astype(np.int64), axis=0)
    return pairs, total - len(pairs)


def _scores(colours: NDArray[np.float32], grey: NDArray[np.float32], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each pair, 1 for equal pictures; -1 where too little is lit in both."""
    from scipy import fft  # takes a second of every process that opens images
    from scipy.ndimage import gaussian_filter

    lit = (grey > _DARK).astype(np.float32)
    broad = [gaussian_filter(g * w, 4) / np.maximum(gaussian_filter(w, 4), 1e-3) for g, w in zip(grey, lit, strict=True)]
    details = (grey - np.stack(broad)) * lit
    shape = (_PADDED, _PADDED)
    waves, powers, places = (fft.rfft2(x, shape).astype(np.complex64) for x in (details, details**2, lit))
    shifts = np.arange(-_SHIFT, _SHIFT + 1)
    result = np.full(len(pairs), -1.0)
    for start in range(0, len(pairs), _PAIRS):
        a, b = pairs[start : start + _PAIRS].T

        def sums(x: NDArray[np.complex64], y: NDArray[np.complex64], a: NDArray[np.int64] = a, b: NDArray[np.int64] = b) -> NDArray:
            """For every shift, the sum of products of x and the shifted y."""
            return fft.irfft2(x[a] * y[b].conj(), shape)[:, shifts[:, None], shifts]

        power = np.sqrt(np.maximum(sums(powers, places) * sums(places, powers), 1.0))
        score = np.where(sums(places, places) >= _OVERLAP * _SIDE**2, sums(waves, waves) / power, -1.0).reshape(len(a), -1)
        best = score.argmax(axis=1)
        for k in np.flatnonzero(score.max(axis=1) > -1):
            dy, dx = (int(shifts[i]) for i in np.unravel_index(best[k], (len(shifts), len(shifts))))
            difference = _difference(colours[a[k]], colours[b[k]], lit[a[k]], lit[b[k]], dy, dx)
            result[start + k] = score[k, best[k]] - difference / COLOUR
    return result


def _difference(a: Grey, b: Grey, lit_a: Grey, lit_b: Grey, dy: int, dx: int) -> float:
    """Mean difference in grey levels over what is lit in both, ``b`` being shifted by (dy, dx)."""
    n = _SIDE
    of_a = (slice(max(0, dy), n + min(0, dy)), slice(max(0, dx), n + min(0, dx)))
    of_b = (slice(max(0, -dy), n + min(0, -dy)), slice(max(0, -dx), n + min(0, -dx)))
    both = lit_a[of_a] * lit_b[of_b]
    return float((np.abs(a[of_a] - b[of_b]).mean(axis=2) * both).sum() / both.sum())
