"""Which rule turns the masks of a data set into classes: what the user says, or what the values of many files show together.

A rule is chosen only where one reading is possible. Where there are several (a value 255 beside classes, numbered objects, several colours
for one class) the message names the values and what to set for each reading.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guidino_tune.config.data import BACKGROUND, IGNORED, INSTANCES, Data
from guidino_tune.data.labels import COLOUR, LabelRule, Seen, code_of, in_words, misfit, value_of
from guidino_tune.data.softness import Levels, in_shades, is_smooth, levels_of, third_level, total
from guidino_tune.errors import UserError

_LABELS = 15  # a largest value up to this looks like numbers of classes
_HUES = 8  # more colours are no classes, but objects
_CLASSES = 30  # more values are no classes that anyone would name one by one
_RARE = 0.1  # a value in a smaller share of the files is a mistake, where the others have a rule without it
_USUAL = 0.8  # share of the files that must be without such values


@dataclass(frozen=True, slots=True)
class Survey:
    """What many mask files hold together.

    Attributes:
        seen: Of each file, by colours or values.
        by_index: The same by the indices of palettes; empty where no file has one.
        ignored: A code that is left out.
    """

    seen: tuple[Seen, ...]
    by_index: tuple[Seen, ...] = ()
    ignored: int | None = None

    @property
    def values(self) -> Counter[int]:
        """Code -> pixels over all files, without what is ignored."""
        return _total(self.seen, self.ignored)


def _total(seen: Iterable[Seen], ignored: int | None) -> Counter[int]:
    total: Counter[int] = Counter()
    for file in seen:
        total.update(file.values)
    if ignored is not None:
        total.pop(ignored, None)
    return total


def stated_rule(data: Data, survey: Survey) -> LabelRule | None:
    """The rule of ``data.labels``, ``data.masks: instances`` or plain class numbers; ``None`` where it is to be found.

    Raises:
        UserError: The masks hold other values; names them, and what to say instead.
    """
    ignored = {} if data.ignore_label is None else {data.ignore_label: IGNORED}
    without = f"; {data.ignore_label} is left out" if ignored else ""
    if data.instances:
        if lossy := next((file for file in survey.seen if file.lossy), None):
            raise UserError(
                "a JPEG cannot hold the numbers of objects: compression with loss changes values along every border",
                where=str(lossy.path),
                todo="write masks as PNG or TIFF, or leave instances out of data.masks: what is bright is then foreground",
            )
        text = f"masks: numbered objects; whatever is not 0 is foreground{without}"
        return LabelRule("any", {0: 0, **ignored}, indices=bool(survey.by_index), text=text)
    if data.labels is not None:
        return _labelled(data, survey, ignored, without)
    return None


def _labelled(data: Data, survey: Survey, ignored: Mapping[int, int], without: str) -> LabelRule:
    assert data.labels is not None
    mapping: dict[int, int] = dict(ignored)
    for name, given in data.labels.items():
        number = 0 if name == BACKGROUND else data.class_names.index(name) + 1
        mapping |= {code_of(value): number for value in given}
    if BACKGROUND not in data.labels:
        mapping.setdefault(0, 0)
    named = ", ".join(f"{name} is {in_words(map(code_of, given))}" for name, given in data.labels.items())
    rule = LabelRule("values", mapping, text=f"masks: {named}{without}")
    for seen, indices in ((survey.seen, False), (survey.by_index, True)):
        if seen and not set(_total(seen, data.ignore_label)) - set(mapping):
            return LabelRule("values", mapping, indices=indices, text=rule.text)
    if not ignored and (soft := _told_levels(data, survey)):
        return soft
    others = set(survey.values) - set(mapping)
    file = next(seen for seen in survey.seen if others & set(seen.values))
    if file.lossy:
        raise UserError(
            f"holds {in_words(file.values)}: compression with loss changes values along every border, so that no class has one",
            where=str(file.path),
            todo="write masks with classes as PNG or TIFF",
        )
    raise UserError(
        f"the masks hold {in_words(survey.values)}, and data.labels says nothing of {in_words(others)}",
        where=str(file.path),
        todo=f"name every value in data.labels (what is no class as {BACKGROUND!r}), or leave one out with data.ignore_label; where a "
        "dataset.json tells the labels, correct them there",
    )


def _told_levels(data: Data, survey: Survey) -> LabelRule | None:
    """Whether there are soft borders between a named background and a named foreground; either may be the darker one."""
    named = {name: given[0] for name, given in (data.labels or {}).items() if len(given) == 1 and isinstance(given[0], int)}
    if len(named) != 2 or BACKGROUND not in named or len(data.labels or {}) != 2:
        return None
    seen = (in_shades(survey.seen) if max(survey.values) >= COLOUR else None) or survey.seen
    levels = levels_of(total(seen), seen)
    background, (name, top) = named.pop(BACKGROUND), named.popitem()
    if levels is None or {levels.low, levels.high} != {background, top}:
        return None
    side = "above" if top > background else "below"
    text = f"masks: soft borders between {background} and {top}; {name} is {side} {levels.middle:g}"
    return LabelRule("threshold", threshold=levels.middle, top=top, text=text)


def found_rule(data: Data, survey: Survey, where: Path) -> LabelRule:
    """The one rule that all surveyed masks fit.

    Args:
        data: What the user says; see ``stated_rule``.
        survey: Of training and validation masks.
        where: The data set, for messages.

    Raises:
        UserError: All masks are empty, or full; or several readings are possible: names the values, and what to set for each of them; or a
            few files do not fit the rule of all others (with ``data.bad_cases`` ``skip`` they have no say).
    """
    try:
        return stated_rule(data, survey) or _one_rule(data, survey, where)
    except UserError:
        usual, odd = _usual(survey, data.ignore_label)
        if not odd:
            raise
        try:
            rule = stated_rule(data, usual) or _one_rule(data, usual, where)
        except UserError:
            rule = None
        if rule is None:
            raise
        if data.bad_cases == "skip":
            return rule
    error = misfit(odd[0].path, f"holds {in_words(odd[0].values)}", rule)
    if _numbered(sorted(set().union(*(file.values for file in odd)) - {0}), odd) or all(_is_count(file) for file in odd):
        error.todo += f"; if each file numbers its objects, and all of them are foreground: {as_instances(data)}"
    raise error


def _usual(survey: Survey, ignored: int | None) -> tuple[Survey, list[Seen]]:
    """The survey without the few files whose values hardly any other file holds; and these files."""
    total = len(survey.seen)
    files = Counter(value for file in survey.seen for value in file.values)
    rare = {value for value, count in files.items() if count < _RARE * total and value != ignored}
    kept = [number for number, file in enumerate(survey.seen) if not rare & set(file.values)]
    if len(kept) < _USUAL * total or len(kept) == total:
        return survey, []
    odd = [file for number, file in enumerate(survey.seen) if number not in set(kept)]
    by_index = tuple(survey.by_index[number] for number in kept) if survey.by_index else ()
    return Survey(tuple(survey.seen[number] for number in kept), by_index, survey.ignored), odd


def _one_rule(data: Data, survey: Survey, where: Path) -> LabelRule:
    by_colour, by_index = survey.values, _total(survey.by_index, data.ignore_label)
    if data.num_classes > 1:
        return _class_numbers(data, survey, by_index or by_colour, where)
    ignored = {} if data.ignore_label is None else {data.ignore_label: IGNORED}
    # The number that is to be ignored is an index of a palette where there is one, and not a colour.
    indices = bool(ignored) and any(data.ignore_label in file.values for file in survey.by_index)
    values, seen = (by_index, survey.by_index) if indices else (by_colour, survey.seen)
    without = f"; {data.ignore_label} is left out" if ignored else ""
    present = sorted(values)
    if len(present) < 2:
        raise _one_value(present, len(seen), where)
    if levels := levels_of(values, seen):
        return _threshold(levels, ignored, values, where)
    if (shades := in_shades(seen) if present[-1] >= COLOUR else None) and (levels := levels_of(total(shades), shades)):
        return _threshold(levels, ignored, total(shades), where)
    if len(present) == 2 and present[0] == 0:
        text = f"masks: 0 and {in_words(present[1:])}; foreground is {in_words(present[1:])}{without}"
        return LabelRule("values", {0: 0, present[1]: 1, **ignored}, indices=indices, text=text)
    single = all(len(set(file.values) - {0, data.ignore_label}) <= 1 for file in seen)
    if present[0] == 0 and single and (present[1] > _LABELS or present[1] >= COLOUR):
        text = f"masks: one of {in_words(present[1:])} in each file; whatever is not 0 is foreground{without}"
        return LabelRule("any", {0: 0, **ignored}, indices=indices, text=text)
    raise _ambiguous(data, survey, values, seen, where)


def _class_numbers(data: Data, survey: Survey, values: Counter[int], where: Path) -> LabelRule:
    """Label maps whose values are 0 to the number of classes."""
    ignored = {} if data.ignore_label is None else {data.ignore_label: IGNORED}
    lossy = next((file for file in survey.seen if file.lossy), None)
    if lossy is not None:
        raise UserError(
            "a JPEG cannot hold labels: its compression changes values along every border",
            where=str(lossy.path),
            todo="write label maps as PNG or TIFF (0: background), or set data.bad_cases=skip",
        )
    present = sorted(values)
    expected = range(data.num_classes + 1)
    if not set(present) - set(expected):
        text = f"masks: 0 is background, 1 to {data.num_classes} are classes" + (f"; {data.ignore_label} is left out" if ignored else "")
        if not set(present) - {0}:
            raise _one_value(present, len(survey.seen), where)
        return LabelRule("values", {**{n: n for n in expected}, **ignored}, indices=bool(survey.by_index), text=text)
    raise _ambiguous(data, survey, values, survey.by_index or survey.seen, where)


def _threshold(levels: Levels, ignored: Mapping[int, int], values: Iterable[int], where: Path) -> LabelRule:
    if ignored:
        raise UserError(
            f"the masks have soft borders ({in_words(values)}), in which {next(iter(ignored))} cannot be told from a border",
            where=str(where),
            todo="leave data.ignore_label out, or write masks without compression and smoothing",
        )
    text = f"masks: soft borders between {levels.low} and {levels.high}; foreground is above {levels.middle:g}"
    return LabelRule("threshold", threshold=levels.middle, top=levels.high, text=text)


def _one_value(present: list[int], files: int, where: Path) -> UserError:
    if present in ([], [0]):
        return UserError(
            f"all {files} training and validation masks are empty: there is nothing to learn",
            where=str(where),
            todo="look at the masks: is it the right folder, and was the foreground written (0 is background)?",
        )
    return UserError(
        f"all {files} training and validation masks are full: every pixel is {in_words(present)}",
        where=str(where),
        todo="look at the masks: is it the right folder? Background is 0 (black)",
    )


def _ambiguous(data: Data, survey: Survey, values: Mapping[int, int], seen: Iterable[Seen], where: Path) -> UserError:
    """Names the values, and what to set for each reading that is possible."""
    seen = tuple(seen)
    present = sorted(values)
    others = [value for value in present if value != 0]
    held = f"the masks hold {in_words(present)}"
    if is_smooth(seen):
        return _smooth(held, values, seen, where)
    ways = _left_out(data, survey, others)
    greys = [value for value in others if value < COLOUR]
    consecutive = 0 < len(greys) == len(others) <= 254 and greys == list(range(1, len(greys) + 1))
    numbered = _numbered(others, seen)
    if 0 not in present:
        background = max(others, key=lambda value: values[value])
        named = {BACKGROUND: background, **_named([value for value in others if value != background])}
        ways.append(f"if {in_words([background])} is background: --set 'data.labels={_yaml(named)}'")
    elif consecutive and len(others) > 1:
        ways.append(f"if they are classes: --set data.num_classes={len(others)}")
    elif len(others) == 1:
        name = "if it is the one foreground"
        ways.append(f"{name}: --set data.num_classes=1" if data.num_classes > 1 else f"{name}: --set 'data.labels={_yaml(_named(others))}'")
    elif len(others) <= _CLASSES:
        ways.append(f"if they are classes (give them names): --set 'data.labels={_yaml(_named(others))}'")
    if numbered:
        ways.insert(0, f"if each file numbers its objects, and all of them are foreground: {as_instances(data)}")
    elif 0 in present and len(others) > 1:
        ways.append(f"if all of them are one foreground: {as_instances(data)}")
    if data.num_classes > 1:
        what = f"{held}, but with data.num_classes={data.num_classes} they are 0 to {data.num_classes}"
    else:
        what = f"{held}, and data.num_classes is 1: which of them is the foreground?"
    extra = Counter(len(set(file.values) - {0}) for file in seen)
    if len(others) > 1 and len(extra) > 1:
        what += f" (up to {max(extra)} in one file)"
    return UserError(what, where=str(where), todo="; ".join(ways))


def as_instances(data: Data) -> str:
    """The setting by which whatever is not 0 is foreground; the pattern of the masks is kept."""
    if data.mask_pattern is None:
        return f"--set data.masks={INSTANCES}"
    return f"--set {shlex.quote(f'data.masks={INSTANCES}:{data.mask_pattern}')}"


def _left_out(data: Data, survey: Survey, others: list[int]) -> list[str]:
    """What to set where one of the values is no class."""
    if data.ignore_label is not None:
        return []
    by_index = sorted(set(_total(survey.by_index, None)) - {0})
    if others and max(others) >= COLOUR and by_index:
        others = by_index
    ways = []
    for left in (255, -1):
        kept = [value for value in others if value != left]
        consecutive = kept == list(range(1, len(kept) + 1))
        if left not in others or not kept or max(kept) >= COLOUR or not (consecutive or data.num_classes > 1):
            continue
        more = f" --set data.num_classes={len(kept)}" if len(kept) > 1 else ""
        index = " (the last colour of the palette)" if others is by_index and left == 255 else ""
        ways.append(f"if {left}{index} is no class but to be left out: --set data.ignore_label={left}{more}")
    return ways


def _smooth(held: str, values: Mapping[int, int], seen: Sequence[Seen], where: Path) -> UserError:
    level = third_level(values, seen) if max(values) < COLOUR and len(values) > 2 else None
    between = f", with areas of about {level} between background and foreground," if level is not None else ""
    return UserError(
        f"{held}{between} and borders that are smoothed or compressed: which values are foreground cannot be told",
        where=str(where),
        todo="write masks of one value for each class, without smoothing and compression (PNG or TIFF, resized by nearest); or, if these "
        "are no masks, name the right files with data.masks",
    )


def _numbered(others: list[int], seen: Iterable[Seen]) -> bool:
    """True when files hold 1 to N with an N of their own, or too many values for classes."""
    if len(others) < 2:
        return False
    if max(others) >= COLOUR:
        return len(others) > _HUES
    counts = {len(set(file.values) - {0}) for file in seen if set(file.values) - {0}}
    whole = all(set(file.values) - {0} == set(range(1, len(set(file.values) - {0}) + 1)) for file in seen)
    return len(others) > _LABELS or (whole and len(counts) > 1)


def _is_count(file: Seen) -> bool:
    """Values 0 to N, of which there are two objects or more."""
    return max(file.values) > 1 and set(file.values) | {0} == set(range(max(file.values) + 1))


def _named(found: list[int]) -> dict[str, int]:
    return {f"class_{number}": code for number, code in enumerate(found, 1)}


def _yaml(named: Mapping[str, int]) -> str:
    values = {name: list(value) if isinstance(value := value_of(code), tuple) else value for name, code in named.items()}
    return "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"
