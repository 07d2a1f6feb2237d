"""What ``gpu.py`` measures, part by part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_bench import Bench, Row, rate, wait
from gpu_packing import FAMILIES, packing
from torch import nn

from guidino_tune.data.augmentation import nnunet_augmentation
from guidino_tune.data.batches import Batch
from guidino_tune.models.backbone import Backbone
from guidino_tune.training.costs import forget_peak, peak_gigabytes
from guidino_tune.training.failures import failure_kind
from guidino_tune.training.loop import TrainingRun

TIMM_EAGER, TIMM_COMPILED = 3202.0, 5530.0
"""Images a second of a ViT-S/16 at 256 pixels on an RTX 4090, as timm publishes them."""
SAME, SAME_GRADIENT, GOES_ON = 1e-3, 1e-2, 1e-2
"""Relative differences that are rounding: outputs, gradients, and losses of a run that was continued."""


def parity(bench: Bench) -> Iterator[Row]:
    """Outputs and gradients of every segmenter in float32, here and on the CPU, from the same weights and images."""
    exact = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for kind in bench.kinds:
        found: list[tuple[TrainingRun, torch.Tensor, torch.Tensor]] = []
        for device in (torch.device("cpu"), bench.device):
            run = bench.run(bench.experiment(kind, 64, precision="fp32"), f"parity-{kind}-{device.type}", device=device, store=None)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            if found:
                run.model.load_state_dict(found[0][0].model.state_dict())
            batch = bench.batch(run)
            run.model.eval()
            prediction = run.model(batch.images, run._features(batch))
            run.loss(prediction.logits, prediction.guide, batch.masks)["total"].backward()
            gradients = torch.cat([p.grad.flatten().cpu() for p in run.model.parameters() if p.grad is not None])
            found.append((run, prediction.logits[0].detach().cpu(), gradients))
        (_, ours, gradient), (_, other, again) = found
        outputs, slopes = (float((a - b).norm() / a.norm()) for a, b in ((ours, other), (gradient, again)))
        good = outputs < SAME and slopes < SAME_GRADIENT
        yield Row("parity", kind, outputs, "of the output", f"gradients {slopes:.1e}", good)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = exact


def backbone(bench: Bench) -> Iterator[Row]:
    """A frozen ViT-S/16 forward, as the encoder of tokens runs it."""
    vit = bench.run(bench.experiment("segguidino"), "backbone", store=None).model.backbone
    assert isinstance(vit, Backbone)
    large = bench.device.type == "cuda"
    images = torch.randn(256 if large else 4, 3, bench.size, bench.size, device=bench.device)
    bf16 = torch.autocast(bench.device.type, torch.bfloat16)

    @torch.no_grad()
    def forward(network: Callable[..., Any]) -> None:
        with bf16:
            network(images)

    eager = rate(lambda: forward(vit), len(images), bench.seconds)
    yield Row("backbone", "ViT-S/16 eager", eager, "img/s", f"{eager / TIMM_EAGER:.2f} of timm's on an RTX 4090")
    if large:
        begun = time.monotonic()
        compiled = torch.compile(vit)
        forward(compiled)
        wait()
        took = time.monotonic() - begun
        fast = rate(lambda: forward(compiled), len(images), bench.seconds)
        yield Row("backbone", "ViT-S/16 compiled", fast, "img/s", f"{fast / TIMM_COMPILED:.2f} of timm's; compiled in {took:.0f} s")


def epochs(bench: Bench) -> Iterator[Row]:
    """An epoch of each segmenter on shared views, and what of its time its steps alone take, on a batch that is there already."""
    for kind in bench.kinds:
        bench.close()
        run = bench.run(bench.experiment(kind), f"epochs-{kind}")
        forget_peak(bench.device)
        for _ in range(2):
            run._train()  # makes the views of both passes; finds the quickest kernels
        begun, images = time.perf_counter(), 0
        while time.perf_counter() - begun < bench.seconds or not images:
            images += run._train()[1]
        wait()
        whole = images / (time.perf_counter() - begun)
        memory, batch = peak_gigabytes(bench.device), bench.batch(run)
        steps = rate(lambda run=run, batch=batch: run.step(batch), len(batch.ids), bench.seconds)  # type: ignore[misc]
        views = run.views.epoch(0)
        stored = next(views)
        views.close()
        pinned = stored.pinned() if bench.device.type == "cuda" else stored
        copies = rate(lambda run=run, pinned=pinned: run._to_device(pinned), len(batch.ids), bench.seconds / 2)  # type: ignore[misc]
        note = f"steps alone {steps:.0f} img/s: {whole / steps:.2f}; copies alone {copies:.0f} img/s; {memory:.2f} GB"
        yield Row("epochs", kind, whole, "img/s", f"{note}{busy(run, batch)}")


def busy(run: TrainingRun, batch: Batch) -> str:
    """Which share of a step's time the GPU computes, and how many kernels it starts."""
    if run.device.type != "cuda":
        return ""
    from torch.profiler import ProfilerActivity, profile

    wait()
    begun = time.perf_counter()
    for _ in range(5):
        run.step(batch)
    wait()
    passed = time.perf_counter() - begun
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run.step(batch)
        wait()
    kernels = [event for event in found.key_averages() if event.self_device_time_total]
    seconds, count = sum(event.self_device_time_total for event in kernels) / 1e6, sum(event.count for event in kernels)
    return f"; GPU busy {min(1.0, 5 * seconds / passed):.2f} of a step, {count} kernels"


def compiling(bench: Bench) -> Iterator[Row]:
    """Steps as they are, compiled, and as CUDA graphs."""
    for kind in (kind for kind in FAMILIES if kind in bench.kinds):
        plain = 0.0
        for way in ("none", "default", *(["cuda-graphs"] if bench.device.type == "cuda" else [])):
            if bench.left < 60 and way != "none":
                yield Row("compile", f"{kind} {way}", None, note="not run: no time left")
                continue
            bench.close()
            torch._dynamo.reset()
            run = bench.run(bench.experiment(kind, compile=way), f"compile-{kind}-{way}")
            batch = bench.batch(run)
            run.module.train()
            begun = time.monotonic()
            run.step(batch)
            wait()
            took = time.monotonic() - begun
            found = rate(lambda run=run, batch=batch: run.step(batch), len(batch.ids), bench.seconds)  # type: ignore[misc]
            plain = plain or found
            yield Row("compile", f"{kind} {way}", found, "img/s", f"{found / plain:.2f} of eager; first step {took:.1f} s")


def batches(bench: Bench) -> Iterator[Row]:
    """Batches of 4 and of 16."""
    for kind in (kind for kind in FAMILIES if kind in bench.kinds):
        found = []
        for number in (4, 16):
            run = bench.run(bench.experiment(kind, batch=number), f"batches-{kind}-{number}")
            batch = bench.batch(run)
            run.module.train()
            found.append(rate(lambda run=run, batch=batch: run.step(batch), len(batch.ids), bench.seconds))  # type: ignore[misc]
        yield Row("batches", kind, found[1] / found[0], "times", f"batch 4: {found[0]:.0f}, batch 16: {found[1]:.0f} img/s")


def views(bench: Bench) -> Iterator[Row]:
    """Making views on the device, by a thread of the CPU, and reading them from the store."""
    run = bench.run(bench.experiment("unet"), "views")
    ids = run.views._table.ids[:32]
    for number in (8, 32):
        cases = [run.views._case(ids[row % len(ids)], 0) for row in range(number)]
        images, masks = (torch.stack(parts).to(bench.device) for parts in zip(*cases, strict=True))
        seeds = list(range(number))
        found = rate(lambda i=images, m=masks, s=seeds: nnunet_augmentation(i, m, s), number, bench.seconds, 1)  # type: ignore[misc]
        yield Row("views", f"made on {bench.device.type}, {number} at once", found, "img/s")
    thread = rate(lambda: run.views.views(0, ids), len(ids), bench.seconds, 1)
    yield Row("views", "made by a thread of the CPU", thread, "img/s")
    pin = bench.device.type == "cuda"
    for _ in run.views.epoch(0):
        pass

    def read() -> None:
        for batch in run.views.epoch(0, pin=pin):
            batch.to(bench.device)

    yield Row("views", "read from the store, to the device", rate(read, bench.num_images, bench.seconds, 1), "img/s")


def memory(bench: Bench) -> Iterator[Row]:
    """A trial that does not fit goes on in two parts."""
    if bench.device.type != "cuda":
        yield Row("memory", "out of memory", None, note="not run: needs CUDA")
        return
    experiment, peaks = bench.experiment("unet", batch=16), []
    for parts in (1, 2):
        run = bench.run(experiment, f"memory-{parts}", micro_batches=parts)
        batch = bench.batch(run)
        forget_peak(bench.device)
        run.step(batch)
        wait()
        peaks.append(peak_gigabytes(bench.device) * 1e9)
        del run, batch
        bench.close()
    limit = sum(peaks) / 2
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(bench.device).total_memory)
    try:
        kind = ""
        with contextlib.suppress(torch.OutOfMemoryError):
            run = bench.run(experiment, "memory-again")
            try:
                run.step(bench.batch(run))
            except torch.OutOfMemoryError as error:
                kind = failure_kind(error)
                raise
        del run
        bench.close()
        second = bench.run(experiment, "memory-parts", micro_batches=2)
        second.step(bench.batch(second))
        wait()
        note = f"whole {peaks[0] / 1e9:.2f} GB, in two parts {peaks[1] / 1e9:.2f} GB; limit {limit / 1e9:.2f} GB"
        yield Row("memory", "out of memory, then in two parts", None, note=f"{kind or 'it did fit'}; {note}", good=kind == "out-of-memory")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def collective(bench: Bench) -> Iterator[Row]:
    """A worker group of one: the backend starts, and DDP gives the gradients of the network alone."""
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    file = bench.scratch / "group"
    torch.distributed.init_process_group(backend, init_method=f"file://{file}", rank=0, world_size=1)
    try:
        run = bench.run(bench.experiment(bench.kinds[0], 64, precision="fp32"), "collective")
        batch, found = bench.batch(run), []
        run.model.eval()
        for module in (run.model, nn.parallel.DistributedDataParallel(run.model)):
            run.optimizer.zero_grad(set_to_none=True)
            prediction = module(batch.images, run._features(batch))
            run.loss(prediction.logits, prediction.guide, batch.masks)["total"].backward()
            found.append(torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]).cpu())
        difference = float((found[0] - found[1]).norm() / found[0].norm())
        yield Row("collective", f"{backend}, one rank", difference, "of the gradients", good=difference < SAME)
    finally:
        torch.distributed.destroy_process_group()


def resume(bench: Bench) -> Iterator[Row]:
    """A run that is broken off after two epochs and goes on in another one."""
    experiment = bench.experiment(bench.kinds[0], 64)
    straight = bench.run(experiment, "resume-straight", saved=range(1, 5))
    straight.run()
    broken = bench.run(experiment, "resume-broken", saved=range(1, 5))
    for _ in range(2):
        broken.run_epoch()
    state = {name: value.clone() for name, value in broken.model.trained_state().items()}
    again = bench.run(experiment, "resume-broken", saved=range(1, 5), reported=2)
    same = again.epoch == 2 and all(torch.equal(value, state[name]) for name, value in again.model.trained_state().items())
    again.run()
    losses = [run.history[-1].metrics["train_loss_total"] for run in (straight, again)]
    difference = abs(losses[0] - losses[1]) / losses[0]
    yield Row("resume", "last loss, continued / straight", difference, "of it", f"weights restored bit for bit: {same}",
              same and difference < GOES_ON)  # fmt: skip


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "parity": parity,
    "backbone": backbone,
    "epochs": epochs,
    "resume": resume,
    "memory": memory,
    "collective": collective,
    "packing": packing,
    "views": views,
    "batches": batches,
    "compile": compiling,
}
