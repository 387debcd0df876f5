"""The base of every part: a module made from its configuration, with its axes declared beside it."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from anyformer.core import axes, config, registry
from anyformer.core.errors import UsageError, shown
from anyformer.core.initial import Init


class Part(nn.Module):
    """One mechanism: a module, its configuration and its logical axes.

    A concrete part is written ``class LayerNorm(Norm, name="layer_norm")`` with a nested ``Config``; the children that
    its configuration holds are built by themselves, at the path that they have in the spec.

    Attributes:
        slot: where the part can stand.
        axes: one axis string for every parameter and buffer, linear slots as ``"slot.weight"``.
        definitions: axis -> what it consists of (``"head_dim": "2 half"``).
        reduces: the axes over which a norm, a softmax or another non-linear reduction runs.
        collects: the names that the part hands to ``ctx.collect``.
        fixed: the axes that cannot be cut -> why.
        refuses: what the part cannot do -> why.
        undecayed: its own matrices that weight decay must leave alone, as rates whose zero means something.
    """

    Config: ClassVar[type[config.Config]] = config.Config
    name: ClassVar[str] = "part"
    slot: ClassVar[str] = "any"
    axes: ClassVar[dict[str, str]] = {}
    definitions: ClassVar[dict[str, str]] = {}
    reduces: ClassVar[tuple[str, ...]] = ()
    fixed: ClassVar[dict[str, str]] = {}
    collects: ClassVar[tuple[str, ...]] = ()
    refuses: ClassVar[dict[str, str]] = {}
    undecayed: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Children are made from the configuration, so their types are not known before."""

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            if "Config" not in cls.__dict__:  # a part without fields has a configuration of its own all the same
                cls.Config = type("Config", (cls.Config,), {"__doc__": "Nothing to choose."})
            cls.name = name
            cls.Config.part = cls
            registry.register(cls)

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """Child path -> child axis -> expression over this part's axes, where the names differ."""
        return {}

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if is_node(value):
                setattr(self, field.name, value.build())
            elif isinstance(value, tuple) and all(is_node(item) for item in cast(tuple[Any, ...], value)):
                setattr(self, field.name, nn.ModuleList(item.build() for item in cast(tuple[Any, ...], value)))
            elif value is None:
                setattr(self, field.name, None)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of one of the part's own tensors, as its axes say."""
        return tuple(axes.size(dimension, self.config.size) for dimension in axes.parse(self.axes[tensor]))

    def parameter(self, tensor: str, init: Init) -> nn.Parameter:
        """Make one of the part's own parameters, shaped by its axes and filled by ``init``."""
        parameter = nn.Parameter(torch.empty(self.shape(tensor)))
        init.fill(parameter)
        return parameter

    def adapted(self, tensor: str, source: Tensor, config: Any) -> Tensor:
        """A tensor of the same part under ``config``, changed to fit this one; the base knows no way."""
        raise UsageError(f"{type(self).__name__}.{tensor} cannot be adapted from shape {tuple(source.shape)}")

    def deployed(self) -> "Part":
        """The deploy form, equal to this part in evaluation mode; itself where there is no other.

        It is asked of a copy in float64 whose children have theirs, and which may be changed, configuration included.
        """
        return self

    def scaled(self, scale: Tensor) -> bool:
        """Multiply the output by a number a channel, by way of the weights; False where none of them can take it in."""
        return False


def is_node(value: object) -> bool:
    """Whether a configuration's field holds a child part."""
    return isinstance(value, config.Config)


class Embed(Part):
    """``embed(raw) -> (x, ctx)``: from raw data to features and their context."""

    slot = "embed"


class TokenMixer(Part):
    """``token_mixer(x, ctx) -> x``: moves information between tokens."""

    slot = "token_mixer"


class ChannelMixer(Part):
    """``channel_mixer(x, ctx) -> x``: moves information between the channels of each token."""

    slot = "channel_mixer"


class LinearPart(Part):
    """``linear(x, act=None, add=None) -> act(product) + add``: a weighted matrix product, ``inputs`` to ``outputs``."""

    slot = "linear"


class Norm(Part):
    """``norm(x) -> x``."""

    slot = "norm"


class Residual(Part):
    """``residual(x, branch) -> x``: how a branch joins the stream."""

    slot = "residual"

    def folded(self, branch: Part) -> "Part":
        """What joins the output of ``branch`` when that has taken in the scale; itself where there is none, or it cannot."""
        return self


class Block(Part):
    """``block(x, ctx) -> x``: one layer, the wiring of its slots."""

    slot = "block"


class Down(Part):
    """``down(x, ctx) -> (x, ctx, trace)``: fewer tokens; ``trace`` is what ``up`` needs to undo it."""

    slot = "down"


class Up(Part):
    """``up(x, trace) -> x``: back to the tokens before a ``down``."""

    slot = "up"


class Router(Part):
    """``router(x, ctx) -> Routing``: which expert sees which token."""

    slot = "router"


class Head(Part):
    """``head(x, ctx) -> tensor``, or a named record where there are several outputs."""

    slot = "head"


class Shared(Part, name="shared"):
    """A module used a second time: it is built at its first path, and this node stands for it everywhere else.

    Axes, key maps, checkpoints and parameter counts see the module once.
    """

    class Config(config.Config):
        """``path``: where in the spec the module is built."""

        path: str

    def attach(self, root: nn.Module) -> None:
        """Point at the module; kept out of the module tree, so that its parameters are not listed twice.

        Raises:
            UsageError: where there is no module at the path, or the module would stand for itself.
        """
        path: str = self.config.path
        try:
            target = root.get_submodule(path)
        except AttributeError:
            target = None
        if target is None or any(isinstance(module, Shared) for module in target.modules()):
            raise UsageError(f"shared(path={shown(path)}): no part that is built there can be used a second time")
        self.__dict__["target"] = target

    @property
    def weight(self) -> Tensor:
        """The weight of the module this node stands for."""
        return self.__dict__["target"].weight

    def forward(self, *args: Any) -> Any:
        """Whatever the module at ``path`` does."""
        return self.__dict__["target"](*args)


def filled(config: config.Config, tensors: Mapping[str, Tensor]) -> Part:
    """The part of a resolved configuration with these tensors as its own, in their type and on their device."""
    like = next(iter(tensors.values()))
    part = config.build().to(device=like.device, dtype=like.dtype)
    part.load_state_dict(tensors)
    return part


def build(pattern: config.Config) -> Part:
    """Resolve a pattern and build its module, shared nodes attached. Allocates on torch's default device."""
    root = config.resolve(pattern).build()
    attach_shared(root)
    return root


def attach_shared(root: nn.Module) -> None:
    """Point every shared node of a model at the module that it stands for."""
    for module in root.modules():
        if isinstance(module, Shared):
            module.attach(root)
