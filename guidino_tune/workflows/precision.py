"""Which precision a study trains in: that with which it was begun, or what the nodes of its cluster have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from guidino_tune.running.connection import connected
from guidino_tune.running.elastic import plan_when_possible
from guidino_tune.running.hardware import precision_of
from guidino_tune.space.space import Space
from guidino_tune.study.precision import UNSETTLED, as_defined, is_open, with_precision
from guidino_tune.study.store import StudyFolder, stored_definition


def settle(
    space: Space, folder: StudyFolder, storage: str | None, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> tuple[Space, str]:
    """The space with a precision in the place of ``auto``, and of a study that goes on with its way to compile.

    Args:
        space: To be searched; of a study that goes on, with what its folder knows.
        folder: Of the study.
        storage: Its database.
        stack: To learn what a cluster has, it is connected until this is closed: once the trials have run.
        say: Told the precision of a new study.

    Returns:
        The space, and what is to be noted in a study that begins; empty of any other. A study that was begun with ``auto`` keeps it.

    Raises:
        UserError: A new study's cluster has no place for a trial.
    """
    if definition := stored_definition(folder, space.study.name, storage):
        space = as_defined(space, definition)  # also how it compiles, where another folder began it
        if is_open(space):
            say(f"note: {UNSETTLED}")
        return space, ""
    if not is_open(space):
        return space, ""
    stack.enter_context(connected(space.resources))
    precision, why = precision_of(plan_when_possible(space.resources, say))
    say(why)
    return with_precision(space, precision), precision
