"""A training of a few steps, saved and exported, as a program: ``python one_run.py FOLDER``."""

import sys
from pathlib import Path

import torch

import anyformer as af
from anyformer.data.augment import Augmentation
from anyformer.data.batches import Batches, data_config
from anyformer.deploy.onnx import export_onnx
from anyformer.train.classification import Classification
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import WarmupCosine, adamw

STEPS = 6
HYBRID = {
    "skeleton": "pyramid",
    "dims": [8, 16],
    "embed": "patch_embed(patch=1)",
    "stages": ["1 x depthwise_convolution(kernel=3)", "1 x attention(heads=2)"],
    "num_classes": 4,
    "in_chans": 1,
}


def run(folder: Path) -> None:
    """Everything that chance touches: weights, order, augmentation; then the files."""
    labels = torch.arange(40) % 4
    images = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    torch.manual_seed(1)
    model = af.build_hybrid(HYBRID)
    batches = Batches(images, labels, data_config(images), size=8, seed=2, augmentation=Augmentation())
    role = Role(model, adamw(model, 1e-3), WarmupCosine(steps=STEPS, warmup=2))
    Trainer({"student": role}, Classification(smoothing=0.1), batches, seed=3).run(STEPS)
    model.save_pretrained(folder)
    export_onnx(model, torch.zeros(2, 1, 8, 8), folder / "model.onnx", unseen=4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
