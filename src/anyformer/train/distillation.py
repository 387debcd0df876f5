"""Learning from labels and from a teacher at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.core.errors import UsageError
from anyformer.data.batches import Batch


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The objective of a ``student`` beside a ``teacher``, a role without an optimizer (DeiT, arXiv:2012.12877, section 4).

    The loss is ``(1 - weight) * truth + weight * teaching``. The truth is the cross entropy with the labels. The teaching
    is the cross entropy with the class that the teacher finds most likely (hard; eq. 3), or the divergence from the
    teacher's probabilities to the student's, both at a temperature, times its square (soft; eq. 2, and Hinton et al. 2015,
    section 2); each is a mean over the batch. The teacher sees the same pictures.

    A student gives scores, or in training a pair: those that learn from the labels and those that learn from the teacher.
    Of a pair, ``by="class"`` trains the first with both, and the second not at all.

    Args:
        kind: What of the teacher is learnt. The paper finds hard better.
        by: Which scores learn it: those of the distillation token, or those that learn from the labels.
        temperature: Divides the logits of the soft kind; the paper takes 3.
        weight: Of the teacher; the paper takes 0.5 for the hard kind and 0.1 for the soft one.
        smoothing: The share of each true label that is spread over all classes; the teacher's is taken as it is.

    Raises:
        UsageError: The weight is not a share, or the temperature not positive.
    """

    kind: Literal["hard", "soft"] = "hard"
    by: Literal["token", "class"] = "token"
    temperature: float = 3.0
    weight: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1 or not self.temperature > 0:
            raise UsageError(
                f"distillation needs a weight from 0 to 1 and a temperature above 0, got weight={self.weight} and "
                f"temperature={self.temperature}"
            )

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Batch, step: int) -> Tensor:
        """The loss of the batch, a float32 scalar whatever the data type of the logits.

        Raises:
            UsageError: The teacher has an optimizer, or the student has no scores of a distillation token to teach.
        """
        if role != "student":
            raise UsageError(f"distillation trains the student alone; give the {role} no optimizer")
        with torch.no_grad():
            teacher = models["teacher"](batch.images).float()
        label, taught = self._scores(models["student"](batch.images))
        truth = F.cross_entropy(label.float(), batch.labels, label_smoothing=self.smoothing)
        return (1 - self.weight) * truth + self.weight * self._teaching(taught.float(), teacher)

    def _scores(self, given: Any) -> tuple[Tensor, Tensor]:
        """The scores that learn from the labels and those that learn from the teacher."""
        if not isinstance(given, tuple):
            if self.by == "token":
                raise UsageError(
                    'this student gives one score a class, so there is no distillation token to teach; use by="class"'
                )
            return given, given
        label, taught = given
        return label, taught if self.by == "token" else label

    def _teaching(self, student: Tensor, teacher: Tensor) -> Tensor:
        """How far the student is from the teacher."""
        if self.kind == "hard":
            return F.cross_entropy(student, teacher.argmax(dim=1))
        logs, target = ((scores / self.temperature).log_softmax(dim=1) for scores in (student, teacher))
        return self.temperature**2 * F.kl_div(logs, target, reduction="batchmean", log_target=True)
