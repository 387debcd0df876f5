"""Whether an exported form computes what the model does, on images that its translation has not seen."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.model import Model

BATCHES = (1, 3, 8)  # one, odd and full batches: a batch size frozen by the export shows in at least one of them
TOLERANCES = {"float32": 1e-5, "bfloat16": 5e-2}  # of the largest logit; float32 as elsewhere, bfloat16 has 8 bits


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export was checked for: the largest error, relative to the largest logit, over the images compared."""

    path: Path
    max_error: float
    checked: int


def unseen_images(example: Tensor, unseen: Tensor | int) -> Tensor:
    """The images to compare on: those given, or so many random ones like the example.

    Raises:
        UsageError: the example or the images have the wrong form.
    """
    if example.ndim != 4 or example.dtype != torch.float32 or not len(example):
        form = f"{example.dtype} {tuple(example.shape)}"
        raise UsageError(f"the example must be float32 images (batch, channels, height, width), not {form}")
    if isinstance(unseen, int):
        unseen = torch.randn(unseen, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    if unseen.shape[1:] != example.shape[1:] or unseen.dtype != example.dtype or not len(unseen):
        form = f"{unseen.dtype} {tuple(unseen.shape)}"
        raise UsageError(f"the unseen images must be at least one of the example's form, not {form}")
    return unseen.cpu()


def reference(model: nn.Module) -> nn.Module:
    """A copy of a model as every form is compared with: on the CPU, in evaluation mode, in float32."""
    return copy.deepcopy(model).cpu().eval().float()


def lowered(model: nn.Module) -> nn.Module:
    """A copy of a model to be translated: like the reference, and reparameterized when it is one of ours."""
    from anyformer.passes.reparameterize import reparameterize

    model = reference(model)
    return reparameterize(model) if isinstance(model, Model) else model


def outputs(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The logits of images, run in batches of different sizes."""
    with torch.no_grad():
        return torch.cat([function(batch) for batch in batches(images)])


def compare(model: nn.Module, form: Callable[[Tensor], Tensor], images: Tensor, tolerance: float, what: str) -> float:
    """The largest absolute error of a form, over the largest absolute logit of the model.

    Args:
        model: in evaluation mode.
        form: what was made of it.
        images: to compare on.
        tolerance: the largest error allowed. The predicted class must be the same too, except where the model's two
            logits are closer than that.
        what: the form in a sentence, such as ``"the ONNX file of Pyramid"``.

    Raises:
        AnyformerError: the form computes something else.
    """
    want, have = outputs(model, images).double(), outputs(form, images).double()
    if want.shape != have.shape:
        shapes = f"{tuple(have.shape)} instead of {tuple(want.shape)}"
        raise AnyformerError(f"{what} gives logits of shape {shapes}; it was not kept")
    scale = want.abs().max()
    error = ((have - want).abs().max() / scale).item() if scale > 0 else (have - want).abs().max().item()
    if not error <= tolerance:  # also when it is not a number
        raise AnyformerError(
            f"{what} differs from the model by {error:.1e} of the largest logit on unseen images, "
            f"more than {tolerance:.0e}; it was not kept"
        )
    chosen = have.argmax(-1, keepdim=True)
    behind = (want.amax(-1, keepdim=True) - want.gather(-1, chosen)).max() / scale
    if behind > tolerance:
        raise AnyformerError(
            f"{what} predicts another class on unseen images, where the model's logits are "
            f"{behind:.1e} of the largest apart; it was not kept"
        )
    return error


def batches(images: Tensor) -> Iterator[Tensor]:
    """Batches of each size in turn, then full ones, until every image was seen; few images come round again."""
    sizes = [*BATCHES]
    while sum(sizes) < len(images):
        sizes.append(min(BATCHES[-1], len(images) - sum(sizes)))
    start = 0
    for size in sizes:
        yield images[torch.arange(start, start + size) % len(images)]
        start += size
