"""Residual joins: plain, and with a learned scale a channel (CaiT's LayerScale, arXiv:2103.17239, eq. 6)."""

from torch import Tensor

from anyformer import core


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (arXiv:1603.09382): drop whole rows of the batch with probability ``rate``, rescale the others."""
    if not training or rate == 0.0:
        return x
    keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1.0 - rate)
    return x * keep.div_(1.0 - rate)


class PlainResidual(core.Residual, name="residual"):
    """``x + branch``, the branch dropped for whole samples with probability ``drop_path`` while training."""

    class Config(core.Config):
        """``drop_path`` is a probability."""

        drop_path: float = 0.0

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Join."""
        return x + drop_path(branch, self.config.drop_path, self.training)


class ScaledResidual(core.Residual, name="scaled_residual"):
    """``x + gamma * branch`` with one learned ``gamma`` a channel, and ``drop_path`` as in the plain join."""

    class Config(core.Config):
        """``init`` is gamma's start."""

        dim: int = core.bound()
        init: core.Init = core.Init("constant", 1e-6)
        drop_path: float = 0.0

    axes = {"gamma": "dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.gamma = self.parameter("gamma", config.init)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Join."""
        return x + drop_path(branch * self.gamma, self.config.drop_path, self.training)

    def folded(self, branch: core.Part) -> core.Part:
        """The plain join, where the branch takes gamma in."""
        return PlainResidual.Config(drop_path=self.config.drop_path).build() if branch.scaled(self.gamma) else self
