"""Made-up colonoscopy with polyp-like lesions: 200 images that let anyone try everything in minutes, without a download.

The pictures are drawn from a seed: a dark lumen with folds around it, mucosa with vessels, wet highlights, a lens with black corners, and
one or two lesions that differ from their surroundings only mildly: in shape, in colour and in texture. Folds that bulge, stool and blood
are there too and are no lesions, so that no threshold on colour or brightness finds the lesions. They say nothing about real patients.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from guidino_tune.data.cases import Case, Listing
from guidino_tune.errors import UserError

VERSION = 1
"""Part of the folder's name and of the seed: raise it with any change of the drawing, so that old and new images never mix."""

SIZE = 160
"""Side of the images in pixels."""

COUNTS = {"train": 120, "validation": 40, "test": 40}
"""Images of each published part; numbered in this order."""

Field = NDArray[np.floating]

_MUCOSA = np.array([[222, 122, 84], [226, 152, 134], [196, 112, 74], [206, 156, 162], [220, 92, 68]], np.float32) / 255
_STOOL = np.array([0.74, 0.60, 0.22], np.float32)
_BLOOD = np.array([0.55, 0.08, 0.06], np.float32)


def find(root: Path) -> Listing:
    """Lists the demo images under ``root``; draws them first if they are not there yet (a few seconds).

    Several processes may call it at once: each draws into a folder of its own, and the first to finish renames it.

    Raises:
        UserError: ``root`` cannot be written, or images were removed from it.
    """
    folder = root / f"v{VERSION}"
    if not folder.is_dir():
        _draw_all(root, folder)
    cases, published = [], {}
    for part, name in _names():
        case = Case(id=name, image=folder / "images" / f"{name}.jpg", mask=folder / "masks" / f"{name}.png", group=name)
        if not (case.image.is_file() and case.mask.is_file()):
            raise UserError(
                f"{name} is not there", where=str(folder), todo="remove this folder and run the command again: it draws all anew"
            )
        cases.append(case)
        published[name] = part
    return Listing(cases=tuple(cases), published=published)


def _names() -> Iterator[tuple[str, str]]:
    parts = [part for part, count in COUNTS.items() for _ in range(count)]
    return ((part, f"demo_{number:03d}") for number, part in enumerate(parts))


def _draw_all(root: Path, folder: Path) -> None:
    temporary = root / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        for name in ("images", "masks"):
            (temporary / name).mkdir(parents=True)
        for number, (_, name) in enumerate(_names()):
            image, mask = generate(number, SIZE)
            Image.fromarray(image).save(temporary / "images" / f"{name}.jpg", quality=95)
            Image.fromarray(mask).save(temporary / "masks" / f"{name}.png")
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its images are the same
                raise
    except OSError as error:
        raise UserError(
            f"the demo images cannot be written: {error.strerror or error}",
            where=str(root),
            todo="make the folder writable, or choose another with data.root",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def generate(number: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws one image and its mask; the same number gives the same picture at any size, up to pixel noise.

    Args:
        number: Which picture, from 0.
        size: Side in pixels.

    Returns:
        RGB, ``(size, size, 3)``, and the mask, ``(size, size)``, 255 on lesions and 0 elsewhere.
    """
    rng = np.random.default_rng([VERSION, number])
    scene = _Scene(rng, size)
    lesions = [_add_lesion(scene)]
    if rng.random() < 0.2:
        lesions.append(_add_lesion(scene, avoid=lesions[0]))
    truth = np.maximum.reduce(lesions)
    _add_distractors(scene, truth)
    image, visible = _render(scene)
    mask = (truth > 0.5) & (visible > 0.5)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), mask.astype(np.uint8) * 255


@dataclass(slots=True, init=False)
class _Scene:
    """What is drawn: fields of ``(size, size)`` over coordinates from -1 to 1, changed by one ``_add`` after the other."""

    rng: np.random.Generator
    size: int
    x: Field
    y: Field
    lumen: tuple[float, float]
    height: Field  # of the surface towards the lens, in the unit of x and y
    light: Field  # how much of the lamp's light arrives, 0 to 1
    colour: Field  # of the surface, (size, size, 3)
    smooth: Field  # 1 where no vessels shine through

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
        self.x, self.y = (field.astype(np.float32) for field in np.meshgrid(axis, axis))
        angle, radius = rng.uniform(0, 2 * np.pi), rng.choice([rng.uniform(0.05, 0.6), rng.uniform(0.8, 1.3)], p=[0.65, 0.35])
        self.lumen = (float(radius * np.cos(angle)), float(radius * np.sin(angle)))
        px = (self.x - self.lumen[0]) * rng.uniform(0.8, 1.25) + 0.16 * self.noise(2.5)
        py = (self.y - self.lumen[1]) + 0.16 * self.noise(2.5)
        r = np.hypot(px, py)
        # Rings around the lumen, as a colon has them: each rises slowly towards the lens and falls off sharply behind.
        turns = np.log(r + 0.12) * rng.uniform(1.1, 2.2) + 0.5 * self.noise(2) + 0.25 * np.cos(3 * np.arctan2(py, px) + rng.uniform(0, 6))
        phase = np.mod(turns + rng.uniform(), 1)
        ring = np.where(phase < 0.82, phase / 0.82, (1 - phase) / 0.18) ** 1.5
        strength = np.clip(0.55 + 0.7 * self.noise(2), 0, 1)
        self.height = (0.07 * ring * strength * np.clip(r, 0.2, 1) + 0.05 * self.noise(3) + 0.012 * self.noise(9)).astype(np.float32)
        self.height = gaussian_filter(self.height, 0.008 * size)
        self.light = (r / (r + rng.uniform(0.12, 0.35))) ** rng.uniform(1.2, 2.2) * (0.62 + 0.38 * ring * strength)
        self.light *= np.clip(1.0 + 0.25 * self.noise(1.5), 0.5, 1.3)
        mix = rng.dirichlet(np.full(len(_MUCOSA), 0.5)).astype(np.float32)
        tint = (mix @ _MUCOSA)[None, None] * rng.uniform(0.92, 1.08, 3).astype(np.float32)
        self.colour = tint * (1 + 0.10 * self.noise(3)[..., None] * np.array([0.6, 1.0, 1.0], np.float32))
        self.smooth = np.zeros_like(self.x)

    def noise(self, frequency: float) -> Field:
        """Smooth noise with mean 0, standard deviation about 1 and about ``frequency`` bumps from edge to edge."""
        cells = int(np.ceil(frequency)) + 3
        grid = self.rng.standard_normal((cells, cells)).astype(np.float32)
        shift = self.rng.uniform(0, 1, 2)
        box = (1 + shift[0], 1 + shift[1], 1 + shift[0] + frequency, 1 + shift[1] + frequency)
        field = Image.fromarray(grid).resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        return np.asarray(field, np.float32) * 1.35


def _blob(scene: _Scene, cx: float, cy: float, radius: float, *, aspect: float, rough: float, bend: float = 0.0) -> Field:
    """Distance from the centre in units of an irregular outline: 0 in the centre, 1 on the outline."""
    rng = scene.rng
    turn = rng.uniform(0, np.pi)
    dx, dy = scene.x - cx, scene.y - cy
    u, v = (dx * np.cos(turn) + dy * np.sin(turn)) / np.sqrt(aspect), (-dx * np.sin(turn) + dy * np.cos(turn)) * np.sqrt(aspect)
    v = v + bend * u**2 / radius
    angle = np.arctan2(v, u)
    outline = np.ones_like(angle)
    for k in range(2, 7):
        outline += rough / k * rng.standard_normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    distance: Field = np.hypot(u, v) / (radius * np.clip(outline, 0.5, 1.6))
    return distance


def _step(distance: Field, width: float) -> Field:
    """1 inside the outline and 0 outside, with a soft edge of about ``width``."""
    member: Field = 1 / (1 + np.exp(np.clip((distance - 1) / (0.25 * width), -40, 40)))
    return member


def _place(scene: _Scene, radius: float, avoid: Field | None) -> tuple[float, float]:
    """A point in view, away from the lumen and from ``avoid`` if such a point is found in a few tries."""
    x = y = 0.0
    for _ in range(20):
        x, y = scene.rng.uniform(-0.68, 0.68, 2)
        column, row = (int((value + 1) / 2 * scene.size) for value in (x, y))
        free = avoid is None or avoid[row, column] < 0.02
        if free and np.hypot(x - scene.lumen[0], y - scene.lumen[1]) > radius + 0.1 and np.hypot(x, y) < 0.85:
            break
    return float(x), float(y)


def _add_lesion(scene: _Scene, avoid: Field | None = None) -> Field:
    """Adds a lesion and returns its membership, 0 to 1, which is 0.5 on the outline."""
    rng = scene.rng
    radius = rng.uniform(0.17, 0.30) if avoid is not None or rng.random() < 0.55 else rng.uniform(0.30, 0.52)
    cx, cy = _place(scene, radius, avoid)
    distance = _blob(scene, cx, cy, radius, aspect=rng.uniform(1, 1.7), rough=0.14)
    member = _step(distance, rng.uniform(0.2, 0.5))
    dome = np.clip(1.1 - distance**2, 0, None) ** rng.uniform(0.9, 1.4)
    texture = scene.noise(rng.uniform(24, 36)) + 0.7 * scene.noise(rng.uniform(12, 18))
    scene.height = scene.height * (1 - 0.8 * member) + radius * rng.uniform(0.18, 0.42) * dome + 0.0016 * texture * member
    # A polyp stands towards the lens: it is lit better than the wall, and throws a soft shadow on it.
    level = float((scene.light * member).sum() / member.sum())
    lit = np.clip(max(level, 0.5) * (0.95 + 0.15 * dome), 0, 1.1)
    scene.light = scene.light * (1 - 0.85 * member) + lit * 0.85 * member
    side = rng.uniform(0, 2 * np.pi)
    shifted = np.roll(member, (round(0.05 * scene.size * np.sin(side)), round(0.05 * scene.size * np.cos(side))), (0, 1))
    scene.light *= 1 - rng.uniform(0.12, 0.3) * gaussian_filter(shifted, 0.025 * scene.size) * (1 - member)
    scene.light *= 1 - rng.uniform(0.0, 0.2) * np.exp(-(((distance - 1) / 0.12) ** 2))
    redness = rng.choice([-1, 1]) * rng.uniform(0.03, 0.12)
    shift = np.array([0.2 * redness, -redness, -0.9 * redness], np.float32) + rng.uniform(-0.02, 0.02, 3).astype(np.float32)
    scene.colour = scene.colour * (1 + member[..., None] * (shift + 0.035 * texture[..., None]))
    scene.smooth = np.maximum(scene.smooth, member)
    return member


def _add_distractors(scene: _Scene, truth: Field) -> None:
    """Adds what may be mistaken for a lesion: bulging folds, stool and blood; never over a lesion's centre."""
    rng = scene.rng
    away = 1 - np.clip(gaussian_filter(truth, 0.02 * scene.size) * 1.4, 0, 1)
    for _ in range(rng.integers(1, 4)):  # folds: as high and as bright as a lesion, but long, and of the wall's own colour and texture
        radius, bend = rng.uniform(0.2, 0.34), rng.uniform(-1, 1)
        distance = _blob(scene, *_place(scene, radius, truth), radius, aspect=rng.uniform(2.5, 4.5), rough=0.15, bend=bend)
        scene.height += radius * rng.uniform(0.1, 0.22) * np.exp(-2 * distance**2) * away
        scene.light *= 1 + rng.uniform(0.0, 0.25) * np.exp(-2 * distance**2) * away
    for _ in range(rng.integers(0, 3)):  # redder or paler patches of flat wall, with the colours of lesions
        radius = rng.uniform(0.12, 0.3)
        member = _step(_blob(scene, *_place(scene, radius, truth), radius, aspect=rng.uniform(1, 2), rough=0.3), 0.8) * away
        redness = rng.choice([-1, 1]) * rng.uniform(0.05, 0.14)
        scene.colour = scene.colour * (1 + member[..., None] * np.array([0.2 * redness, -redness, -0.9 * redness], np.float32))
    for paint, chance in ((_STOOL, 0.35), (_BLOOD, 0.2)):
        if rng.random() < chance:
            cx, cy = _place(scene, 0.2, truth)
            for _ in range(rng.integers(1, 6)):
                radius = rng.uniform(0.025, 0.09)
                x, y = cx + rng.uniform(-0.2, 0.2), cy + rng.uniform(-0.2, 0.2)
                distance = _blob(scene, x, y, radius, aspect=rng.uniform(1, 2), rough=0.35)
                member = (_step(distance, 0.5) * away * rng.uniform(0.5, 0.9))[..., None]
                scene.colour = scene.colour * (1 - member) + paint * member
                scene.height += 0.01 * member[..., 0] * (paint is _STOOL)


def _render(scene: _Scene) -> tuple[Field, Field]:
    """The picture, ``(size, size, 3)`` from 0 to 1, and which pixels the lens shows, 0 to 1."""
    rng, size = scene.rng, scene.size
    # Vessels follow the lines on which smooth noise is zero; a second, slow noise lets them fade in and out.
    vessels = np.zeros_like(scene.x)
    for frequency, width in ((3.5, 0.07), (6.5, 0.09), (6.5, 0.09)):
        vessels += np.exp(-((scene.noise(frequency) / width) ** 2)) * np.clip(0.2 + scene.noise(2.5), 0, 1)
    vessels = np.clip(vessels, 0, 1) * (1 - 0.85 * scene.smooth) * rng.uniform(0.1, 0.45)
    surface = scene.colour * (1 - vessels[..., None] * np.array([0.30, 0.55, 0.45], np.float32))
    # Lamp and lens are in one place: what faces them is bright, slopes are darker.
    gy, gx = np.gradient(scene.height, 2 / size)
    facing = 1 / np.sqrt(1 + 1.6 * (gx**2 + gy**2))
    tilt = 1 - np.clip(rng.uniform(-0.35, 0.35) * gx + rng.uniform(-0.35, 0.35) * gy, -0.3, 0.3)
    shade = scene.light * facing**1.5 * tilt
    shade *= rng.uniform(0.85, 1.15) / np.percentile(shade, 90)  # the camera sets its exposure by the picture
    image = surface * shade[..., None]
    image = image + 0.12 * np.clip(shade[..., None], 0, 1.3) ** 4  # near the lens the wall is washed out
    # Wet spots: where the finely rippled surface mirrors the lamp.
    wet_x, wet_y = gx + 0.3 * scene.noise(26) + rng.normal(0, 0.1), gy + 0.3 * scene.noise(26) + rng.normal(0, 0.1)
    mirror = np.exp(-(wet_x**2 + wet_y**2) / rng.uniform(0.004, 0.016)) * np.clip(scene.noise(4) - 0.4, 0, 1) * (shade > 0.4)
    glare = gaussian_filter(np.clip(1.8 * mirror, 0, 1).astype(np.float32), 0.004 * size)
    image = image * (1 - glare[..., None]) + glare[..., None] * np.array([1.0, 0.98, 0.96], np.float32)
    # The lens: round, cut at the sides, dark towards the rim, black outside; some recorders cover a corner with a box.
    radius = np.hypot(scene.x, scene.y)
    inside = np.minimum(rng.uniform(1.08, 1.22) - radius, rng.uniform(0.94, 1.0) - np.maximum(np.abs(scene.x), np.abs(scene.y)))
    if rng.random() < 0.3:
        inside = np.minimum(inside, np.maximum(scene.x + rng.uniform(0.35, 0.55), rng.uniform(0.35, 0.6) - scene.y))
    visible = np.clip(inside / 0.02 + 0.5, 0, 1).astype(np.float32)
    image = gaussian_filter(image, (0.003 * size, 0.003 * size, 0))
    image = image * (1 - 0.3 * np.clip(radius, 0, 1.2) ** 3)[..., None]
    image = image + rng.normal(0, rng.uniform(0.006, 0.014), image.shape)
    image = image * visible[..., None] + 0.015
    return image.astype(np.float32), visible
