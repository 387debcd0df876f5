"""The reference implementations that our models are held against: timm's, looked up when a proof needs them."""

import contextlib
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core import registry
from anyformer.core.errors import UsageError

SIZED = ("vit", "swin", "deit")  # systems whose models are made for one image size; the others take any

# Our small sizes are nobody's, so the oracle is the nearest published class built with the same numbers: its name, its
# options, and the stages of theirs that ours has (their pyramids always have four).
SMALL: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit_micro": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2}, 0),
    "vit_mini": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 12}, 0),
    "swin_micro": (
        "swin_tiny_patch4_window7_224",
        {"window_size": 4, "embed_dim": 48, "depths": (2, 2), "num_heads": (3, 6)},
        0,
    ),
    "swin_mini": (
        "swin_tiny_patch4_window7_224",
        {"window_size": 4, "embed_dim": 64, "depths": (2, 2, 2), "num_heads": (2, 4, 8)},
        0,
    ),
    "deit_micro": ("deit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 2}, 0),
    "deit_mini": ("deit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 12}, 0),
    "poolformer_micro": ("poolformer_s12", {"depths": (2, 2, 2), "dims": (32, 64, 128)}, 0),
    "poolformer_mini": ("poolformer_s12", {"depths": (2, 2, 4), "dims": (48, 96, 192)}, 0),
    "convnext_micro": ("convnext_tiny", {"depths": (2, 2, 2, 1), "dims": (32, 64, 128, 128)}, 3),
    "convnext_mini": ("convnext_tiny", {"depths": (2, 2, 4, 1), "dims": (48, 96, 192, 192)}, 3),
    "edgenext_micro": (
        "edgenext_xx_small",
        {"depths": (2, 2, 2, 1), "dims": (32, 48, 96, 96), "heads": (4, 4, 4, 4)},
        3,
    ),
    "edgenext_mini": (
        "edgenext_xx_small",
        {"depths": (2, 3, 3, 1), "dims": (48, 96, 160, 160), "heads": (4, 4, 4, 4)},
        3,
    ),
    "fastvit_micro": (
        "fastvit_t8",
        {"layers": (2, 2, 2), "embed_dims": (32, 64, 128), "mlp_ratios": (3, 3, 3)},
        0,
    ),
    "fastvit_mini": (
        "fastvit_sa12",
        {
            "layers": (2, 2, 4),
            "embed_dims": (48, 96, 192),
            "mlp_ratios": (3, 3, 3),
            "token_mixers": ("repmixer", "repmixer", "attention"),
        },
        0,
    ),
}


def oracle(name: str, *, img_size: tuple[int, int] | None = None, num_classes: int = 1000) -> nn.Module:
    """The reference model of a name of ours, in evaluation mode, with fresh weights, without stochastic depth.

    Args:
        name: One of :func:`anyformer.list_models`.
        img_size: Height and width of its images; for models of any size it changes nothing.
        num_classes: Written out, because some of timm's models have no head by default.

    Raises:
        UsageError: timm is not installed, or has no such model.
    """
    timm = _timm()
    slug = registry.system_of(name).paper.slug
    theirs, options, stages = SMALL.get(name, (name, {}, 0))
    if slug in SIZED:
        side = registry.system_of(name).data_config(name)["size"]
        options = {**options, "img_size": img_size or tuple(side)}
    if theirs not in timm.list_models():
        raise UsageError(f"timm has no {theirs!r}, so there is nothing to hold {name} against")
    create = _poolformer if slug == "metaformer" and options else timm.create_model
    model: Any = create(theirs, num_classes=num_classes, drop_path_rate=0.0, **options)
    if stages:
        del model.stages[stages:]
    return model.eval()


def oracle_stages_and_scores(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What is compared, from an oracle, in our layout.

    Returns:
        The features of every stage, not normalised, ``(batch, height, width, channels)``, without prefix tokens; and
        the scores ``(batch, num_classes)`` last.
    """
    theirs: Any = model
    final, features = theirs.forward_intermediates(images, norm=False, output_fmt="NCHW")
    return [*(feature.movedim(1, -1) for feature in features), theirs.forward_head(final)]


def _poolformer(name: str, **options: Any) -> nn.Module:
    """A PoolFormer of other numbers, which timm's functions of the published sizes do not take."""
    from timm.layers.norm import GroupNorm1
    from timm.models import metaformer

    return metaformer._create_metaformer(
        name,
        downsample_norm=None,
        mlp_act=nn.GELU,
        mlp_bias=True,
        norm_layers=GroupNorm1,
        res_scale_init_values=None,
        layer_scale_init_values=1e-5,
        use_mlp_head=False,
        **options,
    )


def _timm() -> Any:
    declare_missing_operators()
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UsageError(
            'the models that ours are held against come with timm: pip install "anyformer[test]"'
        ) from None
    return timm


_DECLARED: list[torch.library.Library] = []  # what a library declares lasts as long as it does


def declare_missing_operators() -> None:
    """Make torchvision importable, as timm needs it, where its compiled library is absent or was built for another torch.

    On import it registers the shapes of operators that only that library declares; a CPU-only torch beside PyPI's
    torchvision is such a case. No model here calls them.
    """
    spec = PathFinder.find_spec("torchvision")
    if spec is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for compiled in Path((spec.submodule_search_locations or [""])[0]).glob("_C.*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(compiled)
            return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)
