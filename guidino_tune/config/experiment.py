"""An experiment: one complete, immutable training configuration, with YAML in and out and a stable hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from guidino_tune.config.data import Data
from guidino_tune.config.fields import PATCH, STRICT, About, forgettable, known_of, whole
from guidino_tune.config.parsing import parse, read_yaml
from guidino_tune.config.sections import DINOGuide, Guide, Loss, Training
from guidino_tune.config.segmenters import Custom, NNWNet, Segmenter

SCALARS = frozenset({type(None), str, bool, int, float})


def _plain(value: Any) -> Any:
    """As ``dataclasses.asdict`` and JSON would have it, many times as fast: a check of a space asks for it thousands of times."""
    if type(value) in SCALARS:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {name: one if type(one := getattr(value, name)) in SCALARS else _plain(one) for name in value.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Experiment:
    """Data, guide, segmenter, loss and training. The defaults are GuiDINO-W on the paper's settings."""

    data: Data
    guide: Guide = DINOGuide()
    segmenter: Annotated[Segmenter, About(memory=whole, heading="segmenter")] = NNWNet()
    loss: Loss = Loss()
    training: Training = Training()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if not self.loss.on_every_head:
            raise ValueError(
                "loss: the weights of Dice, cross-entropy, focal, Tversky and top-k are all 0; coarse outputs would learn nothing"
            )
        if isinstance(self.segmenter, Custom) and not self.segmenter.target:
            raise ValueError("segmenter.target: is missing; name a class or function that gives the network, as module:name")
        self.loss.weights_of(self.data.num_classes)
        size = self.data.image_size
        multiple = self.segmenter.size_multiple(size)
        if size % multiple:
            # The multiple may follow the size, as attention windows do.
            fitting = [s for s in range(PATCH, 4096 + PATCH, PATCH) if s % self.segmenter.size_multiple(s) == 0]
            near = [max((s for s in fitting if s < size), default=None), min((s for s in fitting if s > size), default=None)]
            raise ValueError(
                f"data.image_size: {size} is no multiple of {multiple}, which segmenter {self.segmenter.kind!r} needs; "
                f"nearest: {' and '.join(str(s) for s in near if s)}"
            )
        if isinstance(self.guide, DINOGuide):
            if self.guide.sha256 and self.guide.weights == "random":
                raise ValueError("guide.sha256: random weights have no file to check; set guide.weights=pretrained, or leave it out")
            train, rank = self.guide.trained, self.guide.lora.rank
            if (train == "lora") != (rank > 0):
                todo = "set guide.lora.rank above 0" if train == "lora" else "set guide.lora.rank=0"
                raise ValueError(f"guide.train: {train!r} and guide.lora.rank: {rank} contradict each other; {todo}")
            if max(self.guide.channels or (0,)) >= self.data.channels:
                raise ValueError(f"guide.channels: images have {self.data.channels} channels, which count from 0 (data.channels)")
            gate = self.guide.gate
            if gate not in ("default", "none", *self.segmenter.gates):
                raise ValueError(
                    f"guide.gate: {gate!r} is no place in segmenter {self.segmenter.kind!r}; "
                    f"possible: {', '.join(('default', 'none', *self.segmenter.gates))}"
                )
            if gate == "none" and not self.segmenter.needs_features:
                raise ValueError(
                    f"guide.gate: 'none' leaves the guide without effect on {self.segmenter.kind!r}; "
                    "for the plain network set guide.kind=none"
                )
        elif self.segmenter.needs_features:
            raise ValueError(
                f"segmenter {self.segmenter.kind!r} is a head on the guide backbone's features: it needs guide.kind=dino "
                "(guide.gate=none for the plain head)"
            )
        return self

    @property
    def guide_channels(self) -> tuple[int, int, int]:
        """The channels of the image, from 0, that the guide backbone sees as red, green and blue.

        By default the first three; of two the first is seen twice, of a single one it is all three, as grey is.
        """
        chosen = self.guide.channels if isinstance(self.guide, DINOGuide) else None
        return chosen or {1: (0, 0, 0), 2: (0, 1, 0)}.get(self.data.channels, (0, 1, 2))

    @property
    def gate(self) -> str | None:
        """The place where the guide mask multiplies, or ``None`` when there is no guide mask."""
        if not isinstance(self.guide, DINOGuide) or self.guide.gate == "none":
            return None
        return self.segmenter.gates[0] if self.guide.gate == "default" else self.guide.gate

    @property
    def num_prototypes(self) -> int:
        """Prototypes of the TokenBook; by default one per patch of an image (the reference code's choice)."""
        fixed = self.guide.tokenbook.num_prototypes if isinstance(self.guide, DINOGuide) else None
        return fixed or (self.data.image_size // PATCH) ** 2

    @property
    def num_outputs(self) -> int:
        """Channels of the logits: one for binary masks (sigmoid), else background and every class (softmax)."""
        return 1 if self.data.num_classes == 1 else self.data.num_classes + 1

    @property
    def targets(self) -> dict[str, str]:
        """The user's own code that is used here: ``module:name`` by the path of the setting."""
        found = {"segmenter.target": self.segmenter.target} if isinstance(self.segmenter, Custom) else {}
        return found | ({"loss.custom.target": self.loss.custom.target} if self.loss.custom and self.loss.custom.weight else {})

    @property
    def name(self) -> str:
        """The name the field uses for this combination, such as ``GuiDINO-W-LoRA``."""
        trained = {"frozen": "", "lora": "-LoRA", "full": "-full"}[self.guide.trained] if isinstance(self.guide, DINOGuide) else ""
        return (self.segmenter.guided_name if self.gate else self.segmenter.plain_name) + trained

    def to_dict(self) -> dict[str, Any]:
        """Every field, nested, in plain YAML types."""
        plain: dict[str, Any] = _plain(self)
        for name, values in (plain["data"]["labels"] or {}).items():
            if len(values) == 3 and all(isinstance(value, int) for value in values):  # three numbers would be read as a colour
                plain["data"]["labels"][name] = [[value] * 3 for value in values]
        return plain

    def to_yaml(self) -> str:
        """YAML text that ``Experiment.from_yaml`` reads back as an equal experiment."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "experiment") -> Experiment:
        """Checks and builds.

        Raises:
            UserError: An unknown key, a wrong type, a value out of range, or sections that do not fit each other; names the path.
        """
        return parse(cls, values, source)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Experiment:
        """Reads a YAML file: an experiment, or an export that holds one under ``experiment``.

        Raises:
            UserError: The file is missing, is no YAML, or holds no valid experiment.
        """
        values = read_yaml(path)
        return cls.from_dict(values.get("experiment", values), source=str(path))

    def effective(self) -> dict[str, Any]:
        """``to_dict`` without the fields that change nothing here (such as LoRA's alpha at rank 0), and with what defaults stand for."""
        values = self.to_dict()
        if self.data.labels is not None:
            values["data"]["labels"] = list(values["data"]["labels"].items())  # their order, which a hash of a mapping leaves out, is meant
        if isinstance(self.guide, DINOGuide):
            values["guide"]["gate"] = self.gate
            values["guide"]["tokenbook"]["num_prototypes"] = self.num_prototypes
        weights = self.loss.weights_of(self.data.num_classes)
        values["loss"]["class_weights"] = list(weights) if weights else None
        values["segmenter"] |= self.segmenter.as_built(self.data.image_size)
        self._forget_unseen(self, values)
        return values

    def _forget_unseen(self, section: Any, values: dict[str, Any]) -> None:
        cls: type = type(section)
        for name, about in forgettable(cls):
            if name in values and about.unseen(self, values[name]):
                del values[name]
        for name, value in _sections(section):
            if name in values:
                self._forget_unseen(value, values[name])

    def known_fields(self) -> Iterator[tuple[str, About]]:
        """The paths of its fields of which something is known, and what; see ``About``."""
        return _known_fields(self, "")

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits, the same on every machine for the same effective experiment."""
        text = json.dumps(self.effective(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _sections(section: Any) -> Iterator[tuple[str, Any]]:
    for name in section.__slots__:
        if type(value := getattr(section, name)) not in SCALARS and dataclasses.is_dataclass(value):
            yield name, value


def _known_fields(section: Any, prefix: str) -> Iterator[tuple[str, About]]:
    cls: type = type(section)
    known, inner = known_of(cls), dict(_sections(section))
    for name in section.__slots__:
        if name in known:
            yield prefix + name, known[name]
        if name in inner:
            yield from _known_fields(inner[name], f"{prefix}{name}.")


KNOWN: dict[str, About] = dict(Experiment(data=Data(kind="demo")).known_fields())
"""What is known of fields by their path; of ``guide`` with a backbone, and of ``segmenter`` as a whole."""
