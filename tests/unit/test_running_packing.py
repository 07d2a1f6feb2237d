"""How many trials share a device: what is measured, what is decided, and what is remembered; without Ray's tasks."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from training_helpers import GUIDE, LORA, make_experiment, search_space

from guidino_tune.config import Experiment, Resources
from guidino_tune.config.parsing import parse
from guidino_tune.errors import UserError
from guidino_tune.running import cluster, packing, probing
from guidino_tune.running.packing import candidates, pack, shares, trials_per_gpu
from guidino_tune.running.probing import PROTOTYPES, RANK, estimate, largest_shapes, shape_of, shapes
from guidino_tune.space.space import read_space

GB = 10**9


@pytest.mark.parametrize(
    ("peaks", "memory", "cpus", "expected"),
    [
        ([10 * GB], 80 * GB, 16, 7),  # 7.2 fit into nine tenths
        ([2 * GB, 20 * GB, 5 * GB], 80 * GB, 16, 3),  # the largest decides
        ([GB], 80 * GB, 16, packing.MOST_PER_GPU),
        ([GB], 80 * GB, 3, 3),
        ([GB], 80 * GB, 0, 1),
        ([79 * GB], 80 * GB, 16, 1),  # it ran, so it fits
        ([], 80 * GB, 16, 1),  # nothing is known
    ],
)
def test_trials_per_gpu(peaks: list[int], memory: int, cpus: int, expected: int) -> None:
    assert trials_per_gpu(peaks, memory, cpus) == expected


def test_each_type_of_gpu_carries_what_its_own_memory_holds() -> None:
    cards = [packing.Device("H100 80GB", 80 * GB, 16, "H100"), packing.Device("RTX", 24 * GB, 8, "RTX-4090")]
    assert shares(cards, [10 * GB, 4 * GB], 1, beyond=math.inf) == {"H100": 7, "RTX-4090": 2}
    assert shares(cards, [10 * GB], 4, beyond=math.inf) == {"H100": 4, "RTX-4090": 2}  # by CPUs
    assert shares(cards, [30 * GB], 1, beyond=math.inf) == {"H100": 2, "RTX-4090": 1}
    # Measured on the small card, where one kind did not fit: of the large one it may take all.
    assert shares(cards, [4 * GB], 1, beyond=24 * GB) == {"H100": 1, "RTX-4090": 5}


def test_a_plan_books_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    large, small = {"CPU": 28.0, "GPU": 2.0, "accelerator_type:H100": 1.0}, {"CPU": 16.0, "GPU": 4.0, "accelerator_type:T4": 1.0}
    unknown = {"CPU": 8.0, "GPU": 1.0}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in (large, small, unknown)])
    plan = cluster.plan(Resources(trials_per_gpu=2), cluster.Packed({"H100": 7, "T4": 2}))
    assert plan.concurrent == 2 * 7 + 4 * 2 + 2  # two each on all seven before
    seventh = {"CPU": 2.0, "GPU": 0.1428, "accelerator_type:H100": 0.001}
    assert plan.worker_on(large).booked == seventh
    assert plan.worker_on(small).booked == {"CPU": 2.0, "GPU": 0.5, "accelerator_type:T4": 0.001}
    assert plan.worker_on(unknown).booked == plan.booked == {"CPU": 2.0, "GPU": 0.5}
    taken = Counter[cluster.Worker]()
    for _ in range(plan.concurrent):
        taken[plan.freest([large, small, unknown], taken)] += 1
    assert {worker.accelerator: number for worker, number in taken.items()} == {"H100": 14, "T4": 8, None: 2}
    assert plan.freest([small], Counter({plan.kinds["T4"]: 99})) == plan.kinds["T4"]  # the others are avoided, or gone
    assert plan.freest([], {}) == plan.worker
    assert plan.alone.booked == {"CPU": 2.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trials_per_gpu": 2, "gpus_per_worker": 0.5}, "give one of them"),
        ({"trials_per_gpu": "auto", "gpus_per_worker": 0}, "give one of them"),
        ({"trials_per_gpu": 2, "workers": 2}, "needs workers: 1"),
        ({"gpus_per_worker": 0.5, "workers": 2}, "gpus_per_worker: 0.5 needs workers: 1; two workers of one trial cannot share a GPU"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker: 1.5 is no whole number of GPUs"),
        ({"gpus_per_worker": 2.25, "workers": 3}, "no whole number"),
        ({"trials_per_gpu": 0}, "'trials_per_gpu' = 0: a whole number from 1 to 64 is needed, or auto"),
        ({"trials_per_gpu": True}, "a whole number"),
        ({"trials_per_gpu": "all"}, "a whole number"),
    ],
)
def test_contradictions_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Resources, values, "resources")


def test_a_number_and_its_text_are_the_same() -> None:
    assert parse(Resources, {"trials_per_gpu": "3"}, "resources") == Resources(trials_per_gpu=3)
    assert Resources(trials_per_gpu="auto", workers=2).trials_per_gpu == "auto"


def nodes(*sizes: tuple[int, int], memory: int = 16 * GB) -> list[dict[str, Any]]:
    return [
        {"Alive": True, "NodeID": str(i), "Resources": {"CPU": float(c), "memory": memory, **({"GPU": float(g)} if g else {})}}
        for i, (c, g) in enumerate(sizes)
    ]


@pytest.mark.parametrize("sharing", range(1, 65))
def test_a_gpu_carries_exactly_its_trials(sharing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: nodes((64 * 4, 4)))
    plan = cluster.plan(Resources(trials_per_gpu=sharing))
    assert plan.concurrent == 4 * sharing
    assert plan.cpus == 64 // sharing
    assert plan.executor == "actor"  # one process for trial after trial: its CUDA context stays
    booked = round(plan.gpus * 10_000)  # as Ray rounds
    assert sharing * booked <= 10_000 < (sharing + 1) * booked


def test_a_plan_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: nodes((16, 2)))
    assert cluster.plan(Resources(trials_per_gpu="auto")).gpus == 1.0  # where nothing was measured, as in a retraining
    assert cluster.plan(Resources(gpus_per_worker=0.6)).concurrent == 2  # two fifths of two GPUs carry no third one
    assert cluster.plan(Resources(gpus_per_worker=2)).concurrent == 1
    monkeypatch.setattr(ray, "nodes", lambda: nodes((16, 0)))
    assert cluster.plan(Resources(trials_per_gpu="auto")).gpus == 0.0
    for named in (Resources(trials_per_gpu=4), Resources(gpus_per_worker=1)):  # GPUs that a person named are not replaced by CPUs
        with pytest.raises(cluster.NoRoom):
            cluster.plan(named)


def test_shapes_differ_in_what_takes_memory_only() -> None:
    base = make_experiment(guide=GUIDE)
    assert shape_of(make_experiment(guide=GUIDE, lr=0.5, seed=3), 1) == shape_of(base, 1)
    wider = Experiment.from_dict({**base.to_dict(), "segmenter": {"kind": "unet", "base_width": 4}})
    many = [base, make_experiment(), wider, make_experiment(guide=LORA), make_experiment(guide=GUIDE, batch_size=9)]
    many += [make_experiment(guide=GUIDE, size=64), make_experiment(guide=GUIDE, precision="bf16"), make_experiment("nnwnet", guide=GUIDE)]
    many += [
        make_experiment(guide=GUIDE, compile="default"),
        make_experiment(guide={**GUIDE, "gate": "input"}),
        make_experiment(guide=GUIDE, channels_last=False),
    ]
    assert len(shapes(many, 1)) == len(many)
    assert shape_of(make_experiment(batch_size=6), 2) == shape_of(make_experiment(batch_size=3), 1)


def test_the_largest_rank_and_tokenbook_stand_for_the_others() -> None:
    guides = [{**GUIDE, "lora": {"rank": rank}, "tokenbook": {"num_prototypes": n}} for rank, n in ((0, 4), (2, 64), (8, 4), (4, 16))]
    found = [shape_of(e, 1) for e in shapes([make_experiment(guide=g) for g in guides], 1)]
    assert [(s.get(RANK, 0), s[PROTOTYPES]) for s in found] == [(0, 4), (8, 64)]


def test_candidates_reach_the_upper_ends_together() -> None:
    ranges = {
        "training.batch_size": {"type": "int", "low": 1, "high": 1000},
        "data.image_size": {"type": "int", "low": 32, "high": 1024, "step": 32},
        "guide.lora.rank": {"choices": [0, 2]},
    }
    found = candidates(search_space(space=ranges, first_trials=[]))
    assert {e.guide.lora.rank for e in found if (e.training.batch_size, e.data.image_size) == (1000, 1024)} == {0, 2}  # type: ignore[union-attr]


def test_the_largest_of_many_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST_PROBES", 2)
    tall = make_experiment("unet", guide=LORA, size=64, batch_size=8)
    many = [
        make_experiment("unet"),
        make_experiment("unet", guide=GUIDE),
        make_experiment("unet", guide=GUIDE, batch_size=6),
        make_experiment("unet", guide=LORA),
        tall,
    ]
    chosen = largest_shapes(many, 1)
    assert chosen == [tall, many[2]]
    # Two gates of the same network are one family: the second place goes to another network.
    gates = [make_experiment("unet", guide={**LORA, "gate": gate}, size=64, batch_size=8) for gate in ("input", "skips", "bottleneck")]
    assert len({e.gate for e in largest_shapes([*gates, many[2]], 1)} & {"input", "skips", "bottleneck"}) == 2
    assert many[2] in largest_shapes([*gates, many[2]], 1)


def test_the_estimate_sees_adapters_and_batch() -> None:
    plain, frozen, lora = (make_experiment(guide=g, size=64, batch_size=4) for g in (None, GUIDE, LORA))
    assert estimate(frozen) > estimate(plain)
    # The backbone's activations are kept for its adapters.
    assert estimate(lora) - estimate(plain) > 2 * (estimate(frozen) - estimate(plain))
    assert estimate(frozen, workers=2) < estimate(frozen)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()])
def test_out_of_memory_is_a_result(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise error

    monkeypatch.setattr(probing, "_two_steps", fail)
    assert probing.probe(make_experiment().to_dict(), 1, 1, "cpu") is None


def test_another_failure_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(probing, "_two_steps", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        probing.probe(make_experiment().to_dict(), 1, 1, "cpu")


@pytest.mark.parametrize("kind", ["unet", "nnunet", "nnwnet", "segguidino"])
def test_a_probe_trains(kind: str) -> None:
    experiment = make_experiment(kind, guide=LORA, size=64, batch_size=2)
    trained = probing._two_steps(experiment, 1, torch.device("cpu"))
    assert 0 < trained < estimate(experiment)


class Measured:
    """Stands for Ray's tasks: peaks by image size, and what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, peaks: dict[int, int | Exception | None], *sizes: tuple[int, int]) -> None:
        import ray

        self.asked: list[int] = []

        def measure(experiment: Experiment, device: packing.Device, resources: Resources) -> int | None:
            self.asked.append(experiment.data.image_size)
            peak = peaks[experiment.data.image_size]
            if isinstance(peak, Exception):
                raise peak
            return peak

        monkeypatch.setattr(packing, "_measured", measure)
        self.cards, self.free, self.booked = [packing.Device("H", 80 * GB, 16, "H100")], {"H100"}, list[str]()
        monkeypatch.setattr(packing, "_gpus", lambda found: self.cards)
        monkeypatch.setattr(packing, "_booked", self.book)
        monkeypatch.setattr(packing, "_give_back", lambda group: self.booked.remove(group))
        monkeypatch.setattr(ray, "nodes", lambda: nodes(*sizes))

    def book(self, device: packing.Device, resources: Resources, seconds: float) -> str | None:
        if device.kind not in self.free:
            return None
        self.booked.append(device.kind)
        return device.kind


def packed(folder: Path, sizes: list[int], **resources: Any) -> tuple[Resources, str]:
    (found, _), text = packed_whole(folder, sizes, **resources)
    return found, text


def packed_whole(folder: Path, sizes: list[int], **resources: Any) -> tuple[tuple[Resources, cluster.Packed], str]:
    values = {
        "experiment": make_experiment().to_dict(),
        "space": {"data.image_size": {"choices": sizes}},
        "resources": {"trials_per_gpu": "auto", **resources},
    }
    space = read_space(values, source="small.yaml")
    text = io.StringIO()
    return pack(space, folder, Console(file=text, width=300)), text.getvalue()


def test_a_gpu_is_packed_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Measured(monkeypatch, {32: 5 * GB, 64: 20 * GB, 96: None}, (16, 1))
    result, text = packed(tmp_path, [32, 64, 96])
    assert result == Resources(trials_per_gpu=3)
    assert "20.00 of 80.0 GB; 3 trial(s) per GPU" in text
    assert "96 x 96: does not fit" in text
    assert sorted(tasks.asked) == [32, 64, 96]
    stored = json.loads((tmp_path / "memory.json").read_text())["peaks"]
    assert {p["shape"]["data.image_size"]: p["bytes"] for p in stored.values()} == {32: 5 * GB, 64: 20 * GB, 96: None}
    assert packed(tmp_path, [32, 64, 96]) == (result, text)  # the notes too
    assert len(tasks.asked) == 3
    assert packed(tmp_path, [32, 64, 96], cpus_per_worker=8)[0].trials_per_gpu == 2  # by CPUs
    (tmp_path / "memory.json").write_text("{")
    assert packed(tmp_path, [32])[0].trials_per_gpu == 8
    assert tasks.asked[3:] == [32]


def test_what_could_not_be_measured_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tasks = Measured(monkeypatch, {32: 5 * GB, 64: ray.exceptions.RayError("first line\nno weights")}, (16, 1))
    for _ in range(2):
        result, text = packed(tmp_path, [32, 64])
        assert result.trials_per_gpu == 8
        assert "64 x 64: could not be measured (no weights)" in text
    assert sorted(tasks.asked) == [32, 64, 64]


def test_the_memory_of_nodes_bounds_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Measured(monkeypatch, {32: 3 * GB}, (64, 0), (64, 0))

    def fits(**asked: Any) -> int:
        return cluster.plan(*packed_whole(tmp_path, [32], cpus_per_worker=1, **asked)[0]).concurrent

    assert fits() == 10  # 5 on each of two nodes
    assert (fits(concurrent=5), fits(concurrent=50)) == (5, 10)
    assert fits(executor="train") == 8  # Ray Train's own processes
    assert fits(workers=2) == 4


def test_gpus_of_two_sizes_are_packed_by_their_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All carried as many as the smallest: of 80 GB, 24 were used."""
    tasks = Measured(monkeypatch, {32: 5 * GB, 64: 10 * GB}, (16, 1), (16, 2))
    tasks.cards = [packing.Device("H100", 80 * GB, 16, "H100"), packing.Device("L4", 24 * GB, 8, "L4")]
    (resources, found), text = packed_whole(tmp_path, [32, 64])
    assert (resources.trials_per_gpu, found.shares) == (2, {"H100": 7, "L4": 2})
    assert "7 on H100, 2 on L4 trial(s) per GPU" in text
    assert not tasks.booked  # given back
    # One that is busy is not waited for; what was measured once is not measured again, on whichever card.
    tasks.free = set()
    assert packed_whole(tmp_path, [32, 64]) == ((resources, found), text)


def test_a_shared_cluster_needs_no_free_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe waited until all GPUs of each node were free, which in a cluster of many users they never are."""
    tasks = Measured(monkeypatch, {32: 5 * GB, 64: None}, (16, 1), (16, 2))
    tasks.cards, tasks.free = [packing.Device("H100", 80 * GB, 16, "H100"), packing.Device("L4", 24 * GB, 8, "L4")], set()
    (resources, found), text = packed_whole(tmp_path, [32, 64])
    assert (resources.trials_per_gpu, found, tasks.asked) == (1, cluster.Packed(), [])
    assert "no GPU is free to measure on, so trials share none in this run" in text
    tasks.free = {"L4"}
    (resources, found), text = packed_whole(tmp_path, [32, 64])
    assert (resources.trials_per_gpu, found.shares) == (1, {"H100": 1, "L4": 4})  # what the L4 did not hold may take all of an H100
    tasks.cards = []
    (resources, found), text = packed_whole(tmp_path, [32, 64])
    assert (resources.trials_per_gpu, found) == (1, cluster.Packed())
    assert "no node tells what its GPUs are" in text


def test_a_reused_process_keeps_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Measured(monkeypatch, {32: 10 * GB}, (16, 1))
    known = packing._Known(tmp_path / "memory.json")
    kept = {"tiny": 4 * GB, "vits16": 2 * GB, "vitl16": GB}
    found = [make_experiment(), make_experiment(guide=GUIDE), make_experiment(guide=LORA)]
    device = packing.Device("H", 80 * GB, 16, "0")
    peaks = [packing._peaks([e], kept, known, device, Resources(executor="actor"))[0].popitem()[1] // GB for e in found]
    assert peaks == [16, 12, 16]  # its own and the largest other one; with adapters, or without a guide, the two largest
    frozen = packing._kept_backbones(found, Resources(executor="actor"))
    assert frozen == {"tiny": probing.backbone_bytes(found[1])}
    assert packing._kept_backbones(found, Resources(executor="train")) == {}  # Ray Train's workers start anew


def test_nothing_is_measured_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Measured(monkeypatch, {}, (16, 2))
    for resources in (Resources(), Resources(trials_per_gpu=4)):
        space = search_space(first_trials=[], resources={"trials_per_gpu": resources.trials_per_gpu})
        assert pack(space, tmp_path, Console(file=io.StringIO())) == (space.resources, cluster.Packed())
    assert packed(tmp_path, [32], workers=2)[0].trials_per_gpu == 1
    assert tasks.asked == []


def test_the_largest_of_one_description_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_measured", lambda e, device, resources: e.segmenter.base_width * GB)
    known, device = packing._Known(tmp_path / "memory.json"), packing.Device("H", 80 * GB, 16, "0")
    widths = [{**make_experiment().to_dict(), "segmenter": {"kind": "unet", "base_width": width}} for width in (8, 16, 4)]
    peaks, notes = packing._peaks([Experiment.from_dict(v) for v in widths], {}, known, device, Resources())
    assert list(peaks.values()) == [16 * GB]
    assert notes == []


def test_what_others_take_of_a_gpu_is_not_a_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU of 80 GB where somebody else had 30, each trial seemed to take 30 more, and none shared it."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU-aa, 5'; echo 'GPU-bb, 28610'")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # CUDA's first, the fastest, is not the tool's
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="bb"))
    monkeypatch.setattr(probing, "_two_steps", lambda *_: 0)
    taken = 28610 * 2**20 + 2 * GB  # with the context and 1.5 GB of torch
    for name, value in {
        "mem_get_info": (80 * GB - taken, 80 * GB),
        "memory_reserved": int(1.5 * GB),
        "max_memory_reserved": 3 * GB,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    values = make_experiment(guide=GUIDE).to_dict()
    assert probing.probe(values, 1, 1, "cuda") == 3.5 * GB
    # What others gave back between the two looks does not hide the context.
    tool.write_text("#!/bin/sh\necho 'GPU-bb, 60000'")
    assert probing.probe(values, 1, 1, "cuda") == 3 * GB + probing.CONTEXT
    tool.write_text("#!/bin/sh\nexit 9")  # nobody knows: as if all were a trial's
    assert probing.probe(values, 1, 1, "cuda") == 28610 * 2**20 + 3.5 * GB
