"""What is known of a study beyond its trials; see ``material`` for these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from guidino_tune.analysis.certainty import Estimate
from guidino_tune.analysis.comparison import Result
from guidino_tune.study.ensembles import MadeEnsemble
from guidino_tune.study.outcomes import FirstFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What ``compare`` found: where its page is, the answers in sentences, and scores on validation and on the sealed test."""

    page: str
    answers: Sequence[str]
    validation: Result
    test: Result | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Of an hour of one worker."""

    per_hour: float
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known.

    Attributes:
        at: When the report is made.
        state: ``running``, ``stopped`` (with trials left) or ``ended``.
        driver: Who drives it; empty where nobody does.
        left: Trials that are still to be finished.
        data: Over which images, in words.
        objective: What it looks for, in words.
        settings: Sampler, pruner and budget, in words.
        ending: Why the search ended early, in words; empty where it did not.
        agreement: Kendall's tau of each rung with the end.
        importance: By rung, of each parameter.
        gain: What so many more trials would probably gain.
        unsure: Why nothing is said of the three before; empty where something is.
        failures: By kind.
        comparisons: Of its best configurations, retrained.
        ensembles: Of its models, the latest first.
        try_ensemble: The command that makes one; empty where two models with weights are not here.
        patients: Patient of each validation case; ``None`` where that cannot be known here.
        pages: Other reports of the study, such as a paper's table: text by name of the file.
        commands: What to do with it, by what that does.
        links: Where its parts are.
        price: Of computing; ``None`` where nobody named one.
        version: Of the program.
    """

    at: datetime
    state: str
    driver: str = ""
    left: int = 0
    data: str = ""
    objective: str = ""
    settings: str = ""
    ending: str = ""
    agreement: Mapping[int, Estimate] = field(default_factory=dict)
    importance: Mapping[int, Mapping[str, Estimate]] = field(default_factory=dict)
    gain: tuple[int, Estimate] | None = None
    unsure: str = ""
    failures: Sequence[FirstFailure] = ()
    comparisons: Sequence[Comparison] = ()
    ensembles: Sequence[MadeEnsemble] = ()
    try_ensemble: str = ""
    patients: Mapping[str, str] | None = None
    pages: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    price: Price | None = None
    version: str = ""
