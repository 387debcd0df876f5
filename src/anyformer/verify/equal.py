"""Level "equal": a model gives what its official code gives, in outputs, features and gradients, from equal weights."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from anyformer.core import registry
from anyformer.core.model import Model
from anyformer.core.store import dump_weights, key_map
from anyformer.verify.evidence import Evidence
from anyformer.verify.filling import fill, settle, uniform
from anyformer.verify.sensitivity import movements
from anyformer.verify.subjects import subject_of

LIMITS = {"outputs": 1e-9, "features": 1e-9, "input_gradient": 1e-8, "parameter_gradients": 1e-8, "float32": 1e-5}
LEAST_MOVEMENT = 1e-6
SURE_MOVEMENT = 100 * LEAST_MOVEMENT  # in float32, whose rounding moves what is compared by up to about 2e-6


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The largest differences between a model and its oracle at one image size, over the largest reference.

    Attributes:
        size: Height and width, or tokens.
        outputs: Of the scores.
        features: Of the features of the stage that differs most.
        input_gradient: Of the gradient with respect to the input; None where that is whole numbers.
        parameter_gradients: Of the gradient with respect to the parameter that differs most.
        float32: Of scores and features in single precision, as a user runs the model.
        rounding: How far the oracle's own, in single precision, lie from those in double precision: deep models of some
            kinds amplify rounding, and then ours may differ by twice as much.
    """

    size: tuple[int, ...]
    outputs: float
    features: float
    input_gradient: float | None
    parameter_gradients: float
    float32: float
    rounding: float

    def failures(self) -> list[str]:
        """What is above its limit, in words."""
        return [
            f"{what} at {self.size} differs by {getattr(self, what):.1e} of the largest reference, more than {limit:g}"
            for what, limit in {**LIMITS, "float32": max(LIMITS["float32"], 2 * self.rounding)}.items()
            if getattr(self, what) is not None and not getattr(self, what) <= limit
        ]


def equal(name: str) -> Evidence:
    """Compare a model with its oracle at its native size and at another, and measure every parameter's movement.

    Raises:
        UsageError: What the oracle comes with is not installed, or has no such model.
    """
    subject = subject_of(name)
    comparisons = [compare(name, subject.native(name), batch=1), compare(name, subject.other, batch=2)]
    system, moved = registry.system_of(name), movements_of(name)
    inert = {parameter: moved.pop(parameter) for parameter in list(moved) if system.is_inert(parameter)}
    weakest = min(moved, key=lambda parameter: moved[parameter])
    figures = {
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "parameters": len(moved),
        "weakest": {"parameter": weakest, "movement": moved[weakest]},
        **({"inert": dict(system.inert)} if inert else {}),
    }
    failures = [failure for comparison in comparisons for failure in comparison.failures()]
    failures += [
        f"scaling {parameter} moves what is compared by {movement:.1e}, not more than {LEAST_MOVEMENT:g}"
        for parameter, movement in moved.items()
        if not movement > LEAST_MOVEMENT
    ]
    failures += [
        f"scaling {parameter}, which is said to be inert, moves what is compared by {movement:.1e}"
        for parameter, movement in inert.items()
        if movement > LEAST_MOVEMENT
    ]
    return Evidence(figures, tuple(failures))


def movements_of(name: str) -> dict[str, float]:
    """Every parameter's movement: in float32, which is faster, and again in float64 where rounding could be all of it."""
    subject = subject_of(name)
    model, raw = filled(name, subject.other).float(), subject.raw(name, "images", 1, subject.other)
    moved = movements(model, _single(raw))
    doubtful = [parameter for parameter, movement in moved.items() if movement < SURE_MOVEMENT]
    return moved | (movements(model.double(), raw, doubtful) if doubtful else {})


def _single(raw: Tensor) -> Tensor:
    return raw.float() if raw.is_floating_point() else raw


def filled(name: str, size: tuple[int, ...]) -> Model:
    """A model with deterministic weights, float64, in evaluation mode."""
    subject = subject_of(name)
    model = subject.create(name, size).double().eval()
    fill(model)
    settle(model, subject.raw(name, "moments", 2, size))
    return model


def compare(name: str, size: tuple[int, ...], batch: int) -> Comparison:
    """Compare a model with its oracle at one size.

    Both hold the same memory for their weights, and their gradients are compared and dropped one by one as they arise,
    so that the peak is twice the weights in float64 and the activations of one model. Gradients of inert parameters are
    zero but for rounding, on both sides, and are left out.
    """
    subject = subject_of(name)
    ours = filled(name, size)
    theirs = subject.oracle(name, size)
    theirs.load_state_dict(dump_weights(ours, format=subject.format), assign=True)
    if hasattr(theirs, "tie_weights"):
        cast(Any, theirs).tie_weights()  # what was one tensor before is one again
    raw = subject.raw(name, "images", batch, size)

    def reference(model: nn.Module, raw: Tensor) -> list[Tensor]:
        return subject.theirs(name, model, raw)

    our_tensors, our_gradient = _run(ours, subject.ours, raw)
    gradients = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in ours.named_parameters()}
    gradients = key_map(ours, subject.format).dump(gradients)
    ours.zero_grad()
    errors = _compare_gradients(theirs, gradients)
    inert = _inert(ours)
    their_tensors, their_gradient = _run(theirs, reference, raw)

    with torch.no_grad():
        our_singles = subject.ours(ours.float(), _single(raw))
        their_singles = reference(theirs.float(), _single(raw))
    return Comparison(
        size=size,
        outputs=relative_error(our_tensors[-1], their_tensors[-1]),
        features=_worst(our_tensors[:-1], their_tensors[:-1]),
        input_gradient=None
        if our_gradient is None or their_gradient is None
        else relative_error(our_gradient, their_gradient),
        parameter_gradients=max(error for key, error in errors.items() if key not in inert)
        if errors.keys() == {key for key, _ in theirs.named_parameters()}
        else math.inf,
        float32=_worst(our_singles, their_singles),
        rounding=_worst([single.double() for single in their_singles], their_tensors),
    )


def _run(model: Any, pass_: Callable[[Any, Tensor], list[Tensor]], raw: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Features and scores, and the gradient of the input if it has one; those of the parameters are left in them."""
    raw = raw.clone().requires_grad_(raw.is_floating_point())
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel keeps float32 sums for its gradient, whatever the type
        tensors = pass_(model, raw)
        (tensors[-1] * uniform("cotangent", tuple(tensors[-1].shape))).sum().backward()
    return [tensor.detach() for tensor in tensors], raw.grad


def _inert(model: Model) -> set[str]:
    """The oracle's names of the parameters that nothing depends on."""
    is_inert = registry.system_of(model.model_name).is_inert
    marks = {k: torch.tensor(is_inert(k)).expand(p.shape) for k, p in model.named_parameters()}
    return {key for key, mark in key_map(model, subject_of(model.model_name).format).dump(marks).items() if mark.any()}


def _compare_gradients(theirs: nn.Module, ours: dict[str, Tensor]) -> dict[str, float]:
    """The error of each gradient by their name, filled while their backward pass runs."""
    errors: dict[str, float] = {}
    for name, parameter in theirs.named_parameters():

        def compare_and_drop(parameter: Tensor, name: str = name) -> None:
            errors[name] = relative_error(ours[name], cast(Tensor, parameter.grad))
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(compare_and_drop)
    return errors


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference over the largest absolute reference; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True))
