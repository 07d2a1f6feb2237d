"""Images that do not fit into memory: the same mask, bit by bit, without the maps of the whole image."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_load_model import models as models
from test_load_model import noisy
from training_helpers import GUIDE, make_experiment

from guidino_tune.config import Data, Experiment, Protocol
from guidino_tune.data.raw import at_most
from guidino_tune.data.reading import read_raw
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.inference import predict_image
from guidino_tune.models import GuidedSegmenter, build_model
from guidino_tune.predict import main
from guidino_tune.workflows import prediction_tiles
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.predict_folder import predict_folder
from guidino_tune.workflows.prediction_memory import Room, free_memory
from guidino_tune.workflows.prediction_tiles import on_disk, predict_tiles

SIZES = [(32, 32), (70, 90), (33, 31), (20, 75), (75, 20), (100, 32), (9, 11), (129, 61)]
"""Around a window of 32 pixels."""


def network(guided: bool, **data: Any) -> tuple[GuidedSegmenter, Data]:
    torch.manual_seed(0)
    values = make_experiment("unet", guide=GUIDE if guided else None).to_dict()
    values["data"] |= data
    experiment = Experiment.from_dict(values)
    return noisy(build_model(experiment), experiment.data.channels, 0).eval(), experiment.data


KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "guided": (True, {}),
    "plain": (False, {}),
    "classes": (True, {"num_classes": 3}),
    "padded": (True, {"resize": "pad"}),
    "z-score": (False, {"normalisation": "zscore"}),
    "one channel": (False, {"channels": 1}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inference", ["resized", "sliding"])
def test_the_mask_has_the_bits_of_the_whole_way(kind: str, inference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guided, data = KINDS[kind]
    monkeypatch.setattr(prediction_tiles, "ROWS", 7)
    model, found = network(guided, **data)
    for (height, width), mirror, overlap in itertools.product(SIZES, (False, True), (0.5, 0.0)):
        if inference == "resized" and overlap == 0:
            continue
        image = np.random.default_rng(0).integers(0, 256, (height, width, found.channels), dtype=np.uint8)
        protocol = Protocol(inference=inference, mirror=mirror, overlap=overlap)
        whole = predict_image(model, image, found, protocol)
        tiled = predict_tiles(model, image, found, protocol, probabilities=True)
        assert whole.mask.mean() > 0
        assert np.array_equal(tiled.mask, whole.mask)
        assert np.abs(tiled.probabilities - whole.probabilities).max() < 1e-6
        assert (tiled.guide is None) == (whole.guide is None)
        if inference == "sliding" and whole.guide is not None:
            assert np.array_equal(tiled.guide, whole.guide)  # type: ignore[arg-type]
        assert np.array_equal(predict_tiles(model, image, found, protocol).mask, whole.mask)


def test_sixteen_bits_thresholds_and_the_largest_component() -> None:
    model, data = network(False)
    image = np.random.default_rng(1).integers(0, 65536, (75, 80, 3), dtype=np.uint16)
    protocol = Protocol(inference="sliding", largest_component="always")
    for threshold in (0.3, 0.5, 0.7):
        whole, tiled = (way(model, image, data, protocol, threshold=threshold) for way in (predict_image, predict_tiles))
        assert np.array_equal(tiled.mask, whole.mask)
        assert len(tiled.probabilities) == 0


def test_a_band_is_as_high_as_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held grows with the width of the image, and not with its height."""
    model, data = network(False)
    highest: list[int] = []
    zeros = torch.zeros

    def noting(*shape: Any, **options: Any) -> torch.Tensor:
        highest.append(int(np.prod(shape)))
        return zeros(*shape, **options)

    monkeypatch.setattr(prediction_tiles.torch, "zeros", noting)
    predict_tiles(model, np.zeros((500, 64, 3), np.uint8), data, Protocol(inference="sliding"))
    assert max(highest) == 32 * 64


def test_a_coarse_guide_is_every_so_many_pixels_of_the_fine_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(True)
    image = generate(0, 100)[0]
    protocol = Protocol(inference="sliding")
    whole = predict_image(model, image, data, protocol)
    monkeypatch.setattr(prediction_tiles, "COARSE", 40)
    tiled = predict_tiles(model, image, data, protocol)
    assert whole.guide is not None
    assert np.array_equal(tiled.guide, whole.guide[::3, ::3])  # type: ignore[arg-type]


def test_numbers_that_overflow_are_refused_as_before() -> None:
    model, data = network(False)
    with torch.no_grad():
        for weights in model.segmenter.parameters():
            weights *= 1e30
    for inference in ("resized", "sliding"):
        with pytest.raises(UserError, match="NaN or infinity"):
            predict_tiles(model, generate(0, 70)[0], data, Protocol(inference=inference))


def test_maps_in_a_file_leave_nothing_behind(tmp_path: Path) -> None:
    maps = on_disk((2, 30, 40), tmp_path)
    maps[:] = 3
    assert (maps.dtype, float(maps.sum()), list(tmp_path.iterdir())) == (np.float32, 7200.0, [])
    with pytest.raises(OSError, match=r"No space|too large") as told:
        on_disk((2**20, 2**20, 2**10), tmp_path)
    assert told.value.filename == str(tmp_path)  # whose disk it is


# ------------------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("inference", ["resized", "sliding"])
def test_the_command_tiles_what_does_not_fit(
    inference: str, workers: int, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number, size in enumerate((40, 150, 41)):
        Image.fromarray(generate(number, size)[0]).save(tmp_path / "in" / f"{number}.png")
    model = load_model(models(), protocol={"inference": inference})
    options = {"overlays": True, "extras": {"csv": tmp_path / "t.csv", "polygons": tmp_path / "o.json", "probabilities": True}}
    assert predict_folder(model, tmp_path / "in", tmp_path / "out", **options) == (3, [])
    expected, table = _masks(tmp_path / "out"), (tmp_path / "t.csv").read_text()
    tiled: list[int] = []
    real = predict_tiles
    monkeypatch.setattr(
        "guidino_tune.workflows.predict.predict_tiles", lambda net, pixels, *a, **k: tiled.append(len(pixels)) or real(net, pixels, *a, **k)
    )  # fmt: skip
    memory = 1_500_000 if workers == 2 else 900_000
    assert predict_folder(model, tmp_path / "in", tmp_path / "out", memory=memory, workers=workers, **options) == (3, [])
    assert tiled == [150]
    assert all(np.array_equal(one, other) for one, other in zip(_masks(tmp_path / "out"), expected, strict=True))
    assert (tmp_path / "t.csv").read_text() == table


def _masks(out: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted((out / "masks").iterdir())]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_what_does_not_fit_in_any_way_is_left_out_with_one_message(
    workers: str, models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("a", 20), ("b", 400), ("c", 21)):
        Image.fromarray(generate(0, size)[0]).save(tmp_path / "in" / f"{name}.png")
    words = [str(models()), str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--memory", "1M", "--workers", workers]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"left out: {tmp_path / 'in' / 'b.png'}: is too large: 400x400 pixels, and ")
    assert told.endswith(" is the most that fit into the 1 MiB of memory that predict may take for images (--memory)\n")
    assert sorted(file.name for file in (tmp_path / "out" / "masks").iterdir()) == ["a.png", "c.png"]


def test_an_image_beyond_the_limit_of_training_is_read_where_memory_allows(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound takes the place of the fixed one, in both directions."""
    monkeypatch.setattr("guidino_tune.data.raw.MAX_PIXELS", 1000)
    Image.fromarray(generate(0, 60)[0]).save(tmp_path / "a.png")
    model = load_model(models())
    with pytest.raises(UserError, match="1,000 is the most"):
        model.predict(tmp_path / "a.png")
    assert predict_folder(model, tmp_path / "a.png", tmp_path / "out", overlays=False) == (1, [])
    with at_most(60 * 60 - 1, " in here") as limit, pytest.raises(UserError, match="3,599 is the most in here"):
        read_raw(tmp_path / "a.png")
    assert limit.exceeded
    with at_most(60 * 60) as limit:
        read_raw(tmp_path / "a.png")
    assert not limit.exceeded


def test_small_images_are_predicted_while_the_machine_is_busy(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidino_tune.workflows.predict_folder.free_memory", lambda: 0)
    Image.fromarray(generate(0, 60)[0]).save(tmp_path / "a.png")
    assert predict_folder(load_model(models()), tmp_path / "a.png", tmp_path / "out") == (1, [])


def test_an_overlay_of_a_very_large_image_is_drawn_from_some_of_its_pixels(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guidino_tune.workflows.predict_folder.MAX_PIXELS", 1000)
    monkeypatch.setattr("guidino_tune.workflows.predict_folder.LOOKED_AT", 40)
    Image.fromarray(generate(0, 90)[0]).save(tmp_path / "a.png")
    assert predict_folder(load_model(models(guided=True)), tmp_path / "a.png", tmp_path / "out") == (1, [])
    assert Image.open(tmp_path / "out" / "overlays" / "a.png").size[1] > 200


# -------------------------------------------------------------------------------------------------------------------- the bound


def test_costs_grow_as_they_should() -> None:
    room = Room(2**30, 4)
    assert room.beside < room.alone < 2**30
    assert Room(2**30, 1).beside == Room(2**30, 1).alone > room.alone
    assert dataclasses.replace(room, depth=2).alone < room.alone
    assert dataclasses.replace(room, objects=True).alone < room.alone
    assert dataclasses.replace(room, classes=9).beside < room.beside
    for other in (room, dataclasses.replace(room, channels=1), dataclasses.replace(room, classes=30), dataclasses.replace(room, workers=1)):
        most = next(pixels for pixels in range(2**24, 2**30, 2**17) if not other.holds(pixels)) if other.holds(2**24) else 0
        assert most < other.alone  # tiles are for more than what fits whole


PEAK = """
import dataclasses, sys
from types import SimpleNamespace
import numpy as np, torch
from training_helpers import make_experiment
from guidino_tune.config import Protocol
from guidino_tune.inference import predict_image

class Network(torch.nn.Module):
    def forward(self, images):
        return SimpleNamespace(logits=(images.mean(1, keepdim=True).repeat(1, 21, 1, 1),), guide=images[:, :1, ::4, ::4])

def peak(side):
    predict_image(Network().eval(), np.zeros((side, side, 3), np.uint8), data, Protocol(inference=sys.argv[1]), device="cpu")
    status = open("/proc/self/status").read()  # getrusage begins with what the process that started this one had
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

data = dataclasses.replace(make_experiment("unet", guide=None).data, num_classes=20)
torch.set_num_threads(1)
small = peak(80)
print((peak(1000) - small) / 1000**2)
"""


@pytest.mark.parametrize("inference", ["resized", "sliding"])
def test_many_classes_take_no_more_than_is_reckoned(inference: str) -> None:
    """As the system measures it, with 5 % for what is around the arrays."""
    paths = os.pathsep.join(str(Path(__file__).parents[above]) for above in (2, 0))
    words, around = [sys.executable, "-c", PEAK, inference], os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120, env=around)
    room = Room(2**40, 1, classes=20)
    reckoned = next(cost for cost in range(1, 1000) if dataclasses.replace(room, bound=cost * 1000**2).holds(1000**2))
    assert 0.7 * reckoned < float(done.stdout) < 1.05 * reckoned


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/a/b", {"a/memory.max": "900", "a/memory.current": "300", "a/memory.stat": "anon 1\ninactive_file 50"}, 650),
        ("0::/a/b", {"a/b/memory.max": "max", "a/b/memory.current": "300", "a/b/memory.stat": ""}, None),
        ("0::/elsewhere", {"memory.max": "500", "memory.current": "100", "memory.stat": ""}, 400),  # in a container
        ("0::/", {"memory.max": "100", "memory.current": "300", "memory.stat": ""}, 0),
        (
            "9:cpu:/x\n4:memory:/job",
            {
                "memory/job/memory.limit_in_bytes": "800",
                "memory/job/memory.usage_in_bytes": "500",
                "memory/job/memory.stat": "total_inactive_file 9",
            },
            309,
        ),
        ("", {}, None),
    ],
)  # fmt: skip
def test_free_memory_is_that_of_the_container(group: str, files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(group + "\n" if group else "")
    for name, text in files.items():
        file = tmp_path / "sys" / "fs" / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = free_memory(tmp_path)
    if expected is None:
        assert 0 < found <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        assert found == expected
