"""What must hold of every system when it runs: shown on its small models, on numbers that need no data."""

import dataclasses
import math
import tempfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core import registry
from anyformer.core.context import Layout
from anyformer.core.errors import UsageError
from anyformer.core.model import FeatureExtractor, Model
from anyformer.core.store import from_pretrained
from anyformer.train.schedule import adamw

CLASSES, SIDE = 10, 8
INPUT = {"num_classes": CLASSES, "in_chans": 1, "img_size": SIDE, "patch_size": 1}
ROUNDING = 2e-6  # of the largest value: kernels are chosen by shapes and by what is recorded, and round differently
STEPS, LEARNT = 150, 0.1  # steps to learn eight samples by heart at most, and the loss that shows it

Make = Callable[..., Any]
"""Makes the model, or what options turn it into."""


def scores(make: Make) -> list[str]:
    """Scores have the shape that was asked for, for one channel and for three, and are finite."""
    failures: list[str] = []
    for channels in (1, 3):
        given = _eval(make(**{**INPUT, "in_chans": channels}))(_images(3, channels))
        if given.shape != (3, CLASSES) or not given.isfinite().all():
            failures.append(f"scores of {channels} channels are {tuple(given.shape)}, or not finite")
    return failures


def gradients(make: Make) -> list[str]:
    """Every parameter gets a gradient, finite and not all zero; one that is declared inert may have any, rounding being all."""
    model: Model = make(**INPUT).train()
    is_inert = registry.system_of(model.model_name).is_inert
    F.cross_entropy(model(_images(8)), _labels()).backward()
    return [
        f"{name} gets no gradient, or one that is zero or not finite"
        for name, parameter in model.named_parameters()
        if not is_inert(name)
        and (parameter.grad is None or not parameter.grad.any() or not parameter.grad.isfinite().all())
    ]


def determinism(make: Make) -> list[str]:
    """In evaluation mode the same images give the same bits."""
    model = _eval(make(**INPUT, drop_path_rate=0.5))
    return [] if torch.equal(model(_images(4)), model(_images(4))) else ["two passes over one batch differ"]


def rows(make: Make) -> list[str]:
    """What an image gives does not depend on the others in its batch."""
    model, images = _eval(make(**INPUT)), _images(4)
    alone = torch.cat([model(image) for image in images.split(1)])
    return [] if _close(alone, model(images)) else ["a row alone differs from the row in a batch"]


def saving(make: Make) -> list[str]:
    """A saved and loaded model has the same spec, the same bits as weights, and gives the same scores."""
    model = _eval(make(**INPUT))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = _eval(from_pretrained(folder))
    state = again.state_dict()
    same = all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    same = same and again.spec == model.spec and _close(again(_images(4)), model(_images(4)))
    return [] if same else ["what is loaded is not what was saved"]


def learning(make: Make) -> list[str]:
    """Eight samples are learnt by heart."""
    model: nn.Module = make(**INPUT).train()
    optimizer, images, labels, loss = adamw(model, learning_rate=1e-3), _images(8), _labels(), math.inf
    for _ in range(STEPS):
        optimizer.zero_grad()
        error = F.cross_entropy(model(images), labels)
        loss = error.item()
        if loss < LEARNT:
            return []
        error.backward()
        optimizer.step()
    return [f"after {STEPS} steps on eight samples the loss is {loss:.3g}"]


def drop_path(make: Make) -> list[str]:
    """Stochastic depth drops whole branches in training, by chance, and none in evaluation."""
    plain, dropping = _eval(make(**INPUT)), make(**INPUT, drop_path_rate=0.9)
    dropping.load_state_dict(plain.state_dict())
    images, failures = _images(8), list[str]()
    if not _close(_eval(dropping)(images), plain(images)):
        failures.append("in evaluation mode drop_path_rate changes the scores")
    dropping.train()
    with torch.no_grad():
        if torch.equal(dropping(images), dropping(images)):
            failures.append("in training mode nothing is dropped")
    return failures


def other_sizes(make: Make) -> list[str]:
    """Made for another image it takes that image; made for this one it takes another, or says how to get there."""
    failures: list[str] = []
    size = (2 * SIDE, 3 * SIDE)
    if _eval(make(**{**INPUT, "img_size": size}))(_images(2, 1, size)).shape != (2, CLASSES):
        failures.append(f"made for images of {size} it does not give scores of them")
    try:
        given = _eval(make(**INPUT))(_images(2, 1, size))
    except UsageError as error:
        return (
            failures if "img_size" in str(error) else [*failures, f"the refusal of another size has no remedy: {error}"]
        )
    return failures if given.isfinite().all() else [*failures, f"scores of images of {size} are not finite"]


def features(make: Make) -> list[str]:
    """``features_only`` gives every stage's features, channels last, those that the model has on its way."""
    model, images = _eval(make(**INPUT)), _images(2)
    extractor: FeatureExtractor = make(**INPUT, features_only=True)
    extractor.model.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    with torch.no_grad():
        expected, given = model.stages_of(images)[0], extractor.eval()(images)
    stages = len(getattr(model.spec, "stages", ()) or getattr(model.spec, "blocks", ()))
    shrinking = all(a.shape[1] >= b.shape[1] and a.shape[2] >= b.shape[2] for a, b in pairwise(given))
    same = len(given) == stages and all(_close(a, b) for a, b in zip(given, expected, strict=True))
    shaped = all(f.dim() == 4 and len(f) == 2 for f in given) and given[0].shape[1:3] == (SIDE, SIDE)
    return [] if same and shaped and shrinking else [f"features are {[tuple(f.shape) for f in given]}"]


def classifier(make: Make) -> list[str]:
    """A new head has the new number of scores, and the body stays as it was."""
    model = _eval(make(**INPUT))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    model.reset_classifier(3)
    after, failures = model.state_dict(), list[str]()
    if _eval(model)(_images(2)).shape != (2, 3):
        failures.append("reset_classifier(3) does not give three scores")
    if not all(torch.equal(tensor, after[name]) for name, tensor in before.items()):
        failures.append("reset_classifier changes the body")
    return failures


def prefix(make: Make) -> list[str]:
    """A token mixer takes prefix tokens before its grid, or refuses them as it says it does."""
    model, calls = _eval(make(**INPUT)), dict[str, tuple[Any, ...]]()

    def note(part: Any, given: tuple[Any, ...]) -> None:
        calls[part.name] = (part, *given)

    for module in model.modules():
        if getattr(module, "slot", "") == "token_mixer":
            module.register_forward_pre_hook(note)
    model(_images(1))
    failures: list[str] = []
    for name, (part, x, context) in list(calls.items()):
        grid = context.layout.split(x)[1]
        flat = torch.cat((grid[:, :1, 0], grid.flatten(1, 2)), dim=1)
        layout = Layout(grid=tuple(grid.shape[1:3]), prefix=1)
        try:
            taken = part(flat, dataclasses.replace(context, layout=layout)).shape == flat.shape
        except ValueError:
            taken = False
        if taken == ("prefix" in part.refuses):
            failures.append(f"{name} {'takes' if taken else 'does not take'} a prefix token, but says otherwise")
    return failures


def _eval(model: Model) -> Model:
    return model.eval().requires_grad_(False)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= ROUNDING * b.abs().max())


def _images(count: int, channels: int = 1, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0))


def _labels() -> Tensor:
    return torch.arange(8)


CHECKS: dict[str, Callable[[Make], list[str]]] = {
    check.__name__: check
    for check in (
        *(scores, gradients, determinism, rows, saving, learning),
        *(drop_path, other_sizes, features, classifier, prefix),
    )
}
"""By name; each takes what makes the model and gives what does not hold, in words."""
