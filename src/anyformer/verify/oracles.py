"""The reference implementations that our models are held against: timm's, looked up when a proof needs them."""

import contextlib
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core import registry
from anyformer.core.errors import UsageError

# systems whose models are made for one image size; the others take any
SIZED = ("vit", "swin", "deit", "cait", "visformer", "efficientformer")

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
    "cait_micro": (
        "cait_xxs24_224",
        {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2, "init_values": 0.1},
        0,
    ),
    "cait_mini": (
        "cait_xxs24_224",
        {"patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 4, "init_values": 0.1},
        0,
    ),
    "visformer_micro": (
        "visformer_tiny",
        {"init_channels": 16, "embed_dim": 64, "depth": (2, 1, 1), "num_heads": 2},
        0,
    ),
    "visformer_mini": ("visformer_tiny", {"init_channels": 16, "embed_dim": 96, "depth": (3, 2, 2), "num_heads": 3}, 0),
    "efficientformer_micro": (
        "efficientformer_l1",
        {"depths": (2, 2, 2), "embed_dims": (32, 64, 128), "num_vit": 1},
        0,
    ),
    "efficientformer_mini": (
        "efficientformer_l1",
        {"depths": (2, 2, 4), "embed_dims": (48, 96, 192), "num_vit": 2},
        0,
    ),
    "convmixer_micro": ("convmixer_1536_20", {"dim": 64, "depth": 4, "kernel_size": 5, "patch_size": 4}, 0),
    "convmixer_mini": ("convmixer_1536_20", {"dim": 128, "depth": 6, "kernel_size": 5, "patch_size": 4}, 0),
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
    create = BUILDERS[slug] if slug in BUILDERS and options else timm.create_model
    if slug != "convmixer":  # which knows no stochastic depth
        options = {**options, "drop_path_rate": 0.0}
    model: Any = create(theirs, num_classes=num_classes, **options)
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
    if type(model).__name__ == "EfficientFormer":
        return _efficientformer_stages_and_scores(theirs, images)
    final, features = theirs.forward_intermediates(images, norm=False, output_fmt="NCHW")
    return [*(feature.movedim(1, -1) for feature in features), theirs.forward_head(final)]


def _efficientformer_stages_and_scores(model: Any, images: Tensor) -> list[Tensor]:
    """Stage by stage, because timm's own way takes the last grid for half of the one before, which is wrong for odd ones."""
    x, features = model.stem(images), list[Tensor]()
    for stage in model.stages[:-1]:
        x = stage(x)
        features.append(x.movedim(1, -1))
    grid = [-(-side // 2) for side in x.shape[2:]]
    x = model.stages[-1](x)
    final = model.norm(x)
    scores = model.head(final.mean(dim=1)) if model.head_dist is None else model.forward_head(final)
    return [*features, x.unflatten(1, grid), scores]


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


def _convmixer(name: str, **options: Any) -> nn.Module:
    """A ConvMixer of other numbers, which timm's functions of the published sizes do not take."""
    from timm.models.convmixer import ConvMixer

    return ConvMixer(**options)


def _visformer(name: str, *, img_size: tuple[int, int], **options: Any) -> nn.Module:
    """A Visformer; one of other numbers has patches of 2 behind its stem, where timm's are always of 4.

    It is made for images of twice the size, so that all behind these patches has the sizes it needs.
    """
    import timm
    from timm.layers.patch_embed import PatchEmbed

    if not options.keys() & {"embed_dim"}:
        return timm.create_model(name, img_size=img_size, **options)
    model: Any = timm.create_model(name, img_size=tuple(2 * side for side in img_size), **options)
    model.patch_embed1 = PatchEmbed(
        img_size=(-(-img_size[0] // 2), -(-img_size[1] // 2)),
        patch_size=2,
        in_chans=model.init_channels,
        embed_dim=model.embed_dim // 2,
        norm_layer=nn.BatchNorm2d,
        flatten=False,
    )
    return model


def _efficientformer(name: str, *, img_size: tuple[int, int], **options: Any) -> nn.Module:
    """An EfficientFormer whose attention is for the grid of these images, where timm's is always for 7 x 7.

    One of other numbers has a single head, as our small sizes do.
    """
    import timm
    from timm.models.efficientformer import Attention

    model: Any = timm.create_model(name, **options)
    stride = 2 ** (len(model.stages) + 1)
    for block in model.stages[-1].blocks:
        if isinstance(getattr(block, "token_mixer", None), Attention):
            resolution: Any = tuple(-(-side // stride) for side in img_size)
            block.token_mixer = Attention(model.num_features, resolution=resolution)
    if "embed_dims" in options:
        model.head_dist = None
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_hook(_contiguous_gradient)
    return model


def _contiguous_gradient(module: nn.Module, given: Any, output: Tensor) -> None:
    """Torch's gradient of a batch norm in evaluation mode is wrong where one image's comes channels last and it is not so."""
    if output.requires_grad:
        output.register_hook(Tensor.contiguous)


BUILDERS = {
    "efficientformer": _efficientformer,
    "metaformer": _poolformer,
    "convmixer": _convmixer,
    "visformer": _visformer,
}
"""By system: what makes an oracle with options that timm's own functions do not take."""


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
