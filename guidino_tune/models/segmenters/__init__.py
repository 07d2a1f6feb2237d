"""The segmenters by their configuration's ``kind``.

To add one: a configuration dataclass in ``config/segmenters.py`` (see ``Common`` there; it joins the union at the end of that file), one
file here with a ``Segmenter`` subclass (see ``base.Segmenter`` for the constructor and ``forward`` that all share), and one line in
``SEGMENTERS``.
"""

from guidino_tune.models.segmenters.base import Segmenter
from guidino_tune.models.segmenters.custom import Custom
from guidino_tune.models.segmenters.custom import check as check_custom
from guidino_tune.models.segmenters.dinounet import DinoUNet
from guidino_tune.models.segmenters.h2former import H2Former
from guidino_tune.models.segmenters.meddino import MedDINO
from guidino_tune.models.segmenters.nnunet import NNUNet
from guidino_tune.models.segmenters.nnwnet import NNWNet
from guidino_tune.models.segmenters.segdino import SegDINO
from guidino_tune.models.segmenters.segguidino import SegGuiDINO
from guidino_tune.models.segmenters.swinunet import SwinUNet
from guidino_tune.models.segmenters.ukan import UKAN
from guidino_tune.models.segmenters.unet import UNet

SEGMENTERS: dict[str, type[Segmenter]] = {
    "unet": UNet,
    "nnunet": NNUNet,
    "nnwnet": NNWNet,
    "swinunet": SwinUNet,
    "h2former": H2Former,
    "ukan": UKAN,
    "segdino": SegDINO,
    "segguidino": SegGuiDINO,
    "dinounet": DinoUNet,
    "meddino": MedDINO,
    "custom": Custom,
}
"""Segmenter classes by ``kind``."""

__all__ = ["SEGMENTERS", "Segmenter", "check_custom"]
