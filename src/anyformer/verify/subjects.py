"""What the proofs must know of a field: what its models take, at which sizes, and what they are held against."""

import importlib
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from anyformer.core import registry
from anyformer.core.model import Model
from anyformer.core.store import create_model
from anyformer.skeletons.encoder_decoder import EncoderDecoder, Texts
from anyformer.skeletons.text_encoder import TextEncoder
from anyformer.verify import oracles
from anyformer.verify.filling import uniform
from anyformer.verify.sensitivity import stages_and_scores

TOKENS = 64  # of a text on which costs are counted and models compared
OTHER_TOKENS = 37  # odd, shorter than any chunk


@dataclass(frozen=True)
class Pictures:
    """Images ``(batch, 3, height, width)``; the oracles are timm's.

    Attributes:
        format: The key map's name of the oracle's format.
        other: A size at which models are compared beside their own.
        differentiable: Whether the input has a gradient.
    """

    format: str = "timm"
    other: tuple[int, ...] = (72, 104)  # not square, a multiple of no window, and small: sensitivity takes many passes
    differentiable: bool = True

    def native(self, name: str) -> tuple[int, ...]:
        """Height and width."""
        height, width = registry.system_of(name).data_config(name)["size"]
        return height, width

    def create(self, name: str, size: tuple[int, ...]) -> Model:
        """Made for images of the size."""
        return cast(Model, create_model(name, img_size=size))

    def raw(self, name: str, label: str, batch: int, size: tuple[int, ...]) -> Tensor:
        """Numbers in [-1, 1)."""
        return uniform(label, (batch, 3, *size)).double()

    def oracle(self, name: str, size: tuple[int, ...]) -> nn.Module:
        """One of timm's."""
        return oracles.oracle(name, img_size=cast(tuple[int, int], size))

    def theirs(self, name: str, model: nn.Module, raw: Tensor) -> list[Tensor]:
        """See :func:`anyformer.verify.oracles.oracle_stages_and_scores`."""
        return oracles.oracle_stages_and_scores(model, raw)

    def ours(self, model: Model, raw: Tensor) -> list[Tensor]:
        """See :func:`anyformer.verify.sensitivity.stages_and_scores`."""
        return stages_and_scores(model, raw)


class _TwoTexts(Texts):
    """A source and a target, with the answers of one tensor of whole numbers, which have no gradient."""

    grad = None

    def is_floating_point(self) -> bool:
        """No."""
        return False

    def clone(self) -> "_TwoTexts":
        """Itself: nothing is written into it."""
        return self

    def requires_grad_(self, wanted: bool) -> "_TwoTexts":
        """Itself."""
        return self


@dataclass(frozen=True)
class Text:
    """Token identifiers ``(batch, tokens)``; the oracle of a system is built by its module in ``verify/oracle_of``.

    An encoder-decoder takes two texts: a source of so many tokens, and a target of twice as many.

    Attributes and methods are those of :class:`Pictures`.
    """

    format: str = "oracle"
    other: tuple[int, ...] = (OTHER_TOKENS,)
    differentiable: bool = False

    def native(self, name: str) -> tuple[int, ...]:
        """The number of tokens: of any, as models of text are."""
        return (TOKENS,)

    def create(self, name: str, size: tuple[int, ...]) -> Model:
        """Of any size."""
        return cast(Model, create_model(name))

    def raw(self, name: str, label: str, batch: int, size: tuple[int, ...]) -> Any:
        """Identifiers below the vocabulary."""
        vocabulary = registry.system_of(name).data_config(name)["vocabulary"]

        def ids(label: str, tokens: int) -> Tensor:
            return ((uniform(label, (batch, tokens)).double() + 1) / 2 * vocabulary).long().clamp(0, vocabulary - 1)

        (tokens,) = size
        return _TwoTexts(ids(label, tokens), ids(f"{label}, target", 2 * tokens)) if reads(name) else ids(label, tokens)

    def oracle(self, name: str, size: tuple[int, ...]) -> nn.Module:
        """The module's."""
        return _oracle_module(name).oracle(name).eval()

    def theirs(self, name: str, model: nn.Module, raw: Tensor) -> list[Tensor]:
        """As the module says, or as transformers gives hidden states: the last block's are normalised."""
        module, theirs = _oracle_module(name), cast(Any, model)
        if hasattr(module, "stages_and_scores"):
            return module.stages_and_scores(model, raw)
        given = theirs(raw, output_hidden_states=True, use_cache=False)
        return [*given.hidden_states[1:], given.logits]

    def ours(self, model: Model, raw: Tensor) -> list[Tensor]:
        """The features after every block but the last, the final ones, and the scores."""
        features, final, context = model.stages_of(raw)
        return [*features[:-1], final, model.forward_head(final, context)]


def reads(name: str) -> bool:
    """Whether a model has a source to read beside what it says."""
    return registry.system_of(name).pattern(name).part is EncoderDecoder


def absent(name: str) -> str:
    """Why there is nothing that the models of a model's system could be held against, in words; "" where there is.

    The system's module in ``verify/oracle_of`` then has this sentence, ``ABSENT``, instead of a model.
    """
    return getattr(_oracle_module(name), "ABSENT", "") if isinstance(subject_of(name), Text) else ""


def reads_whole(name: str) -> bool:
    """Whether a model of text knows all of it at once."""
    return registry.system_of(name).pattern(name).part is TextEncoder


def _oracle_module(name: str) -> Any:
    return importlib.import_module(f"anyformer.verify.oracle_of.{registry.system_of(name).paper.slug}")


Subject = Pictures | Text
_PICTURES, _TEXT = Pictures(), Text()
SUBJECTS: dict[str, Subject] = {"vision": _PICTURES, "language": _TEXT, "references": _TEXT, "survey": _TEXT}
"""By the folder that a system lies in."""


def subject_of(name: str) -> Subject:
    """The subject of a model's field."""
    return SUBJECTS[registry.system_of(name).field]


def meta_raw(name: str, size: tuple[int, ...]) -> Tensor | Texts:
    """One input of a size without numbers."""
    with torch.device("meta"):
        if subject_of(name).differentiable:
            return torch.empty(1, 3, *size)
        ids = torch.zeros(1, *size, dtype=torch.int64)
        return Texts(ids, ids.repeat(1, 2)) if reads(name) else ids
