"""What a fit is held against: support vector machines on the same pictures and split."""

from typing import Any

import torch
from torch import Tensor

from anyformer.fit.picture_material import PictureMaterial
from anyformer.fit.scoring import summary

IMAGES = 5000  # trained on, and tested on, at most
SIDE = 32  # pixels along a side at most


def baseline(data: PictureMaterial) -> dict[str, Any]:
    """Its name and its score on the test part, in the metric of the data.

    One machine for all classes, or one for each label or number, on the pixels, at most 32 x 32 of them.
    """
    from sklearn.svm import SVC, SVR

    pixels, targets = _pixels(data, _some(data.split.train))
    unseen, truth = _pixels(data, _some(data.split.test))
    rows, new = pixels.numpy(), unseen.numpy()
    match data.aim.kind:
        case "classes":
            found = torch.from_numpy(SVC(gamma="scale").fit(rows, targets.numpy()).predict(new))
            outputs = torch.nn.functional.one_hot(found, data.outputs).float()
            name = "SVC(gamma='scale') on the pixels"
        case "multilabel":
            columns = [
                SVC(gamma="scale").fit(rows, column.numpy()).decision_function(new)
                if column.unique().numel() > 1
                else column[:1].expand(len(new)).numpy()
                for column in targets.T
            ]
            outputs = torch.stack([torch.from_numpy(column).float() for column in columns], dim=1)
            name = "SVC(gamma='scale') on the pixels, one a label"
        case _:
            wanted = data.aim.standardized(targets)
            found = [SVR(gamma="scale").fit(rows, column.numpy()).predict(new) for column in wanted.T]
            outputs = torch.stack([torch.from_numpy(column).float() for column in found], dim=1)
            name = "SVR(gamma='scale') on the pixels"
    return {"name": name, **summary(data.aim, outputs, truth)}


def _some(part: Tensor) -> Tensor:
    """A part, or as many of it as are looked at, drawn once and for all."""
    if len(part) <= IMAGES:
        return part
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
    return part[order[:IMAGES]]


def _pixels(data: PictureMaterial, part: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of pixels ``(n, pixels)`` of a part, and its targets."""
    images, targets = data.part(part)
    chunks: list[Tensor] = []
    for chunk in images.split(512):
        pixels = chunk.float()
        if pixels.shape[-1] > SIDE:
            pixels = torch.nn.functional.interpolate(pixels, (SIDE, SIDE), mode="area")
        chunks.append(pixels.flatten(1))
    return torch.cat(chunks), targets
