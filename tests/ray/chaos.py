"""Kills whatever a search depends on, at random moments, and compares what comes out with an undisturbed search: bit by bit.

Real processes on the loopback address: a Ray cluster of two nodes beside its head, an MLflow server, and the command ``search``. Victims
are its driver, the actor of a trial, the worker of a Ray Train trial, the raylet of the node on which a trial runs, and the MLflow server.
Trials run one after the other in a fixed order, so a disturbed study must end like the undisturbed one; with ``--concurrent`` several run
side by side, and then that holds of listed studies, while of drawn ones every stop must be what a rung had decided.

    make chaos ARGS='--kills 60 --seed 0 --minutes 30'

The table of all kills is in ``build/chaos``; exit code 1 after any discrepancy, and all files of the run are kept then.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chaos_truth as truth
import psutil
from chaos_machines import AT_WORK, WORKERS, Machines, Server, TooSlow, alive, kill, raylet, title, titles, wait
from chaos_study import EPOCHS, IN_A_ROW, SAMPLERS, Life, repeats

VICTIMS = {"driver": 3, "trial actor": 3, "train worker": 2, "raylet": 2, "mlflow server": 2}
"""What is killed, and how often in twelve kills."""

MOMENTS = {"start": 3, "epoch": 5, "end": 3}
"""Just after a start (also one that follows a kill), in any epoch, or about the end of a trial; and how often."""

RECOVERY = 180.0
"""Seconds within which the next epoch must follow a kill."""


@dataclasses.dataclass
class Kill:
    """One kill: when, what came of it, and the seconds until the next epoch.

    Attributes:
        redone: Epochs that were saved and nevertheless trained again; the one that was in progress is always begun again.
        last_epoch: Newest saved epoch of the newest trial.
    """

    victim: str
    moment: str
    executor: str
    study: str = ""
    at: float = 0.0
    trial: int | None = None
    last_epoch: int = 0
    recovery: float | None = None
    redone: int = 0
    after: float = 0.0
    saved: truth.Saved = dataclasses.field(default_factory=dict, repr=False)


class Chaos:
    """A run: its machines, what is left to be killed, and what was found.

    Args:
        folder: For everything that is written.
        kills: What shall be killed, and when.
        seed: Of the random moments.
        minutes: After which nothing more is killed.
        concurrent: Trials side by side.
    """

    def __init__(self, folder: Path, kills: Sequence[Kill], seed: int, minutes: float, concurrent: int = 1) -> None:
        self.folder, self.rng, self.concurrent = folder, random.Random(seed), concurrent
        self.deadline = time.monotonic() + 60 * minutes
        self.waiting = {executor: [k for k in kills if k.executor == executor] for executor in EPOCHS}
        self.planned = {executor: max(1, len(queue)) for executor, queue in self.waiting.items()}
        self.done: list[Kill] = []
        self.discrepancies: list[str] = []
        self.references: dict[tuple[str, str], dict[str, Any]] = {}
        self.reviver: threading.Thread | None = None
        self.lives = dict.fromkeys(EPOCHS, 0)

    def run(self) -> None:
        """All of it; discrepancies are kept, not raised."""
        self.server = Server(self.folder)
        self.machines: Machines | None = None
        try:
            self.server.start()
            from guidino_tune.data.sources.demo import find

            find(self.folder / "demo")
            self.machines = Machines(cpus=(self.concurrent + 1) // 2)
            wait(self.server.answers, 90, "the MLflow server")
            os.environ["MLFLOW_TRACKING_URI"] = self.server.uri
            while any(self.waiting.values()) and not self.late:
                executor = max(EPOCHS, key=lambda e: len(self.waiting[e]) / self.planned[e])
                sampler = SAMPLERS[executor][self.lives[executor] // IN_A_ROW % len(SAMPLERS[executor])]
                compared = repeats(sampler, self.concurrent)
                if compared and (executor, sampler) not in self.references:
                    self._live(executor, sampler, disturbed=False)
                if compared and (executor, sampler) not in self.references:
                    return  # there is nothing to compare with
                self.lives[executor] += 1
                self._live(executor, sampler, disturbed=True)
        finally:
            if self.reviver:
                self.reviver.join()
            self.server.kill()
            if self.machines:
                self.discrepancies += [f"left after the cluster: {text}" for text in self.machines.shutdown()]

    @property
    def late(self) -> bool:
        """True when nothing more shall be killed."""
        return time.monotonic() > self.deadline

    def _live(self, executor: str, sampler: str, *, disturbed: bool) -> None:
        """One study: started, killed, continued, ended, looked at."""
        name = f"{executor}-{self.lives[executor]:02d}" if disturbed else f"{executor}-{sampler}"
        life = Life(self.folder, self.folder / "demo", name, executor, sampler, self.concurrent)
        say(f"{'disturbed' if disturbed else 'undisturbed'} study {life.name} ({sampler})")
        mine: list[Kill] = []
        life.start()
        try:
            if disturbed:
                self._disturb(life, mine)
            wait(lambda: life.ended, RECOVERY, f"the end of study {life.name}")
            found = self._check(life)
        except TooSlow as error:
            found = [str(error)]
        finally:
            if life.process and not life.ended:
                life.process.kill()
        last = life.saved()
        for one in mine:
            again = truth.trained_again(one.saved, last)
            one.redone = len(again)
            found += [f"{one.victim}: epoch {epoch} of trial {trial} was lost or trained again" for trial, epoch in again]
        self.done += mine
        self.discrepancies += [f"{life.name}: {text}" for text in found]
        for text in found:
            say(f"DISCREPANCY in {life.name}: {text}")

    def _disturb(self, life: Life, mine: list[Kill]) -> None:
        queue, open_ones = self.waiting[life.executor], []
        while queue and not self.late and self._moment(life, queue[0]) and not life.ended:
            one = queue[0]
            one.study, one.at = life.name, time.time()
            if not self._strike(life, one):
                continue  # the victim ended by itself meanwhile
            queue.pop(0)
            one.saved = life.saved()
            one.trial, one.last_epoch = max(one.saved, default=(None, 0))
            mine.append(one)
            open_ones.append(one)
            if queue and queue[0].moment == "start":
                continue  # the next kill hits what starts now
            self._recovered(life, open_ones)
        self._recovered(life, open_ones)

    def _recovered(self, life: Life, kills: list[Kill]) -> None:
        """Waits for the first epoch after the last of these kills."""
        if kills:
            now = wait(lambda: life.epoch_since(kills[-1].after), RECOVERY, f"an epoch after the death of the {kills[-1].victim}")
            for one in kills:
                one.recovery = max(0.0, now - one.at)
                say(f"  {one.victim:<13} at {one.moment:<5} of trial {one.trial}, after epoch {one.last_epoch}: {one.recovery:5.1f} s")
            kills.clear()

    def _moment(self, life: Life, one: Kill) -> bool:
        """Waits for the moment to strike; False when the study ended first."""
        with contextlib.suppress(TooSlow):  # then any moment will do
            if one.moment == "start":
                if one.victim != "driver":
                    wait(lambda: life.ended or self._workers(life), 60, "a process that trains")
                time.sleep(self.rng.uniform(0, 8 if one.victim == "driver" else 4))
            elif one.moment == "epoch":
                now = time.time()
                wait(lambda: life.epoch_since(now), 60, "an epoch")
                time.sleep(self.rng.uniform(0, 1.0))
            else:
                last = EPOCHS[life.executor] - 1
                wait(lambda: life.ended or max(life.saved(), default=(0, 0))[1] == last, 30, "the last epoch of a trial", pause=0.01)
                time.sleep(self.rng.uniform(0, 0.8))
        return not life.ended

    def _workers(self, life: Life) -> list[psutil.Process]:
        assert self.machines is not None
        return self.machines.titled(WORKERS[life.executor])

    def _strike(self, life: Life, one: Kill) -> bool:
        """Kills, and sees to what a person would see to: the same command, another node, another server."""
        assert self.machines is not None
        assert life.process is not None
        if one.victim == "mlflow server":
            if self.reviver:
                self.reviver.join()
            wait(self.server.answers, 60, "the MLflow server")
            one.at = one.after = time.time()
            self.server.kill()
            self.reviver = threading.Thread(target=self._revive, args=(self.rng.uniform(0.2, 5),))
            self.reviver.start()
            return True
        if one.victim == "driver":
            old = self.machines.titled(AT_WORK)
            one.at = time.time()
            life.process.kill()
            life.process.wait()
            time.sleep(self.rng.uniform(0, 1))
            life.start()
            wait(lambda: not any(alive(p) for p in old), 60, lambda: f"the end of {titles(old)} after that of the driver")
            one.after = time.time()
            return True
        workers = wait(lambda: life.ended or self._workers(life), 60, "a process that trains")
        if life.ended:
            return False
        node = self.machines.node_of(workers[-1])
        one.at = time.time()
        if one.victim == "raylet":
            if node is None:
                return False
            children = psutil.Process(raylet(node).pid).children(recursive=True)
            at_work = [p for p in children if AT_WORK.search(title(p))]
            one.at = time.time()
            raylet(node).kill()
            raylet(node).wait()  # as long as it is a zombie, its workers take it for alive
            wait(lambda: not any(alive(p) for p in at_work), 30, lambda: f"the end of {titles(at_work)} on a dead node")
            one.after = time.time()
            for other in children:  # Ray's agents, which die with the machine
                with contextlib.suppress(psutil.NoSuchProcess):
                    kill(other)
            time.sleep(self.rng.uniform(0, 2))
            self.machines.replace(node)
            return True
        try:
            kill(workers[-1])
        except psutil.NoSuchProcess:
            return False
        one.after = time.time()
        return True

    def _revive(self, seconds: float) -> None:
        time.sleep(seconds)
        self.server.start()

    def _check(self, life: Life) -> list[str]:
        """What is wrong with an ended study."""
        assert self.machines is not None
        assert life.process is not None
        if life.process.returncode != 0:
            return [f"exit code {life.process.returncode}: {life.log.read_text()[-3000:]}"]
        found = truth.outcome(life.home, life.name)
        problems = truth.study_problems(life.home, life.name) + truth.decision_problems(life.home, life.name)
        if repeats(life.sampler, self.concurrent):
            problems += truth.differences(self.references.setdefault((life.executor, life.sampler), found), found)
        if len({repr(v) for k, v in found.items() if k.endswith(", value")}) < 2:
            problems.append("all trials have the same value, so nothing is compared")
        if self.reviver:
            self.reviver.join()
        wait(self.server.answers, 60, "the MLflow server")
        if "not yet in MLflow" in life.log.read_text()[-3000:]:  # the server was away when the search ended; as it says itself:
            flush = [sys.executable, "-m", "guidino_tune.track", life.name, "--flush", "--home", str(life.home)]
            sent = subprocess.run(flush, capture_output=True, text=True, timeout=120)
            problems += [f"track --flush ended with {sent.returncode}: {sent.stdout[-500:]}{sent.stderr[-500:]}"] if sent.returncode else []
        problems += truth.mlflow_problems(self.server.uri, life.home, life.name)
        machines = self.machines
        try:
            wait(lambda: not machines.titled(AT_WORK), 60, "the end of what the search had started", pause=0.3)
            wait(machines.all_free, 30, "all CPUs given back", pause=0.3)
        except TooSlow as error:
            problems.append(f"{error}: {titles(machines.titled(AT_WORK))}")
        return problems


def draw(number: int, victims: Sequence[str], seed: int) -> list[Kill]:
    """Kills in random order: each victim once, then as often as ``VICTIMS`` says."""
    rng = random.Random(seed)
    chosen = [*rng.sample(list(victims), k=len(victims)), *rng.choices(victims, [VICTIMS[v] for v in victims], k=number)][:number]
    rng.shuffle(chosen)
    kills = []
    for victim in chosen:
        # Drivers, raylets and servers die in searches with Ray Train too; less often, for such trials take long.
        train = victim == "train worker" or (victim != "trial actor" and "train worker" in victims and rng.random() < 0.15)
        moment = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
        kills.append(Kill(victim, moment, "train" if train else "actor"))
    return kills


def table(chaos: Chaos, planned: int, minutes: float) -> str:
    """All kills, then each kind of victim, as Markdown."""
    lines = ["| # | victim | executor | study | moment | trial | saved epochs | recovery s | saved epochs redone |", "|" + "---|" * 9]
    for number, k in enumerate(chaos.done, 1):
        recovery = "-" if k.recovery is None else f"{k.recovery:.1f}"
        lines.append(
            f"| {number} | {k.victim} | {k.executor} | {k.study} | {k.moment} | {k.trial} | {k.last_epoch} | {recovery} | {k.redone} |"
        )
    lines += ["", "| victim | kills | recovery s, median | recovery s, most | saved epochs redone |", "|---|---|---|---|---|"]
    for victim in VICTIMS:
        mine = [k for k in chaos.done if k.victim == victim]
        times = [k.recovery for k in mine if k.recovery is not None] or [0.0]
        if mine:
            redone = sum(k.redone for k in mine)
            lines.append(f"| {victim} | {len(mine)} | {statistics.median(times):.1f} | {max(times):.1f} | {redone} |")
    studies, wrong = sum(chaos.lives.values()), len(chaos.discrepancies)
    head = f"{len(chaos.done)} of {planned} kills in {studies} studies and {minutes:.1f} minutes, {wrong} discrepancies"
    return "\n".join([head, "", *lines, "", *(f"- {text}" for text in chaos.discrepancies)]) + "\n"


def say(text: str) -> None:
    """Progress, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """See the top of this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=60)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--minutes", type=float, default=30.0, help="nothing is killed after this; the study that runs then is ended")
    arguments.add_argument("--concurrent", type=int, default=1, help="trials side by side; default: %(default)s")
    arguments.add_argument("--victims", nargs="+", choices=list(VICTIMS), default=list(VICTIMS))
    arguments.add_argument("--output", type=Path, default=Path("build/chaos"))
    options = arguments.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    chaos = Chaos(folder, draw(options.kills, options.victims, options.seed), options.seed, options.minutes, options.concurrent)
    start = time.monotonic()
    try:
        chaos.run()
    except TooSlow as error:
        chaos.discrepancies.append(str(error))
    except KeyboardInterrupt:
        chaos.discrepancies.append("interrupted: the last study was not looked at")
    text = table(chaos, options.kills, (time.monotonic() - start) / 60)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "chaos.md").write_text(text)
    kills = [{k: v for k, v in dataclasses.asdict(one).items() if k not in ("saved", "after")} for one in chaos.done]
    summary = {"planned": options.kills, "seed": options.seed, "kills": kills, "discrepancies": chaos.discrepancies}
    (options.output / "chaos.json").write_text(json.dumps(summary, indent=1))
    print(text)
    if chaos.discrepancies:
        print(f"all files of this run are in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
