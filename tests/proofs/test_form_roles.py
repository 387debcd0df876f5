"""Form: generator and critic as two roles of one objective, each with its optimizer, on the training loop.

As in generative adversarial networks (arXiv:1406.2661, section 3, with the generator's loss that does not saturate).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.train.loop import Role, Trainer


class ToyPerceptron(core.Part, name="toy_perceptron"):
    """``inputs -> hidden -> outputs``. Shapes: ``(batch, inputs) -> (batch, outputs)``."""

    class Config(core.Config):
        inputs: int
        hidden: int
        outputs: int
        widen: core.Config = core.linear(init=core.Init("xavier_uniform"), bias_init=core.Init("normal"))
        narrow: core.Config = core.linear(init=core.Init("xavier_uniform"))

    axes = {"widen.weight": "hidden inputs", "narrow.weight": "outputs hidden"}

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.widen(x, "relu"))


class ToyAdversaries:
    """The critic tells real from made; the generator makes what the critic takes for real."""

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Tensor, step: int) -> Tensor:
        made = models["critic"](models["generator"](torch.randn(len(batch), 2)))
        if role == "generator":
            return F.softplus(-made).mean()
        return F.softplus(made).mean() + F.softplus(-models["critic"](batch)).mean()


def real(step: int) -> Tensor:
    """A narrow heap around 3, far from where a fresh generator's samples lie."""
    return 3 + 0.5 * torch.randn(64, 1, generator=torch.Generator().manual_seed(step))


def distance(made: Tensor, truth: Tensor) -> float:
    """The Wasserstein distance of two samples of equal size: in one dimension, sorting is the best transport."""
    return (made.flatten().sort().values - truth.flatten().sort().values).abs().mean().item()


@torch.no_grad()
def generate(model: nn.Module) -> Tensor:
    return model(torch.randn(2048, 2, generator=torch.Generator().manual_seed(7)))


def trained(*roles: str) -> Tensor:
    """Samples after a run in which only the named roles have an optimizer."""
    torch.manual_seed(0)
    models = {
        "critic": core.build(ToyPerceptron.Config(inputs=1, hidden=16, outputs=1)),
        "generator": core.build(ToyPerceptron.Config(inputs=2, hidden=16, outputs=1)),
    }
    rates = {"critic": 8e-3, "generator": 4e-3}
    Trainer(
        {
            name: Role(model, torch.optim.Adam(model.parameters(), rates[name], (0.5, 0.9)) if name in roles else None)
            for name, model in models.items()
        },
        ToyAdversaries(),
        real,
        clip=100.0,
    ).run(200)
    return generate(models["generator"])


def test_generator_moves_its_samples_to_the_data():
    truth = torch.cat([real(step) for step in range(10_000, 10_032)])
    start = distance(trained("critic"), truth)  # a role without an optimizer stays as it is
    assert start > 2.5
    assert distance(trained("critic", "generator"), truth) < start / 5
    assert distance(trained("generator"), truth) > start / 5  # a critic that learns nothing leads nowhere
