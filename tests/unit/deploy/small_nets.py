"""Networks of a few layers, and pictures for them."""

import torch
from torch import nn
from torch.nn import functional as F

from anyformer.deploy.runtime import available, load_openvino


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.drop(F.gelu(self.norm(self.conv(images))).mean((2, 3))))


class ExportsAnother(nn.Module):
    """Computes something else while it is exported, as a wrong translation would."""

    def forward(self, images):
        return images.mean((2, 3)) * (1.0001 if torch.compiler.is_exporting() else 1.0)


class Unexportable(nn.Module):
    """Branches on its data, which no graph can."""

    def forward(self, images):
        return images.mean((2, 3)) if images.sum() > 0 else -images.mean((2, 3))


def images(count, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def build(kind=ConvNet):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


def runs_here(runtime, precision="float32"):
    """Whether a form can be run on this machine."""
    if runtime == "torch":
        return True
    if (runtime, precision) == ("openvino", "bfloat16"):
        return runtime in available() and "BF16" in load_openvino().Core().get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        )
    return runtime in available()


class FrozenBatch(nn.Module):
    """Asks Python for the size of its batch, which then is a constant of the graph."""

    def forward(self, images):
        return images.mean((2, 3)).view(len(images), 3)
