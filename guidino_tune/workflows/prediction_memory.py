"""How much memory ``predict`` may take for images, and what an image takes: whole, tile by tile, and while it waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30

AUTOMATIC = 0.5
"""Share of the free memory that is taken where nothing is said."""

LEAST = 256 * MIB
"""Is taken in any case, where nothing is said: small images are predicted also while the machine is busy."""

_LIMITS = {  # of a control group: its limit, what it takes, and which line of memory.stat tells what can be taken back
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True, slots=True)
class Room:
    """What fits. All costs are in bytes per pixel, of the largest arrays that are there at one time.

    Attributes:
        bound: Bytes that images may take together.
        workers: Of the threads that read and write; of 1 each image is alone.
        channels: Of an image.
        depth: Bytes of a channel: 1 or 2.
        classes: Foreground classes.
        objects: Whether objects of a mask are looked for, or probabilities written.
    """

    bound: int
    workers: int
    channels: int = 3
    depth: int = 1
    classes: int = 1
    objects: bool = False

    @property
    def alone(self) -> int:
        """Pixels of the largest image, which goes tile by tile, and for which nothing else is read or written."""
        image = self.channels * self.depth
        reading = image + (32 if self.depth > 1 else 8)
        return self._part // (image + 1 + max(reading, 17 if self.objects else 0))

    @property
    def beside(self) -> int:
        """Pixels of the largest image that is read ahead, or written, beside others."""
        if self.workers == 1:
            return self.alone
        waiting = 3 * self.channels * self.depth + 4 * (self.classes + 1) + 5 + (17 if self.objects else 0)
        return self._part // (waiting * (2 * self.workers + 3))

    def holds(self, pixels: int) -> bool:
        """Whether the network's maps of an image of so many pixels can be held whole."""
        outputs = 1 if self.classes == 1 else self.classes + 1
        cost = self.channels * self.depth + max(13 * self.channels, 4 * self.channels + 8 * (outputs + 1) + 8, 8 * outputs + 20)
        return pixels * cost <= self._part

    @property
    def why(self) -> str:
        """The end of a message that an image is too large."""
        bound = f"{self.bound / GIB:.1f} GiB" if self.bound >= GIB else f"{self.bound / MIB:.0f} MiB"
        return f" that fit into the {bound} of memory that predict may take for images (--memory)"

    @property
    def _part(self) -> int:
        """Half is for the images that wait, half for the one that the network sees."""
        return self.bound if self.workers == 1 else self.bound // 2


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that new programs could have: of the machine, or less where a control group (container, Slurm) has a limit.

    Args:
        root: Of the file system, for tests.
    """
    import psutil

    free = int(psutil.virtual_memory().available)
    for folder, version in _groups(root):
        limit, used, cache = _LIMITS[version]
        try:
            most, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
            lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):  # no such group, or one without a limit
            continue
        idle = next((int(line.split()[1]) for line in lines if line.split()[:1] == [cache]), 0)
        free = min(free, most - taken + idle)
    return max(free, 0)


def _groups(root: Path) -> Iterator[tuple[Path, str]]:
    """The control groups of this process and those around them, with their version."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        here = top / path.strip("/")
        for folder in (here, *here.parents):  # in a container the path may be that of the machine, and only the top is there
            yield folder, "v1" if controllers else "v2"
            if folder == top:
                break
