"""Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class BatchNorm(core.Norm, name="batch_norm"):
    """Each channel shifted to mean 0 and scaled to variance 1 over the batch and its tokens, then an affine map; algorithm 1.

    In training the moments are those of the batch, and their running means are kept; in evaluation the kept ones are
    used, so that the whole is an affine map a channel, which whatever product stands beside it can take in. Nothing is
    reduced over channels.

    Shapes: ``(..., dim) -> (..., dim)``. Cost: O(dim) a token.
    """

    class Config(core.Config):
        """``eps`` is added to the variance; ``momentum`` is the weight of a new batch in the running moments."""

        dim: int = core.bound()
        eps: float = 1e-5
        momentum: float = 0.1

    axes = {"weight": "dim", "bias": "dim", "running_mean": "dim", "running_var": "dim", "num_batches_tracked": ""}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", core.ONES)
        self.bias = self.parameter("bias", core.ZEROS)
        self.register_buffer("running_mean", torch.zeros(config.dim))
        self.register_buffer("running_var", torch.ones(config.dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift a channel, ``(dim,)`` each: what the norm is in evaluation mode."""
        scale = self.weight / (self.running_var + self.config.eps).sqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over all axes but the last.

        Raises:
            UsageError: in training, where a channel has a single value and so no variance.
        """
        if not self.training:
            scale, shift = self.affine()
            return x * scale + shift
        if x.numel() == x.shape[-1]:
            raise core.UsageError(
                "batch norm learns nothing from one value a channel; train with a larger batch or image"
            )
        self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            x.movedim(-1, 1),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=True,
            momentum=self.config.momentum,
            eps=self.config.eps,
        )
        return y.movedim(1, -1)
