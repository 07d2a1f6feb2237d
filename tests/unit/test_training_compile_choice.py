"""``training.compile: auto``: what is tried, taken, given up and remembered; with the compiler that is really used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from training_helpers import GUIDE, Listener, make_data, make_experiment

from guidino_tune.data.opening import SearchData
from guidino_tune.training.compile_choice import TIMED, TYPICAL, WARM_UP, Chooser, Figures, Memory, Way, kind_of, unchanged, ways_for
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.machine import note_machine, read_machines

CPU = torch.device("cpu")
COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler on a CPU")


class Clock:
    """Seconds that pass only where a network runs: so many as it is told for a step as it is, for a compiled one, and to compile."""

    def __init__(self, eager: float, quick: float, compiling: float) -> None:
        self.now, self.eager, self.quick, self.compiling = 0.0, eager, quick, compiling
        self.graphs = 0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, compiled: bool) -> None:
        new = counters["stats"]["unique_graphs"]
        self.now += (self.quick if compiled else self.eager) + (self.compiling if new > self.graphs else 0)
        self.graphs = new


class Trial:
    """A trial of a small U-Net on the CPU, whose chooser is told that compiling may pay there, and what time it is."""

    def __init__(
        self, data: SearchData, folder: Path, clock: Clock, memory: Memory, ways: tuple[str, ...] = ("default",), **more: Any
    ) -> None:
        torch._dynamo.reset()
        counters.clear()
        clock.graphs = 0
        self.run = TrainingRun(make_experiment("unet", epochs=10**6, batch_size=4, compile="auto", **more), data, Listener(folder))
        assert self.run.chooser is None  # on a CPU there is nothing to choose
        self.run.chooser = self.chooser = Chooser(self.run.compiled, ways, memory, device=CPU, clock=clock)
        self.run.module.train()
        self.batches = list(self.run.views.epoch(0))
        self.compiled_calls = 0

        def forward(module: nn.Module, *_: Any) -> None:
            on = self.run.compiled.way != "none" and not self.run.compiled._paused
            self.compiled_calls += on
            clock.pass_by(on)

        self.run.model.register_forward_hook(forward)

    def steps(self, number: int) -> None:
        whole = next(batch for batch in self.batches if len(batch.ids) == 4)
        for _ in range(number):
            self.run.step(whole)

    def leave(self, steps: int) -> None:
        """Of a trial with so many steps to its end."""
        self.run.views.num_steps = steps
        self.run.saved = (1,)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    return make_data(tmp_path_factory.mktemp("cases"), train=6)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory({"network": "unet"}, tmp_path / "compiling")


@COMPILER
def test_what_pays_is_taken_remembered_and_taken_at_once(data: SearchData, memory: Memory, tmp_path: Path) -> None:
    clock = Clock(eager=1.0, quick=0.25, compiling=60.0)
    trial = Trial(data, tmp_path / "first", clock, memory)
    note_machine(tmp_path / "first", trial.run)
    trial.leave(1000)
    trial.steps(WARM_UP + TIMED)
    assert (trial.run.compiled.way, counters["stats"]["unique_graphs"]) == ("none", 0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        trial.steps(2)  # real steps run what was rehearsed
        partial = next(batch for batch in trial.batches if len(batch.ids) == 2)
        before = trial.run.model.segmenter.head.weight.clone()
        trial.run.step(partial)
    assert trial.run.compiled.way == "default"
    assert not torch.equal(before, trial.run.model.segmenter.head.weight)
    assert memory.read() == Figures(1.0, {"default": Way(step=0.25, compiling=60.0 + 0.25 * WARM_UP)})
    assert trial.chooser.news() == {"eager_step_seconds": 1.0, "compiled_step_seconds": 0.25, "compile_seconds": 60.75}
    assert trial.chooser.news() == {}
    assert [note.get("compile") for note in read_machines(tmp_path / "first")] == [None, "default"]
    trial.run.close()

    again = Trial(data, tmp_path / "second", clock, memory)
    again.leave(1000)
    again.steps(1)
    assert again.run.compiled.way == "default"
    assert again.compiled_calls == WARM_UP + 1
    again.run.close()
    # 60.75 seconds are repaid by 81 steps.
    for steps, way in ((80, "none"), (82, "default")):
        short = Trial(data, tmp_path / f"{steps}", Clock(eager=1.0, quick=0.25, compiling=60.0), memory)
        short.leave(steps)
        short.steps(1)
        assert short.run.compiled.way == way
        short.run.close()


@COMPILER
def test_what_does_not_pay_is_given_up_and_not_tried_again(data: SearchData, memory: Memory, tmp_path: Path) -> None:
    clock = Clock(eager=1.0, quick=1.25, compiling=60.0)
    trial = Trial(data, tmp_path / "first", clock, memory)
    plain = TrainingRun(trial.run.experiment, data, Listener(tmp_path / "plain"))
    plain.module.train()
    trial.leave(1000)
    for number in range(WARM_UP + TIMED + 2):
        torch.manual_seed(number)
        trial.steps(1)
        torch.manual_seed(number)
        plain.step(next(batch for batch in trial.batches if len(batch.ids) == 4))
    assert (trial.run.compiled.way, memory.read().ways["default"].step) == ("none", 1.25)
    # The rehearsal has left nothing behind, and the steps after it are as they were.
    state = plain.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trial.run.model.state_dict().items())
    trial.run.close()
    again = Trial(data, tmp_path / "second", clock, memory)
    again.leave(10**6)
    again.steps(2)
    assert again.compiled_calls == 0
    again.run.close()


def test_a_small_trial_compiles_nothing(data: SearchData, memory: Memory, tmp_path: Path) -> None:
    trial = Trial(data, tmp_path / "run", Clock(eager=1.0, quick=0.01, compiling=1.0), memory)
    trial.leave(int(2 * TYPICAL))
    trial.steps(WARM_UP + TIMED + 3)
    assert trial.compiled_calls == 0
    assert memory.read() == Figures(1.0)
    trial.run.close()


@COMPILER
def test_a_trial_whose_memory_counts_compiles_once_that_is_measured(data: SearchData, memory: Memory, tmp_path: Path) -> None:
    """A constraint must not depend on what the trial before it has found."""
    memory.write(Figures(1.0, {"default": Way(step=0.25, compiling=10.0)}))
    trial = Trial(data, tmp_path / "run", Clock(eager=1.0, quick=0.25, compiling=10.0), memory)
    trial.leave(1000)
    trial.run.measure = True
    trial.steps(2)
    assert trial.run.compiled.way == "none"
    trial.run.measure = False
    trial.steps(1)
    assert trial.run.compiled.way == "default"
    trial.run.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("guidino_tune")]
    return [record.getMessage() for record in ours if record.levelname == "WARNING"]


@pytest.mark.parametrize("error", [RuntimeError("no triton\nsecond line"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_broken_compiler_costs_one_warning(
    error: Exception, data: SearchData, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    trial = Trial(data, tmp_path / "first", Clock(eager=1.0, quick=0.1, compiling=1.0), memory, ways=("cuda-graphs", "default"))
    trial.leave(1000)
    trial.steps(WARM_UP + TIMED + 3)
    assert trial.run.compiled.way == "none"
    (told,) = warnings(caplog)
    assert str(memory.file) in told
    assert {name: bool(way.error) for name, way in memory.read().ways.items()} == {"cuda-graphs": True, "default": True}
    trial.run.close()
    caplog.clear()
    again = Trial(data, tmp_path / "second", Clock(eager=1.0, quick=0.1, compiling=1.0), memory, ways=("cuda-graphs", "default"))
    again.leave(1000)
    again.steps(WARM_UP + TIMED + 3)
    assert (again.compiled_calls, warnings(caplog)) == (0, [])
    again.run.close()


@COMPILER
def test_where_the_first_way_fails_the_second_is_tried(data: SearchData, memory: Memory, tmp_path: Path) -> None:
    memory.write(Figures(1.0, {"cuda-graphs": Way(error="no graphs")}))
    trial = Trial(data, tmp_path / "run", Clock(eager=1.0, quick=0.5, compiling=10.0), memory, ways=("cuda-graphs", "default"))
    trial.leave(1000)
    trial.steps(1)
    assert trial.run.compiled.way == "default"
    trial.run.close()


def test_a_way_that_ended_two_processes_is_left_alone(data: SearchData, memory: Memory, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    for number in range(2):
        memory.write(Figures(1.0, memory.read().ways))
        trial = Trial(data, tmp_path / f"{number}", Clock(1.0, 0.1, 1.0), memory)
        with pytest.raises(Killed), trial.chooser.around(4, 1000, kill):
            pass
        trial.run.close()
    last = Trial(data, tmp_path / "last", Clock(1.0, 0.1, 1.0), memory)
    last.leave(1000)
    last.steps(2)
    assert last.compiled_calls == 0
    last.run.close()


@COMPILER
def test_who_came_third_takes_what_the_first_has_found(data: SearchData, memory: Memory, tmp_path: Path) -> None:
    memory.write(Figures(1.0, {"default": Way(begun=2)}))  # two trials are compiling
    trial = Trial(data, tmp_path / "run", Clock(eager=1.0, quick=0.25, compiling=10.0), memory)
    trial.leave(1000)
    trial.steps(2)
    trial.chooser.news()
    trial.steps(1)
    assert trial.compiled_calls == 0
    memory.write(Figures(1.0, {"default": Way(step=0.25, compiling=10.0)}))
    trial.steps(1)
    assert trial.compiled_calls == 0  # not before the epoch has ended
    trial.chooser.news()
    trial.steps(1)
    assert trial.run.compiled.way == "default"
    trial.run.close()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"eager": 1.0}', '{"eager": "x", "ways": {}}', '{"eager": 1.0, "ways": {"default": {"speed": 1}}}',
     '{"eager": -1, "ways": {}}', '{"eager": NaN, "ways": {}}', '{"eager": 1.0, "ways": [1]}',
     '{"eager": 1.0, "ways": {"default": {"begun": "2"}}}'],
)  # fmt: skip
def test_a_damaged_memory_is_none(text: str, memory: Memory) -> None:
    memory.file.parent.mkdir(parents=True)
    memory.file.write_text(text, encoding="utf-8")
    assert memory.read() == Figures()
    memory.write(Figures(2.0, {"default": Way(step=1.0, compiling=3.0)}))
    assert memory.read() == Figures(2.0, {"default": Way(step=1.0, compiling=3.0)})
    assert json.loads(memory.file.read_text())["kind"] == {"network": "unet"}
    assert [file.name for file in memory.file.parent.iterdir()] == [memory.file.name]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    memory = Memory({}, tmp_path / "file")
    memory.write(Figures(1.0))
    assert memory.read() == Figures()


def test_kinds_are_told_apart_by_what_decides_how_quick_a_step_is() -> None:
    base = make_experiment("unet", guide=GUIDE)
    others = [
        make_experiment("nnwnet", guide=GUIDE), make_experiment("unet"), make_experiment("unet", guide=GUIDE, size=64),
        make_experiment("unet", guide={**GUIDE, "gate": "input"}), make_experiment("unet", guide=GUIDE, precision="bf16"),
    ]  # fmt: skip

    def kind(experiment: Any, batch: int = 4) -> str:
        return json.dumps(kind_of(experiment, CPU, batch=batch, channels_last=True, workers=1), sort_keys=True)

    kinds = [kind(base), kind(base, 3), *map(kind, others)]
    assert len(set(kinds)) == len(kinds)
    assert kind(base) == kind(make_experiment("unet", guide=GUIDE, lr=0.1, epochs=9, seed=3))


def test_ways() -> None:
    gpu, net = torch.device("cuda"), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert ways_for(net, CPU, 1) == ()
    assert ways_for(net, gpu, 1) == ("cuda-graphs", "default")
    assert ways_for(net, gpu, 2) == ("default",)
    assert ways_for(nn.SyncBatchNorm.convert_sync_batchnorm(net), gpu, 1) == ()


def test_a_batch_in_parts_gets_no_graphs_though_they_were_asked_for(data: SearchData, tmp_path: Path) -> None:
    """The graph of the second part would write over the gradients of the first."""
    for how, parts, way in (("cuda-graphs", 1, "cuda-graphs"), ("cuda-graphs", 2, "default"), ("none", 2, "none")):
        run = TrainingRun(make_experiment("unet", compile=how), data, Listener(tmp_path / f"{how} {parts}"), micro_batches=parts)
        assert run.compiled.way == way
        run.close()


def test_unchanged() -> None:
    net, x = nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    net(x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(1)
    with unchanged(net, CPU):
        net(2 * x)
        torch.rand(3)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


RANK = """
import sys
from pathlib import Path
import torch
from torch import distributed, nn
from guidino_tune.training.compile_choice import Chooser, Memory
from guidino_tune.training.compiling import Compiled
from guidino_tune.training.ranks import Ranks

rank, folder, device = int(sys.argv[1]), Path(sys.argv[2]), torch.device("cpu")
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
for fails in (False, True):
    compiled, now = Compiled(nn.Conv2d(3, 4, 3), "auto", 2), [0.0]

    def step():
        on = compiled.way != "none" and not compiled._paused
        if on and fails and rank == 1:
            raise RuntimeError("no compiler here")
        # What rank 1 measures says the contrary.
        now[0] += (0.25 if on else 1.0) if rank == 0 else (9.0 if on else 0.001)

    memory = Memory({"fails": fails}, folder / f"{rank}")
    chooser = Chooser(compiled, ("default",), memory, device=device, ranks=Ranks(2), clock=lambda: now[0])
    for _ in range(12):
        with chooser.around(2, 10000, step):
            step()
    way = chooser.figures.ways["default"]
    print(compiled.way, chooser.figures.eager, way.step, way.error)
"""


def test_workers_decide_alike(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", RANK, str(rank), str(tmp_path)] for rank in (0, 1)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    answers = [worker.communicate(timeout=120) for worker in workers]
    assert [answer[0].splitlines() for answer in answers] == [["default 1.0 0.25 ", "none 1.0 None no compiler here"]] * 2, answers


def test_the_figures_are_told_with_the_epoch(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(epochs=1), data, Listener(tmp_path / "run"))
    run.chooser = Chooser(run.compiled, (), Memory({}, tmp_path), device=CPU)
    run.chooser._news = {"eager_step_seconds": 1.0}
    run.run()
    assert run.history[0].metrics["eager_step_seconds"] == 1.0
    run.close()
