"""What changes a study in one process, until that fails once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import optuna

from guidino_tune.errors import UserError
from guidino_tune.study.mirror import gathered
from guidino_tune.study.store import StudyFolder


class Guarded:
    """Works on a study in one process: it is not copied, and does nothing more after an error.

    Attributes:
        study: Where everything is decided and kept.
        folder: Of the study.
        error: Set when the study could not be written, as on a full disk, or when something that was handed in (a listener, a sampler, a
            pruner) raised; nothing more is asked, reported or told.
    """

    study: optuna.Study
    folder: StudyFolder
    error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a copy in another process could not work on the study."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: there is one study."""
        return self

    def stored(self, action: Callable[[], Any], otherwise: Any) -> Any:
        """Does what changes the study, until that fails once: Tune would take the error for the trial's, and try again.

        Args:
            action: What to do; its result is given back.
            otherwise: The result when it was not done, or only in part: trials stay running in the study, to be continued.
        """
        if self.error is None:
            try:
                if who := self.folder.held and self.folder.held.taken:
                    raise self._taken(who)
                with gathered(self.study):
                    return action()
            except Exception as error:
                closed = isinstance(error, optuna.exceptions.UpdateFinishedTrialError) or str(error).startswith("Cannot tell a ")
                self.error = self._taken("it closed a trial that runs here") if closed else error
        return otherwise

    def _taken(self, who: str) -> UserError:
        return UserError(
            f"another driver took this study over ({who}), as when this one could not reach the database for a while",
            where=str(self.folder.path),
            todo="let the other one go on; once it has ended, run it again to continue the study",
        )
