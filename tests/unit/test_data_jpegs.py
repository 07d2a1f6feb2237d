"""Plain JPEGs are decoded by another library than Pillow, with the same result."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guidino_tune.data.rasters import read_picture


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 100, "subsampling": 0}, {"progressive": True}, {"keep_rgb": True}, {"quality": 5}, {"restart_marker_blocks": 3}],
)
def test_a_jpeg_is_what_pillow_makes_of_it_also_a_damaged_one(mode: str, options: dict[str, Any]) -> None:
    def of(decode: Callable[[bytes], np.ndarray], content: bytes) -> np.ndarray | None:
        try:
            return decode(content)
        except Exception:
            return None

    def pillow(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)).convert("L" if mode == "L" else "RGB"))

    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (11, 17, 3), np.uint8)).resize((83, 61)).convert(mode).save(file, "JPEG", **options)
    whole = file.getvalue()
    damaged = [whole[: len(whole) // 2], whole[:-1], whole[: len(whole) // 2] + b"\xff\xd9", whole + b"\0\0"]
    for place in rng.integers(len(whole) // 2, len(whole) - 2, 10):
        damaged.append(whole[:place] + bytes([rng.integers(256)]) + whole[place + 1 :])
    for content in (whole, *damaged):
        expected, found = of(pillow, content), of(lambda content: read_picture(content).values.squeeze(), content)
        assert (expected is None) == (found is None)
        assert expected is None or np.array_equal(expected, found)
    assert of(pillow, damaged[0]) is None
