"""The last lines of a search: what came out, how sure that is, and what to do next."""

from __future__ import annotations

import io
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console

from guidino_tune import paths
from guidino_tune.space.space import Space
from guidino_tune.study.outcomes import REPEATS, in_words, same_way
from guidino_tune.study.stopping import sentence
from guidino_tune.study.store import StoredStudy
from guidino_tune.study.trials import best_value, ranking, without_result
from guidino_tune.tracking import MLflowTracker
from guidino_tune.tracking.client import is_server
from guidino_tune.training.folder import write_text
from guidino_tune.workflows.certainty import Certainty
from guidino_tune.workflows.progress import conclusions, hidden_line, leaderboard
from guidino_tune.workflows.study_page import storage_option
from guidino_tune.workflows.tables import UNLIMITED, print_table

CONTINUES = "Nothing is lost: run it again to go on from here."


def tell_result(
    stored: StoredStudy, console: Console, *, baseline: float, tracking: MLflowTracker, end: str, certainty: Certainty,
    report: Path | None, storage: str | None,
) -> None:  # fmt: skip
    """Prints what came out and the next commands, and writes ``leaderboard.txt``.

    Args:
        stored: The study.
        console: Where to.
        baseline: Dice of the best constant mask.
        tracking: Says what MLflow lacks.
        end: Why the search ended before all trials did; empty where it did not.
        certainty: Of the study.
        report: The page, if there is one.
        storage: Database that was named for this call, which the next commands must be told, too.
    """
    folder, study, space = stored
    name, file = space.study.name, folder.path / "leaderboard.txt"
    write_text(file, leaderboard_text(study, space))
    table, hidden = leaderboard(study, space, width=console.width)
    console.print(f"Study {name}", style="bold", highlight=False)
    print_table(console, table)
    if line := hidden_line(hidden, name, str(file)):
        console.print(line, style="dim", highlight=False, soft_wrap=True)
    ranked = ranking(study)
    failed = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.FAIL and REPEATS not in t.user_attrs]
    if failed:
        lines = [f"{len(failed)} trials failed:", *in_words(failed), *without_result(study, space)]
        console.print("\n  ".join(lines), style="red", highlight=False, soft_wrap=True, markup=False)
        if kind := same_way(t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING):
            console.print(f"No trial has a result: all of them failed the same way ({kind}).", style="red", highlight=False)
    if ranked:
        best, worst = (best_value(trial) or 0.0 for trial in (ranked[0], ranked[-1]))
        verdict = "beats" if best > baseline else "does NOT beat"
        console.print(
            f"Best validation Dice {best:.4f} {verdict} the best constant mask ({baseline:.4f}); worst complete trial {worst:.4f}."
        )
    for line in filter(None, (sentence(study, space, folder), *conclusions(study, space), *certainty.sentences())):
        console.print(line, highlight=False, soft_wrap=True)
    if tracking.pending or tracking.last_error:
        console.print(tracking.message, style="yellow", highlight=False, soft_wrap=True)
    left = [str(t.number) for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
    if left and not end:
        console.print(
            f"{len(left)} trials were left unfinished (trial {', '.join(left[:8])}), for as many as were asked for have their result; a "
            "search for more goes on with them.",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    pages = ("open", tracking.url) if is_server(tracking.uri) else ("browse", paths.next_command(f"ui {name}"))
    if end:
        console.print(f"{end}. {CONTINUES}", style="yellow", highlight=False, soft_wrap=True)
    steps = [("report", str(report or "")), pages]
    if ranked:
        steps += [
            ("export", paths.next_command(f"export {name} --output best.yaml{storage_option(storage)}")),
            ("retrain", paths.next_command("retrain best.yaml --seeds 3")),
            ("compare", paths.next_command(f"compare {name}{storage_option(storage)}")),
        ]
    for label, command in (step for step in steps if step[1]):
        console.print(f"{label:>8}: {command}", highlight=False, soft_wrap=True)


def leaderboard_text(study: optuna.Study, space: Space) -> str:
    """Everything in whole lines; a notebook would show what is printed anywhere."""
    table, _ = leaderboard(study, space, rows=1000)
    for column in table.columns:
        column.max_width = None
    console = Console(width=UNLIMITED, record=True, file=io.StringIO(), force_jupyter=False)
    console.print(f"Study {study.study_name}", highlight=False)
    console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())
