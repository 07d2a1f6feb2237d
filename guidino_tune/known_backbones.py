"""What is known of guide backbones in this process: the fingerprint that each must have, and where its folder lies now.

A backbone is named once, by the path or name that a study, an export or a model has noted, and keeps that name: hashes and trials follow
it. Its folder may move, and then it has a *place*. Whatever place it is read from, it must have the fingerprint that was noted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guidino_tune import paths
from guidino_tune.config import DINOGuide
from guidino_tune.errors import UserError

ANY = ""
"""Stands for whatever backbone is asked for, where there is but one."""

_RANDOM = " (random)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a backbone.

    Attributes:
        fingerprint: It must have this one; empty where none was noted.
        place: The folder to read it from; empty: where its name says.
        owner: What was made with it, for messages, such as ``study 'kvasir'``.
        otherwise: What a person can do who means other weights.
    """

    fingerprint: str = ""
    place: str = ""
    owner: str = ""
    otherwise: str = ""


_layers: list[Mapping[str, Known]] = []


def key_of(guide: DINOGuide) -> str:
    """By which a backbone is noted: its name or path, and whether its weights are random."""
    return guide.backbone + (_RANDOM if guide.weights == "random" else "")


def name_in(key: str) -> str:
    """The name or path in a key of ``key_of``."""
    return key.removesuffix(_RANDOM)


@contextmanager
def expecting(known: Mapping[str, Known]) -> Iterator[None]:
    """Inside, backbones are read from these places and must have these fingerprints.

    Of nested ones every fingerprint counts, and of the places the outermost: what a person says comes before what was noted.

    Args:
        known: By ``key_of``, or for ``ANY``.
    """
    _layers.append(known)
    try:
        yield
    finally:
        _layers[:] = [layer for layer in _layers if layer is not known]  # by identity: others may say the same


def place_of(backbone: str) -> str:
    """Where to read a backbone: the folder in which it lies now, or its own name."""
    for layer in _layers:
        for key in (backbone, backbone + _RANDOM, ANY):
            if key in layer and layer[key].place:
                return layer[key].place
    folder = Path(backbone).expanduser()
    here = paths.rebased(folder)  # a folder in a home that was moved since
    return backbone if here == folder else str(here)


def is_placed() -> bool:
    """Whether a person says where the folder of the one backbone is now (``--backbone DIR``)."""
    return any(layer[ANY].place for layer in _layers if ANY in layer)


def check(guide: DINOGuide, fingerprint: str) -> None:
    """Compares a backbone with what is known of it.

    Raises:
        UserError: It is another one; names both fingerprints.
    """
    for layer in _layers:
        known = layer.get(key_of(guide), Known())
        if known.fingerprint not in ("", fingerprint):
            raise other_weights(guide.backbone, fingerprint, known)


def check_of_use(guide: object) -> None:
    """A folder that a person names for the one backbone must be that of some backbone.

    Raises:
        UserError: There is none.
    """
    places = [layer[ANY].place for layer in _layers if ANY in layer]
    if places and not isinstance(guide, DINOGuide):
        raise UserError("there is no guide backbone whose folder could have moved", where=f"--backbone {places[0]}", todo="leave it out")


def expected(backbone: str) -> bool:
    """Whether something is known of a backbone: it was used before, and cannot be another one now."""
    return any(layer[key].fingerprint for layer in _layers for key in (backbone, backbone + _RANDOM) if key in layer)


def other_weights(backbone: str, fingerprint: str, known: Known) -> UserError:
    """The message to who gives other weights than are known.

    Args:
        backbone: Its name.
        fingerprint: Of what was found.
        known: What was expected.
    """
    place = place_of(backbone)
    way = "put the first weights back, or name the folder where they are now by --backbone DIR"
    return UserError(
        f"these are other weights, or another architecture, than {known.owner or 'it'} was made with: fingerprint {fingerprint}, "
        f"not {known.fingerprint}",
        where=f"guide.backbone={backbone}" + (f" in {place}" if place != backbone else ""),
        todo=way + (f"; {known.otherwise}" if known.otherwise else ""),
    )


def packed() -> list[dict[str, dict[str, str]]]:
    """All that is known now, in plain types, for ``adopt`` in another process."""
    return [{key: dataclasses.asdict(known) for key, known in layer.items()} for layer in _layers]


def adopt(layers: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Takes over what another process has ``packed``, in place of what is known here."""
    _layers[:] = [{key: Known(**values) for key, values in layer.items()} for layer in layers]


def chosen(options: Sequence[str], names: Sequence[str] | None = None) -> dict[str, Known]:
    """What ``--backbone`` says: ``DIR`` where only one backbone can be meant, or ``OLD=DIR``.

    Args:
        options: Of the command line.
        names: Of the backbones that may be meant; ``None``: there is but one, whatever its name.

    Raises:
        UserError: A folder that is not there, or no, or several backbones that may be meant.
    """
    found: dict[str, Known] = {}
    for text in options:
        name, folder = _split(text, names)
        place = Path(folder).expanduser().absolute()
        if not place.is_dir():
            raise UserError("no such folder", where=f"--backbone {text}", todo="give the folder in which the weights lie now")
        found[name] = Known(place=str(place))
    return found


def _split(text: str, names: Sequence[str] | None) -> tuple[str, str]:
    """Name and folder in one value of the option; either may hold an equals sign itself."""
    if Path(text).expanduser().is_dir() or "=" not in text:
        return _only(text, names), text
    parts = [(text[:i], text[i + 1 :]) for i, letter in enumerate(text) if letter == "="]
    if names is None:
        return next((part for part in parts if Path(part[1]).expanduser().is_dir()), parts[0])
    for old, folder in parts:
        for name in names:
            if name in (old, str(Path(old).expanduser().absolute())):
                return name, folder
    raise UserError(f"no backbone is called {parts[0][0]!r} here", where=f"--backbone {text}", todo=f"name one of: {', '.join(names)}")


def _only(text: str, names: Sequence[str] | None) -> str:
    if names is None:
        return ANY
    local = [name for name in names if "/" in name] or list(names)
    if len(local) != 1:
        what = "several backbones may be meant" if local else "there is no backbone whose folder could have moved"
        raise UserError(
            what, where=f"--backbone {text}", todo=f"say which one, as --backbone OLD=DIR: {', '.join(local)}" if local else "leave it out"
        )
    return local[0]
