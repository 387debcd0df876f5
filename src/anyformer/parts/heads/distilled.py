"""The head of a distilled classifier: one linear map for the class token, another for the distillation token."""

from typing import NamedTuple

from torch import Tensor

from anyformer import core


class DistilledScores(NamedTuple):
    """The scores of each token, ``(batch, num_classes)``.

    Attributes:
        label: Of the class token, which learns from the labels.
        teacher: Of the distillation token, which learns from the teacher.
    """

    label: Tensor
    teacher: Tensor


class DistilledHead(core.Head, name="distilled_head"):
    """Scores from the class token and from the distillation token (arXiv:2012.12877, section 4).

    In training both come out, so that each has a loss of its own; in evaluation their mean. Without classes the tokens
    stand for their scores.

    Shapes: ``(batch, 2 + tokens, dim) -> (batch, num_classes)``.
    """

    class Config(core.Config):
        """``num_classes`` = 0 leaves both linear maps out."""

        dim: int = core.bound()
        num_classes: int = 1000
        label: core.Config = core.linear()
        teacher: core.Config = core.linear()

    axes = {"label.weight": "num_classes dim", "teacher.weight": "num_classes dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.num_classes == 0:
            self.label = self.teacher = None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor | DistilledScores:
        """Score both tokens.

        Raises:
            UsageError: when other than two tokens stand before the grid.
        """
        prefix = 0 if ctx.layout is None else ctx.layout.prefix
        if prefix != 2:
            raise core.UsageError(
                f"DistilledHead reads a class and a distillation token, got {prefix} tokens before the grid; "
                f"take an embed with prefix=2"
            )
        label = x[:, 0] if self.label is None else self.label(x[:, 0])
        teacher = x[:, 1] if self.teacher is None else self.teacher(x[:, 1])
        return DistilledScores(label, teacher) if self.training else (label + teacher) / 2
