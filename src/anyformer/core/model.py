"""A whole model: what every skeleton adds to a part so that users can hold it."""

from typing import Any, ClassVar

from torch import Tensor, nn

from anyformer.core.config import Config, edit
from anyformer.core.context import Collected, Context
from anyformer.core.errors import UsageError
from anyformer.core.part import Part, attach_shared


class Model(Part):
    """The base of skeletons: raw data in, scores out, features of every stage on the way.

    Attributes:
        model_name: the name it was made under, "" for a hybrid.
        system: the slug of the system whose key maps fit it, "" for a hybrid.
        options: the options it was made with.
        data_config: what its input must look like (mean, std, size, channels, interpolation, ...); travels with it.
    """

    slot = "skeleton"
    head: nn.Module | None
    config: Any

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.model_name = ""
        self.system = ""
        self.options: dict[str, Any] = {}
        self.data_config: dict[str, Any] = {}

    @property
    def spec(self) -> Config:
        """The resolved tree of configurations that this model was built from."""
        return self.config

    def save_pretrained(self, folder: Any, format: str | None = None) -> None:
        """Write spec, weights and manifest into a folder; see :func:`anyformer.core.store.save_pretrained`."""
        from anyformer.core.store import save_pretrained

        save_pretrained(self, folder, format=format)

    def forward_features(
        self, raw: Tensor, sink: Collected | None = None, stages: list[Any] | None = None
    ) -> tuple[Any, Any]:
        """The final features, normalised, before the head, and their context; what every skeleton defines.

        Args:
            raw: What the embed takes.
            sink: Takes the auxiliary tensors, where one is given.
            stages: Takes the features of every stage, where a list is given; otherwise each is freed as soon as the next
                is there, so that a pass needs no more memory than its largest layer.
        """
        raise NotImplementedError

    def stages_of(self, raw: Tensor, sink: Collected | None = None) -> tuple[list[Any], Any, Any]:
        """The features of every stage, the final features, and their context."""
        stages: list[Any] = []
        x, context = self.forward_features(raw, sink, stages)
        return stages, x, context

    def forward_head(self, x: Tensor, context: Context) -> Tensor:
        """Scores from the final features."""
        return x if self.head is None else self.head(x, context)

    def forward(self, raw: Tensor, collect: Collected | None = None) -> Tensor:
        """Scores ``(batch, num_classes)`` of raw input; auxiliary tensors go into ``collect`` where one is given."""
        return self.forward_head(*self.forward_features(raw, collect))

    def reset_classifier(self, num_classes: int) -> None:
        """Put fresh scores for ``num_classes`` classes in place of the present ones; the rest of the head stays as it is.

        Raises:
            UsageError: when there is no head, or it has no classes.
        """
        if self.head is None:
            raise UsageError("this model has no head to reset")
        spec: Any = edit(self.spec, {"head.num_classes": num_classes})
        like = next(self.parameters())
        head = spec.head.build().to(device=like.device, dtype=like.dtype)
        fresh = {name.partition(".")[0] for name, axes in head.axes.items() if "num_classes" in axes.split()}
        kept = {key: t for key, t in self.head.state_dict().items() if key.partition(".")[0] not in fresh}
        head.load_state_dict(kept, strict=False)
        self.head = head.train(self.head.training)
        self.config, self.options = spec, {**self.options, "num_classes": num_classes}
        attach_shared(self)


class FeatureExtractor(nn.Module):
    """A model that gives the features of its stages instead of scores.

    Attributes:
        model: the whole model, without its head.
    """

    returns: ClassVar[str] = "a list of (batch, *grid, channels), first stage first"

    def __init__(self, model: Model) -> None:
        super().__init__()
        model.head, model.config = None, model.config.replace(head=None)
        self.model = model

    def forward(self, raw: Tensor) -> list[Tensor]:
        """The features of every stage, channels last."""
        features, _, _ = self.model.stages_of(raw)
        return features
