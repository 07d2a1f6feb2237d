"""How the files of a data set are read: what values of masks and images mean. Found once, kept with the study, the same for every file."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from guidino_tune.config.data import IGNORED, Data
from guidino_tune.data.cases import Case, stable_hash
from guidino_tune.data.intensity import EIGHT_BITS, IntensityRule, measure_intensity
from guidino_tune.data.label_rules import Survey, found_rule
from guidino_tune.data.labels import LabelRule, Seen, look, strength
from guidino_tune.data.rasters import is_turned
from guidino_tune.data.reading import read_raw
from guidino_tune.errors import UserError, first_names

RULES = "rules.json"
"""Beside the split of a study, in model folders and in exports."""

RULES_KEY = "rules"
"""In the provenance of a configuration."""

SAMPLE = 300
"""Cases whose masks are surveyed. A mask beyond them that does not fit is named when it is decoded."""

_THREADS = 4


@dataclass(frozen=True)
class Rules:
    """How files become images and masks.

    Attributes:
        labels: What the values of masks mean.
        intensity: What becomes black and white.
        channels: Of an image as the network sees it.
    """

    labels: LabelRule
    intensity: IntensityRule
    channels: int = 3

    @property
    def lines(self) -> tuple[str, ...]:
        """The rules in words, a line each."""
        return self.intensity.describe(), self.labels.text

    @cached_property
    def key(self) -> str:
        """Text that is the same for equal rules."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """In plain JSON types."""
        return {"labels": self.labels.to_dict(), "intensity": self.intensity.to_dict(), "channels": self.channels}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rules:
        """The inverse of ``to_dict``."""
        return cls(LabelRule.from_dict(values["labels"]), IntensityRule.from_dict(values["intensity"]), values["channels"])


Surveyed = Mapping[str, tuple[tuple[Seen, Seen | None], ...]]
"""Case id -> of each of its mask files what it holds by colour, and by palette index where it has a palette."""


def plain_rules(data: Data) -> Rules:
    """For files known to be plain: images of 8 bits as they are; masks of 0 and 255, cut half way, or of the classes' numbers."""
    if data.num_classes == 1:
        labels = LabelRule("threshold", threshold=127.5, top=255, text="masks: foreground is above 127.5")
    else:
        values = {number: number for number in range(data.num_classes + 1)}
        labels = LabelRule("values", values, indices=True, text=f"masks: 0 is background, 1 to {data.num_classes} are classes")
    return Rules(labels, EIGHT_BITS, data.channels)


def survey_masks(cases: Sequence[Case], data: Data, on_done: Callable[[], None] | None = None) -> Surveyed:
    """Looks at every mask file of these cases; with ``data.bad_cases`` ``skip`` those that cannot be read are passed over.

    Raises:
        UserError: A file cannot be read.
    """

    def one(case: Case) -> tuple[tuple[Seen, Seen | None], ...]:
        found = []
        try:
            for path in case.masks:
                raw = read_raw(path)
                found.append((look(raw, path), look(raw, path, indices=True) if raw.indices is not None else None))
        except UserError:
            if data.bad_cases != "skip":
                raise
            return ()
        finally:
            if on_done:
                on_done()
        return tuple(found)

    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(zip((case.id for case in cases), threads.map(one, cases), strict=True))
    if not any(seen.unit == "fractions" for pairs in found.values() for seen, _ in pairs):
        return found
    # Fractions in one file make 1.0 the largest of them in all others.
    return {name: tuple((s.in_fractions() if s.unit == "ones" else s, i) for s, i in pairs) for name, pairs in found.items()}


def label_rule(surveyed: Surveyed, data: Data) -> LabelRule:
    """The rule that all these masks fit.

    Raises:
        UserError: See ``found_rule``.
    """
    files = [pair for pairs in surveyed.values() for pair in pairs]
    if not files:
        raise UserError(
            f"none of {len(surveyed)} masks can be read", where=str(data.root or data.kind), todo="check data.root, and look at the files"
        )
    palettes = any(index is not None for _, index in files)
    by_index = tuple(index or seen for seen, index in files) if palettes else ()
    return found_rule(data, Survey(tuple(seen for seen, _ in files), by_index, data.ignore_label), _where(data, files))


def foreground_shares(surveyed: Surveyed, rule: LabelRule) -> dict[str, float]:
    """Case id -> share of its pixels that are foreground (files of one case are added up); cases that could not be read are left out."""
    shares = {}
    for name, pairs in surveyed.items():
        inside = total = 0
        for seen, index in pairs:
            values = (index or seen).values if rule.indices else seen.values
            total = max(total, sum(values.values()))
            inside += sum(n for code, n in values.items() if _is_foreground(rule, code))
        if total:
            shares[name] = inside / total
    return shares


def _is_foreground(rule: LabelRule, code: int) -> bool:
    if rule.kind == "threshold":
        return bool(rule.beyond(strength(code)))
    return rule.values.get(code, 1 if rule.kind == "any" else 0) not in (0, IGNORED)


def sample(cases: Sequence[Case], most: int = SAMPLE) -> list[Case]:
    """The same choice of cases in every process."""
    if len(cases) <= most:
        return list(cases)
    return sorted(sorted(cases, key=lambda case: (stable_hash("sample", case.id), case.id))[:most], key=lambda case: case.id)


def measure_rules(train: Sequence[Case], validation: Sequence[Case], data: Data, labels: LabelRule | None = None) -> Rules:
    """Finds the rules of a data set.

    Args:
        train: Training cases; what is black and white in images is measured on them alone.
        validation: Validation cases. Of the masks of both a sample is looked at.
        data: What the user says of them.
        labels: The rule of the masks where it is known.

    Raises:
        UserError: No rule fits; see ``found_rule`` and ``measure_intensity``.
    """
    chosen = sample(sorted((*train, *validation), key=lambda case: case.id))
    labels = labels or label_rule(survey_masks(chosen, data), data)
    intensity = measure_intensity([case.images for case in train], data)
    return Rules(labels, replace(intensity, notes=(*intensity.notes, *_turned(chosen))), data.channels)


def _turned(cases: Sequence[Case]) -> tuple[str, ...]:
    """A note on images that their header turns while their masks have no such header: nobody knows which of the two was drawn on."""
    with ThreadPoolExecutor(_THREADS) as threads:
        images, masks = (list(threads.map(is_turned, [getattr(case, side) for case in cases])) for side in ("image", "mask"))
    turned = [case.image.name for case, image, mask in zip(cases, images, masks, strict=True) if image and not mask]
    if not turned:
        return ()
    return (
        f"{len(turned)} of {len(cases)} images are turned as their header asks (EXIF orientation), and their masks are not: "
        f"{first_names(turned)}. Masks must fit the images as viewers show them; where they were drawn on the stored pixels, remove the "
        "orientation: exiftool -Orientation= FILES",
    )


def write_rules(rules: Rules, path: Path) -> None:
    """Writes them as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(rules.to_dict(), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_rules(path: Path) -> Rules | None:
    """What ``write_rules`` wrote; ``None`` where there is no such file.

    Raises:
        UserError: It is damaged.
    """
    try:
        return Rules.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"holds no rules of reading: {error}", where=str(path), todo="restore the file from a copy") from None


def _where(data: Data, files: Sequence[tuple[Seen, Seen | None]]) -> Path:
    return files[0][0].path.parent if files else Path(data.root or data.kind)
