"""DeiT: a ViT trained on ImageNet alone, with a second token that learns from a teacher.

Training data-efficient image transformers & distillation through attention. The network is ViT's; what is new is how it
is trained (:class:`anyformer.train.distillation.Distillation`), and the distillation token beside the class token, with a
head of its own, whose scores are averaged with the other's after training (section 4).

Names: our ``embed.prefix`` is their ``cls_token`` and, behind it, ``dist_token``; ``head.label`` is their ``head``,
``head.teacher`` their ``head_dist``. For the other names see ViT.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer import core
from anyformer.core import registry
from anyformer.core.keymap import KeyMap, Row, row
from anyformer.parts.heads.distilled import DistilledHead

PAPER = core.Paper(
    "deit",
    contributes=("model", "part", "objective"),
    extends=("vit",),
    deviations=(
        "The official code divides the soft loss by the number of classes as well, an old habit of torch's; the objective "
        "follows equation 2 of the paper, which does not.",
    ),
)

# "like" is the ViT whose wiring it is; with two tokens before the patches it is distilled.
SIZES: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": {"like": "vit_tiny_patch16_224", "dim": 192, "tokens": 1},
    "deit_small_patch16_224": {"like": "vit_small_patch16_224", "dim": 384, "tokens": 1},
    "deit_base_patch16_224": {"like": "vit_base_patch16_224", "dim": 768, "tokens": 1},
    "deit_base_patch16_384": {"like": "vit_base_patch16_384", "dim": 768, "tokens": 1},
    "deit_tiny_distilled_patch16_224": {"like": "vit_tiny_patch16_224", "dim": 192, "tokens": 2},
    "deit_small_distilled_patch16_224": {"like": "vit_small_patch16_224", "dim": 384, "tokens": 2},
    "deit_base_distilled_patch16_224": {"like": "vit_base_patch16_224", "dim": 768, "tokens": 2},
    "deit_base_distilled_patch16_384": {"like": "vit_base_patch16_384", "dim": 768, "tokens": 2},
    "deit_micro": {"like": "vit_micro", "dim": 48, "tokens": 1},
    "deit_mini": {"like": "vit_mini", "dim": 96, "tokens": 1},
}
SMALL = ("deit_micro", "deit_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # one pixel is too little for a token that attends


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    drop_path_rate: float = 0.0,
) -> core.Config:
    """The pattern of a size; ``drop_path_rate`` grows in a straight line from 0 to that of the last block."""
    size = SIZES[name]
    vit: Any = registry.system("vit").pattern(
        size["like"],
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=img_size,
        patch_size=patch_size,
        drop_path_rate=drop_path_rate,
    )
    embed = vit.embed.replace(prefix=size["tokens"], prefix_init=core.Init("truncated_normal", 0.02))
    head = DistilledHead.Config(num_classes=num_classes) if size["tokens"] == 2 else vit.head
    return vit.replace(dim=size["dim"], embed=embed, head=head)


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of an image."""
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": registry.system("vit").data_config(SIZES[name]["like"])["size"],
        "channels": 3,
        "interpolation": "bicubic",
        "crop": 0.875,
    }


_TABLE = "official model table"
_SIZE = (224, 224)
PUBLISHED = {
    "deit_tiny_patch16_224": core.Published(
        params=5e6, macs=None, at=_SIZE, source=_TABLE, explained="5.72 million are printed as 5M"
    ),
    "deit_small_patch16_224": core.Published(params=22e6, macs=None, at=_SIZE, source=_TABLE),
    "deit_base_patch16_224": core.Published(params=86e6, macs=None, at=_SIZE, source=_TABLE),
    "deit_base_patch16_384": core.Published(params=87e6, macs=None, at=(384, 384), source=_TABLE),
    "deit_tiny_distilled_patch16_224": core.Published(params=6e6, macs=None, at=_SIZE, source=_TABLE),
    "deit_small_distilled_patch16_224": core.Published(params=22e6, macs=None, at=_SIZE, source=_TABLE),
    "deit_base_distilled_patch16_224": core.Published(params=87e6, macs=None, at=_SIZE, source=_TABLE),
    "deit_base_distilled_patch16_384": core.Published(params=88e6, macs=None, at=(384, 384), source=_TABLE),
}


@dataclass(frozen=True)
class SideBySide:
    """Their tensors, each of one token ``(1, 1, dim)``, are the tokens of ours."""

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Join."""
        return [torch.cat(theirs, dim=1)]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Split."""
        return list(ours[0].split(1, dim=1))


def _keys(spec: Any) -> KeyMap:
    """Both formats: the official names are timm's, and but for tokens and heads they are those of ViT in timm."""
    vit = registry.system("vit").keys["timm"](spec)
    if spec.embed.prefix == 1:
        return vit
    distilled: tuple[Row, ...] = (
        row(("cls_token", "dist_token"), "embed.prefix", SideBySide()),
        row("head.{p}", "head.label.{p}"),
        row("head_dist.{p}", "head.teacher.{p}"),
    )
    replaced = {name for line in distilled for name in line.theirs}
    return KeyMap((*distilled, *(line for line in vit.rows if not replaced & set(line.theirs))))


KEYS = {"timm": _keys, "official": _keys}
