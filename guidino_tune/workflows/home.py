"""A home folder that was moved: what names its former place is made to follow, before anything new is written."""

from __future__ import annotations

from rich.console import Console

from guidino_tune import paths
from guidino_tune.errors import UserError
from guidino_tune.study.store import folder_of, known_studies
from guidino_tune.tracking.moved import BACKUP, find_moved, home_database, mend, why_not
from guidino_tune.workflows.track import mlflow_uri


def follow_home(console: Console) -> None:
    """Lets MLflow's database in the home folder name its files where they are now, and remembers where the home is.

    Called by whatever writes into the home, at its start. It does nothing where there is no home yet.

    Raises:
        UserError: A search still works in the home, which would write to the former place; or the database cannot be written.
    """
    home, former = paths.home(), []
    if home.is_dir() and mlflow_uri() == home_database(home):
        for moved in find_moved(home):
            if moved.absent:
                console.print(f"note: {why_not(moved)}", style="yellow", highlight=False, soft_wrap=True)
                continue
            for name in known_studies():
                if holder := folder_of(name).holder():
                    raise UserError(
                        f"the home folder was moved here from {moved.former} while study {name!r} is at work ({holder})",
                        where=str(home),
                        todo="stop that process, or wait for it, and run it again",
                    )
            mend(moved)
            former.append(moved.former)
            console.print(
                f"note: the home folder was moved from {moved.former}: MLflow finds the files of its {moved.runs} runs in {home} now "
                f"(its database as it was before: {BACKUP})",
                style="yellow", highlight=False, soft_wrap=True,
            )  # fmt: skip
    paths.remember_home(*former)
