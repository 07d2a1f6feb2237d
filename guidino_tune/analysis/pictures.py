"""Pictures of predictions: image, truth, guide mask and prediction side by side, and sheets of several of them.

NumPy and Pillow only, so that drawing needs neither a GPU process nor a tracking server.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from guidino_tune.config.data import CLASS_COLOURS as CLASSES
from guidino_tune.config.data import IGNORED, Colour

TRUTH: Colour = (0, 230, 90)
PREDICTION: Colour = (255, 45, 210)
TRUTH_BELOW: Colour = (255, 255, 255)
"""Of the truth's line below a prediction of several classes, whose own colours it would hide among."""

UNKNOWN: Colour = (150, 150, 150)
"""Of the hatching where the truth is not known."""

_PAPER: Colour = (255, 255, 255)
_INK: Colour = (32, 36, 44)

# Eight evenly spaced colours of matplotlib's "inferno"; between them the colour is interpolated.
_HEAT = np.array([(0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39), (252, 255, 164)])

_GAP = 8
_SUPERSAMPLE = 2
_MIN_GUIDE_SPAN = 0.05


def overlay(
    image: np.ndarray,
    truth: np.ndarray | None,
    guide: np.ndarray | None,
    prediction: np.ndarray,
    *,
    title: str = "",
    height: int = 288,
    names: Sequence[str] = ("foreground",),
    ignore: bool = False,
) -> Image.Image:
    """One row of panels: image | truth | guide | prediction, with captions.

    The truth is outlined in green and the prediction in magenta; the last panel shows both. The guide mask is a heat map whose colours
    run from its least to its greatest value (both are in the caption), but over at least 0.05, so that a flat guide looks flat.

    Several classes are outlined in a colour each, in both panels; the truth below the prediction is white. A line below the panels tells
    the colours of the classes that are there, with the Dice of each.

    Where the truth is ``IGNORED`` both panels are hatched in grey, nothing is outlined, and no Dice counts.

    Args:
        image: (H, W, 3), uint8.
        truth: (H, W), foreground is not 0, or labels; ``None`` leaves its panel and the Dice out.
        guide: (h, w), float, on any grid; ``None`` leaves its panel out.
        prediction: (H, W), foreground is not 0, or labels.
        title: One line above the panels.
        height: Of a panel, in pixels. Images wider than two heights are fitted into that width.
        names: Of the foreground classes; with more than one, masks are labels, from 0 to their number.
        ignore: The truth may hold ``IGNORED``.

    Raises:
        ValueError: The image is not (H, W, 3) uint8, or a mask has another size.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is (H, W, 3) uint8; got shape {image.shape}, {image.dtype}")
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask is not None and mask.shape != image.shape[:2]:
            raise ValueError(f"{name} has size {mask.shape}, the image {image.shape[:2]}")
    unknown = truth == IGNORED if ignore and truth is not None else None
    if truth is not None and unknown is not None:
        truth, prediction = np.where(unknown, 0, truth), np.where(unknown, 0, prediction)
    size = _fitted(image.shape[1], image.shape[0], height)
    photo = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    panels = [_Panel(photo, "image")]
    legend: list[tuple[Colour, str]] = []
    lines, caption = [_Outline(prediction, PREDICTION, 2.0)], "prediction"
    if len(names) > 1:
        drawn, lines, caption, legend = _classes(photo, truth, prediction, names)
        panels += [_Panel(_hatched(drawn, unknown), "ground truth")] if drawn else []
    elif truth is not None:
        outlined = _outlined(_tinted(photo, truth, TRUTH), _Outline(truth, TRUTH, 2.4))
        panels.append(_Panel(_hatched(outlined, unknown), "ground truth", _swatch(TRUTH)))
        # Wider than the prediction's line over it, so that both can be seen where they agree.
        lines.insert(0, _Outline(truth, TRUTH, 4.6))
        caption = f"prediction    Dice {_dice(prediction, truth):.3f}"
    if guide is not None:
        low, high = _limits(guide)
        panels.append(_Panel(_heat_map(photo, guide), f"guide    {low:.2f} to {high:.2f}", heat_colours(np.linspace(0, 1, 48)[None])))
    panels.append(_Panel(_hatched(_outlined(photo, *lines), unknown), caption, _swatch(PREDICTION) if len(names) == 1 else None))
    return _row(panels, title, height, legend)


def case_picture(
    image: np.ndarray, truth: np.ndarray, *, names: Sequence[str], title: str = "", height: int = 288, ignore: bool = False
) -> Image.Image:
    """An image beside its ground truth, before anything was predicted.

    Args:
        image: (H, W, 3), uint8.
        truth: (H, W), 0 to the number of classes.
        names: Of the classes.
        title: One line above the panels.
        height: As in ``overlay``.
        ignore: The truth may hold ``IGNORED``, which is hatched.
    """
    photo = Image.fromarray(image).resize(_fitted(image.shape[1], image.shape[0], height), Image.Resampling.LANCZOS)
    unknown = truth == IGNORED if ignore else None
    colours = [TRUTH] if len(names) == 1 else [CLASSES[number % len(CLASSES)] for number in range(len(names))]
    drawn, legend = photo, []
    for number, (name, colour) in enumerate(zip(names, colours, strict=True), 1):
        mask = truth == number
        if mask.any():
            drawn = _outlined(_tinted(drawn, mask, colour), _Outline(mask, colour, 2.4, inside=len(names) > 1))
            legend.append((colour, name))
    truth_panel = _Panel(_hatched(drawn, unknown), "ground truth" if legend else "ground truth: empty")
    return _row([_Panel(photo, "image"), truth_panel], title, height, legend if len(names) > 1 else ())


def contact_sheet(rows: Sequence[Image.Image], columns: int = 1, max_width: int = 2400) -> Image.Image:
    """Pictures in a grid, filled row by row, on white.

    Args:
        rows: At least one picture, such as those of ``overlay``.
        columns: Pictures side by side.
        max_width: The sheet is scaled down when it is wider, in pixels.

    Raises:
        ValueError: There is no picture, or ``columns`` is less than 1.
    """
    if not rows or columns < 1:
        raise ValueError(f"a sheet needs pictures and columns; got {len(rows)} and {columns}")
    columns = min(columns, len(rows))
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    widths = [max(line[c].width for line in lines if c < len(line)) for c in range(columns)]
    heights = [max(picture.height for picture in line) for line in lines]
    sheet = Image.new("RGB", (sum(widths), sum(heights)), _PAPER)
    for y, line in zip(_starts(heights), lines, strict=True):
        for x, picture in zip(_starts(widths), line, strict=False):
            sheet.paste(picture.convert("RGB"), (x, y))
    if sheet.width > max_width:
        sheet = sheet.resize((max_width, max(1, round(sheet.height * max_width / sheet.width))), Image.Resampling.LANCZOS)
    return sheet


def save_png(picture: Image.Image, path: str | Path, text: Mapping[str, str] | None = None) -> Path:
    """Writes a PNG whole or not at all; makes the folder if need be.

    Args:
        picture: What to write.
        path: Where to; a file that is there is replaced.
        text: Kept in the file beside the pixels, by key (the PNG's tEXt chunks); plain ASCII.

    Returns:
        The path written.

    Raises:
        OSError: The folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        # Files are a sixth larger than at the default level 6, in a quarter of its time: a trial waits for its pictures.
        picture.save(temporary, format="PNG", compress_level=2, pnginfo=_chunks(text or {}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _chunks(text: Mapping[str, str]) -> PngInfo:
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    return chunks


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours from black over red to light yellow for values in [0, 1]; outside they are clipped, NaN is grey.

    Args:
        values: Of any shape.

    Returns:
        The same shape with a last axis of 3, uint8.
    """
    stops = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(np.nan_to_num(values, nan=0.0), stops, _HEAT[:, c]) for c in range(3)], axis=-1)
    return np.where(np.isnan(values)[..., None], 128, np.rint(colours)).astype(np.uint8)


class _Panel(NamedTuple):
    """A picture, what stands below it, and the colours that stand before that: (1, n, 3) uint8."""

    picture: Image.Image
    caption: str
    key: np.ndarray | None = None


def _classes(
    photo: Image.Image, truth: np.ndarray | None, prediction: np.ndarray, names: Sequence[str]
) -> tuple[Image.Image | None, list[_Outline], str, list[tuple[Colour, str]]]:
    """The picture of the truth, the lines of the last panel, its caption and the legend, of several classes."""
    masks = [mask for mask in (truth, prediction) if mask is not None]
    present = [number for number in range(1, len(names) + 1) if any((mask == number).any() for mask in masks)]
    colours = {number: CLASSES[(number - 1) % len(CLASSES)] for number in present}
    # Each line lies inside its class: those of two neighbours run side by side, where one on the border would hide the other.
    lines = [_Outline(prediction == number, colour, 4.0, inside=True) for number, colour in colours.items()]
    if truth is None:
        return None, lines, "prediction", [(colour, names[number - 1]) for number, colour in colours.items()]
    drawn = photo
    for number, colour in colours.items():
        drawn = _tinted(drawn, truth == number, colour)
    drawn = _outlined(drawn, *(_Outline(truth == number, colour, 4.0, inside=True) for number, colour in colours.items()))
    below = [_Outline(truth == number, TRUTH_BELOW, 3.0) for number in present]
    dice = {number: _dice(prediction == number, truth == number) for number in range(1, len(names) + 1)}
    legend = [(colour, f"{names[number - 1]}  Dice {dice[number]:.3f}") for number, colour in colours.items()]
    mean = math.fsum(dice.values()) / len(names)
    return drawn, below + lines, f"prediction    mean Dice {mean:.3f}", [(TRUTH_BELOW, "truth"), *legend]


def _row(panels: Sequence[_Panel], title: str, height: int, legend: Sequence[tuple[Colour, str]] = ()) -> Image.Image:
    """Puts panels side by side, each with its caption below, the title above all and the legend, as much as fits, below all."""
    small = max(11, round(height / 19))
    font, title_font = ImageFont.load_default(small), ImageFont.load_default(small + 3)
    top = _GAP + (round((small + 3) * 1.6) if title else 0)
    panel_width, panel_height = panels[0].picture.size
    step = panel_width + _GAP
    line = round(small * 2.1)
    row = Image.new("RGB", (_GAP + step * len(panels), top + panel_height + line * (2 if legend else 1)), _PAPER)
    draw = ImageDraw.Draw(row)
    if title:
        draw.text((_GAP, _GAP // 2), _shortened(title, title_font, row.width - 2 * _GAP), fill=_INK, font=title_font)
    for i, panel in enumerate(panels):
        left, x, y = _GAP + step * i, _GAP + step * i, top + panel_height + round(small * 0.4)
        row.paste(panel.picture, (left, top))
        if panel.key is not None:
            side = round(small * 0.7)
            key = Image.fromarray(panel.key).resize((side if panel.key.shape[1] == 1 else 4 * side, side))
            row.paste(key, (x, y + round(small * 0.3)))
            x += key.width + round(small * 0.5)
        draw.text((x, y), _shortened(panel.caption, font, left + panel_width - x), fill=_INK, font=font)
    y, x, gap = top + panel_height + line + round(small * 0.1), _GAP, 2 * small
    widths = [round(small * 1.2 + font.getlength(text)) + gap for _, text in legend]
    for number, (colour, text) in enumerate(legend):
        more = f"and {len(legend) - number} more"
        rest = sum(widths[number:]) - gap
        if x + rest > row.width and x + widths[number] + font.getlength(more) > row.width:
            draw.text((x, y), more, fill=_INK, font=font)
            break
        box, side = y + round(small * 0.3), round(small * 0.7)
        draw.rectangle((x, box, x + side, box + side), fill=colour, outline=_INK)
        draw.text((x + round(small * 1.2), y), text, fill=_INK, font=font)
        x += widths[number]
    return row


def _swatch(colour: Colour) -> np.ndarray:
    return np.array([[colour]], dtype=np.uint8)


class _Outline(NamedTuple):
    """A mask's border as a line, ``width`` pixels wide, one half of it on each side; ``inside`` draws the inner half only."""

    mask: np.ndarray
    colour: Colour
    width: float
    inside: bool = False


def _outlined(photo: Image.Image, *outlines: _Outline) -> Image.Image:
    """Draws smooth lines, later ones over earlier ones, and below all of them dark rims that show on any background."""
    fine = (photo.width * _SUPERSAMPLE, photo.height * _SUPERSAMPLE)
    shapes = [np.asarray(_mask_image(outline.mask).resize(fine, Image.Resampling.BILINEAR)) > 127 for outline in outlines]
    rims = [(shape, (0, 0, 0), outline.width + 1.4, 0.55, False) for shape, outline in zip(shapes, outlines, strict=True)]
    lines = [(shape, outline.colour, outline.width, 1.0, outline.inside) for shape, outline in zip(shapes, outlines, strict=True)]
    for shape, colour, width, strength, inside in rims + lines:
        radius = max(1, round(width * _SUPERSAMPLE / 2))
        line = (shape if inside else _dilated(shape, radius)) & _dilated(~shape, radius)
        alpha = Image.fromarray(line.astype(np.uint8) * round(255 * strength)).resize(photo.size, Image.Resampling.BOX)
        photo = Image.composite(Image.new("RGB", photo.size, colour), photo, alpha)
    return photo


def _dilated(shape: np.ndarray, radius: int) -> np.ndarray:
    """All pixels within ``radius`` of the shape. Beyond the image there is nothing, neither shape nor background: its edge is no border."""
    height, width = shape.shape
    padded = np.pad(shape, radius)
    # widened[k]: each row dilated by k to both sides; a disc is a stack of rows of different widths.
    widened = [padded[:, radius : radius + width]]
    for k in range(1, radius + 1):
        widened.append(widened[-1] | padded[:, radius - k : radius - k + width] | padded[:, radius + k : radius + k + width])
    out = np.zeros_like(shape)
    for dy in range(-radius, radius + 1):
        out |= widened[math.isqrt(radius**2 - dy**2)][radius + dy : radius + dy + height]
    return out


def _tinted(photo: Image.Image, mask: np.ndarray, colour: Colour, strength: float = 0.22) -> Image.Image:
    """Mixes a colour into the foreground."""
    alpha = _mask_image(mask).resize(photo.size, Image.Resampling.BILINEAR).point(lambda value: round(value * strength))
    return Image.composite(Image.new("RGB", photo.size, colour), photo, alpha)


def _hatched(picture: Image.Image, unknown: np.ndarray | None) -> Image.Image:
    """Draws grey diagonal lines where nobody knows what is there."""
    if unknown is None or not unknown.any():
        return picture
    where = np.asarray(_mask_image(unknown).resize(picture.size, Image.Resampling.NEAREST)) > 0
    rows, columns = np.indices(where.shape)
    lines = Image.fromarray((where & ((rows + columns) % 8 < 3)).astype(np.uint8) * 255)
    return Image.composite(Image.new("RGB", picture.size, UNKNOWN), picture, lines)


def _heat_map(photo: Image.Image, guide: np.ndarray) -> Image.Image:
    """The guide mask in colours, upsampled, with a trace of the grey photograph for orientation."""
    low, high = _limits(guide)
    middle, span = (low + high) / 2, max(high - low, _MIN_GUIDE_SPAN)
    scaled = ((guide.astype(np.float32) - middle) / span + 0.5).astype(np.float32)
    values = np.asarray(Image.fromarray(scaled).resize(photo.size, Image.Resampling.BICUBIC))
    return Image.blend(Image.fromarray(heat_colours(values)), photo.convert("L").convert("RGB"), 0.25)


def _limits(guide: np.ndarray) -> tuple[float, float]:
    finite = guide[np.isfinite(guide)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.nan, math.nan)


def _mask_image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray((np.asarray(mask) != 0).astype(np.uint8) * 255)


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """As in ``guidino_tune.metrics``, whose module this one may not import; both empty is 1."""
    p, t = np.asarray(prediction) != 0, np.asarray(truth) != 0
    size = int(p.sum()) + int(t.sum())
    return 2 * int((p & t).sum()) / size if size else 1.0


def _fitted(width: int, height: int, target: int) -> tuple[int, int]:
    """Size of a panel: ``target`` high, or less for an image wider than two heights."""
    scale = min(target / height, 2 * target / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each of several adjoining stretches begins."""
    return [sum(lengths[:i]) for i in range(len(lengths))]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cuts a text that is wider than ``width`` pixels, and marks the cut."""
    if font.getlength(text) <= width:
        return text
    text = text[:width]  # No letter is narrower than a pixel.
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
