"""Descriptions of runs: who writes them knows trials by number, and MLflow knows runs by id.

MLflow's pages show a run's description as Markdown that is sanitised: pictures inside the text (``data:``) are dropped, those that lie
beside a run are shown by an address relative to the page, as wide as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

from guidino_tune.tracking.uploads import PICTURES, PREVIEWS, preview_name

NOTE = "mlflow.note.content"
"""The tag that holds the description of a run."""

_PICTURE = re.compile(r"!\[\]\(trial:(\d+)/([\w.-]+)\)\n*", re.ASCII)
_LINK = re.compile(r"\[([^\]\n]*)\]\(trial:(\d+)\)", re.ASCII)


def link(number: int, text: str) -> str:
    """A link to the run of a trial, for a description."""
    return f"[{text}](trial:{number})"


def picture(number: int, name: str) -> str:
    """A picture among the artifacts of a trial's run, for a description: a small one that leads to it."""
    return f"![](trial:{number}/{name})"


def addressed(note: str, experiment: str, run_of: Callable[[str], str]) -> tuple[str, bool]:
    """A description with addresses in the place of numbers.

    Args:
        note: Markdown with ``link`` and ``picture``.
        experiment: Id of the experiment that all runs are in.
        run_of: Id of a trial's run by its number as text; empty where it has none yet.

    Returns:
        The description, without links and pictures of trials that have no run yet; and whether there were such.
    """
    lacking = False

    def known(number: str) -> str:
        nonlocal lacking
        run = run_of(number)
        lacking = lacking or not run
        return run

    def shown(found: re.Match[str]) -> str:
        run = known(found[1])
        page = f"#/experiments/{experiment}/runs/{run}/artifacts/{PICTURES}/{found[2]}"
        small = f"get-artifact?path={quote(f'{PREVIEWS}/{preview_name(found[2])}', safe='')}&run_uuid={run}"
        return f"[![]({small})]({page}){found[0].partition(')')[2]}" if run else ""

    def linked(found: re.Match[str]) -> str:
        run = known(found[2])
        return f"[{found[1]}](#/experiments/{experiment}/runs/{run})" if run else found[1]

    return _LINK.sub(linked, _PICTURE.sub(shown, note)), lacking
