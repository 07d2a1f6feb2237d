"""The end of a search with worker groups: how long it waits for their bookings."""

from __future__ import annotations

import time

import pytest

from guidino_tune.running import leftovers
from guidino_tune.running.leftovers import Leftovers


class Cluster(Leftovers):
    """Answers each look at its bookings with the next of ``answers``, and with the last one for ever; ``None``: not at all."""

    def __init__(self, *answers: bool | None, executor: str = "train") -> None:
        super().__init__(executor)
        self.answers, self.looks = answers, 0

    def __enter__(self) -> Cluster:
        return self  # without its thread

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._thread.start()
        super().__exit__(kind, *exc)

    def _work(self) -> None:
        """Nothing."""

    def look(self) -> list[str]:
        """See ``Leftovers``."""
        answer = self.answers[min(self.looks, len(self.answers) - 1)]
        self.looks += 1
        if answer is None:
            raise ConnectionError("no state service")
        self._any = answer
        return []


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"PAUSE": 0.01, "TELL": 0.05, "ENDING": 1.0, "INTERRUPTED": 0.1}.items():
        monkeypatch.setattr(leftovers, name, seconds)


def seconds(cluster: Cluster, error: BaseException | None = None) -> float:
    begun = time.monotonic()
    cluster.__exit__(type(error) if error else None, error, None)
    return time.monotonic() - begun


def test_a_cluster_that_does_not_answer_is_asked_three_times(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(None)
    assert seconds(cluster) < 0.5
    assert cluster.looks == leftovers.UNANSWERED == 3
    assert not caplog.records


def test_one_that_missed_an_answer_is_asked_on() -> None:
    cluster = Cluster(None, None, True, None, None, False)
    seconds(cluster)
    assert cluster.looks == 6


def test_bookings_are_waited_for_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert seconds(Cluster(True)) > 0.9
    (told,) = caplog.records
    assert told.getMessage() == "waiting until the cluster has taken back what stopped trials have booked, for 1 s at most"


def test_a_second_signal_waits_for_little() -> None:
    assert seconds(Cluster(True), KeyboardInterrupt()) < 0.5


def test_without_worker_groups_nothing_is_waited_for() -> None:
    cluster = Cluster(True, executor="actor")
    assert seconds(cluster) < 0.05
    assert cluster.looks == 0
