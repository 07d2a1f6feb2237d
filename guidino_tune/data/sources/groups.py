"""Which cases belong together: as ``data.group`` says, or as the names of the cases let one guess, which is told and never used."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.files import slice_of
from guidino_tune.data.sources.gathering import CLASS_WORDS
from guidino_tune.data.sources.tree import below
from guidino_tune.errors import UserError, first_names

FRAME_WORDS = frozenset(("frame", "frames", "frm", "slice", "slices", "video", "vid"))
"""Words in names of images that follow one another."""

INDEX_WORDS = FRAME_WORDS - {"video", "vid"} | {"view", "crop", "tile", "patch", "aug"}
"""Words before a number that counts the images of a video, or parts or variants of one image."""

PATIENT_WORDS = frozenset(("p", "pt", "pat", "patient", "subj", "subject", "sub"))
"""Words before the number of a patient."""

SIDES = frozenset(("left", "right", "l", "r", "od", "os"))
"""Words that tell two images of a patient apart."""

FEWEST_FRAMES = 10
"""So many consecutive numbers are no accident."""

_TOKENS = re.compile(r"[^\W\d_]+|\d+|[\W_]")
_ALNUM = re.compile(r"[^\W_]+|[\W_]")


@dataclass(frozen=True, slots=True)
class Guess:
    """What names look like.

    Attributes:
        kind: ``patients``: names share an identifier. ``frames``: names are consecutive numbers.
        names: The identifiers, sorted; of frames none.
        pattern: The value of ``data.group`` that gives these groups; of frames none.
    """

    kind: str
    names: tuple[str, ...] = ()
    pattern: str = ""

    @property
    def note(self) -> str:
        """In words, with the remedy."""
        if self.kind == "frames":
            return (
                "names are consecutive numbers (frames of a video?): neighbours look alike, and come into different parts of the split. If "
                "they are frames, keep near-copies together: --set data.group_duplicates=true; or name the videos by data.group or by a "
                "column group of a table"
            )
        alone = "" if len(self.names) > 2 else " --set data.test_fraction=0 (two groups cannot be divided into three parts)"
        shown = ", ".join(self.names[:3]) + (f" and {len(self.names) - 3} more" if len(self.names) > 3 else "")
        return (
            f"names look like {len(self.names)} patients: {shown}; a drawn split divides them. If they are, keep each in one part: "
            f"--set 'data.group={self.pattern}'{alone}"
        )


def regroup(listing: Listing, pattern: str, root: Path) -> Listing:
    """Groups by a regular expression: its first group, or the whole match, in the path of the image below ``root``; where it does not
    match all paths, in all ids, and else in all names without folders.

    Raises:
        UserError: It is no regular expression, or does not match a case, or puts all cases into one group.
    """
    groups = _groups(listing.cases, pattern, root)
    if len(set(groups)) == 1 < len(listing.cases):
        raise UserError(
            f"puts all {len(groups)} cases into one group, {groups[0]!r}, which no split can divide",
            where=f"data.group={pattern}",
            todo=f"let it differ between patients; paths are such as {below(listing.cases[0], root)}",
        )
    cases = tuple(replace(case, group=group) for case, group in zip(listing.cases, groups, strict=True))
    count = Counter(groups)
    note = f"data.group: {len(count)} groups of {min(count.values())} to {max(count.values())} cases: {first_names(count)}"
    kept = tuple(text for text in listing.notes if not text.startswith("folders are taken for"))
    return replace(listing, cases=cases, notes=(*kept[:1], note, *kept[1:]))


def _groups(cases: Sequence[Case], pattern: str, root: Path) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"is no regular expression and no column of a table: {error}",
            where=f"data.group={pattern}",
            todo="write one such as ^(P[0-9]+)_ whose group in brackets is the patient",
        ) from None
    ways: tuple[Callable[[Case], str], ...] = (
        lambda case: below(case, root),
        _whole,
        lambda case: _whole(case).rpartition("/")[2],
    )
    for way in ways:
        if None not in (found := [_group(expression, way(case)) for case in cases]):
            return [group for group in found if group is not None]
    lost = [below(case, root) for case in cases if all(_group(expression, way(case)) is None for way in ways)]
    lost = lost or [below(case, root) for case in cases if _group(expression, below(case, root)) is None]
    raise UserError(
        f"does not match {len(lost)} of {len(cases)} cases: {first_names(lost)}",
        where=f"data.group={pattern}",
        todo="make it match the path of every image below the root, or list the groups in a table with a column group",
    )


def _whole(case: Case) -> str:
    """The id of a case, or for a slice that of its volume."""
    return case.id if slice_of(case.image)[1] is None else case.id.rpartition("#")[0]


def _group(expression: re.Pattern[str], text: str) -> str | None:
    match = expression.search(text)
    if match is None:
        return None
    return match[1] if expression.groups else match[0]


def with_guess(listing: Listing, root: Path) -> Listing:
    """Adds a note on what the names look like, where the layout tells no groups and something is drawn that they would keep together."""
    alone = [case for case in listing.cases if case.group == _whole(case)]
    if len(alone) < len(listing.cases):
        return listing
    first = {case.group: case for case in listing.cases}
    guess = guess_groups(first)
    if guess is None:
        return listing
    parts = {listing.published.get(case.id, "") for case in listing.cases}
    whole = parts >= {"train", "validation", "test"} and "" not in parts
    if guess.kind == "patients":
        try:
            groups = _groups(listing.cases, guess.pattern, root)
        except UserError:
            return listing
        if len(set(groups)) != len(guess.names):
            return listing
        published: dict[str, set[str]] = defaultdict(set)
        for case, group in zip(listing.cases, groups, strict=True):
            published[group].add(listing.published.get(case.id, ""))
        if whole and all(len(found) == 1 for found in published.values()):
            return listing
    elif whole:
        return listing
    return replace(listing, notes=(*listing.notes, guess.note))


def guess_groups(names: Iterable[str]) -> Guess | None:
    """What the names of cases look like, when they share identifiers or are consecutive numbers; folders in them do not count.

    An identifier has a number in it, and most of them two cases or more. A single running number (``case_001``) is none, nor are random
    names, nor numbers with gaps.
    """
    stems = [name.rpartition("/")[2] for name in names]
    if len(stems) < 4:
        return None
    return _patients(stems) or _frames(stems)


def _patients(stems: list[str]) -> Guess | None:
    found: list[Guess] = []
    for tokens in (_ALNUM, _TOKENS):
        split = [tokens.findall(stem) for stem in stems]
        if len({tuple(_shape(token, tokens) for token in parts) for parts in split}) != 1:
            continue
        for first in (True, False):  # most names begin with what is common
            guesses = [_identifiers(stems, split, count, first=first) for count in range(1, len(split[0]))]
            found += [guess for guess in guesses if guess]
        if found:
            break
    few = [guess for guess in found if len(guess.names) > 2]
    few.sort(key=lambda guess: not _words(guess.names) & PATIENT_WORDS)
    return next(iter((*few, *found)), None)


def _shape(token: str, tokens: re.Pattern[str]) -> str:
    """Letters, digits, or what separates them."""
    if not token[0].isalnum():
        return token
    return "x" if tokens is _ALNUM else "0" if token[0].isdigit() else "a"


def _identifiers(stems: list[str], split: list[list[str]], count: int, *, first: bool) -> Guess | None:
    """The guess that the first (or last) so many tokens name the patient."""
    parts = [tokens[:count] if first else tokens[-count:] for tokens in split]
    rest = [tokens[count:] if first else tokens[:-count] for tokens in split]
    edge = {tokens[-1] if first else tokens[0] for tokens in parts}
    if any(not token[0].isalnum() for tokens in parts for token in (tokens[0], tokens[-1])) or _is_index(parts):
        return None
    before = [] if first else [next((token for token in reversed(tokens) if token[0].isalnum()), "") for tokens in rest]
    if _is_index([[token] for token in before if token.isalpha()]):
        return None  # `vid3_frame012`: what follows the word counts images
    groups = Counter("".join(tokens) for tokens in parts)
    if not 2 <= len(groups) <= len(stems) / 2 or sum(number for number in groups.values() if number > 1) < len(stems) / 2:
        return None
    if len(edge) == 1:
        return None  # what does not differ adds nothing
    if sum(any(c.isdigit() for c in name) for name in groups) < 0.8 * len(groups) and (len(groups) < 4 or CLASS_WORDS & _words(groups)):
        return None  # words alone: rather a class than a patient
    others = {"".join(tokens) for tokens in rest}
    if not first and (len(others) > len(stems) / 2 or not all(_is_number(other) for other in others)):
        return None  # `c17_1`: a number that says little beside one that differs; `benign_1` and `malignant_1`: two of a list
    names = tuple(sorted(groups, key=lambda name: (len(name), name)))
    for pattern in _patterns(parts, rest, first=first):
        expression = re.compile(pattern)
        if [_group(expression, stem) for stem in stems] == ["".join(tokens) for tokens in parts]:
            return Guess("patients", names, pattern)
    return None


def _words(texts: Iterable[str]) -> set[str]:
    return {token.lower() for text in texts for token in _TOKENS.findall(text) if token.isalpha()}


def _is_index(parts: list[list[str]]) -> bool:
    """Whether what should name a patient counts images: ``slice0``."""
    return bool(_words("".join(tokens) for tokens in parts) & INDEX_WORDS)


def _is_number(text: str) -> bool:
    words = _words((text,))
    return any(c.isdigit() for c in text) or (bool(words) and words <= SIDES)


def _patterns(parts: list[list[str]], rest: list[list[str]], *, first: bool) -> list[str]:
    """Regular expressions for identifiers: the readable one before the general one."""
    inside = "".join(_expression(tokens) for tokens in zip(*parts, strict=True))
    beyond = {(tokens[0] if first else tokens[-1]) for tokens in rest}
    edge = re.escape(beyond.pop()) if len(beyond) == 1 else _class(beyond)
    edge = edge.replace("\\-", "-").replace("\\ ", " ").replace("\\_", "_")
    return [f"^({inside}){edge}" if first else f"{edge}({inside})$"]


def _expression(tokens: tuple[str, ...]) -> str:
    if len(set(tokens)) == 1:
        return re.escape(tokens[0]).replace("\\-", "-").replace("\\ ", " ").replace("\\_", "_")
    if (
        len(shapes := {tuple(_shape(part, _TOKENS) for part in _TOKENS.findall(token)) for token in tokens}) == 1
        and len(next(iter(shapes))) > 1
    ):
        return "".join(_expression(column) for column in zip(*(_TOKENS.findall(token) for token in tokens), strict=True))
    return _class(set(tokens))


def _class(tokens: set[str]) -> str:
    if all(token.isdigit() and token.isascii() for token in tokens):
        return "[0-9]+"
    if all(token.isalpha() and token.isascii() for token in tokens):
        return "[A-Za-z]+"
    return "[0-9A-Za-z]+" if all(token.isalnum() and token.isascii() for token in tokens) else r"[^\W_]+"


def _frames(stems: list[str]) -> Guess | None:
    """Consecutive numbers, alone or after a word such as ``frame``."""
    split = [_TOKENS.findall(stem) for stem in stems]
    numbers = []
    for tokens in split:
        digits = [token for token in tokens if token.isdecimal()]
        words = [token.lower() for token in tokens if token.isalpha()]
        if len(digits) != 1 or len(digits[0]) > 9 or not set(words) <= FRAME_WORDS:
            return None
        numbers.append(int(digits[0]))
    consecutive = len(numbers) >= FEWEST_FRAMES and max(numbers) - min(numbers) + 1 == len(set(numbers)) == len(numbers)
    return Guess("frames") if consecutive else None
