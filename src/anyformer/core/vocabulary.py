"""The names that a part, a skeleton or a system is written with: `from anyformer import core`, then `core.Config`."""

from anyformer.core.config import Config, bound, derived, edit, linear, resolve, walk
from anyformer.core.context import Collected, Context, Layout, State, grid_of
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.folders import Folder, Settings
from anyformer.core.initial import ONES, ZEROS, Init
from anyformer.core.numbers import pair, ramp
from anyformer.core.paper import Paper, Published
from anyformer.core.part import (
    Block,
    ChannelMixer,
    Down,
    Embed,
    Head,
    LinearPart,
    Norm,
    Part,
    Residual,
    Router,
    Shared,
    TokenMixer,
    Up,
    build,
)

__all__ = [
    "ONES",
    "ZEROS",
    "AnyformerError",
    "Block",
    "ChannelMixer",
    "Collected",
    "Config",
    "Context",
    "Down",
    "Embed",
    "Folder",
    "Head",
    "Init",
    "Layout",
    "LinearPart",
    "Norm",
    "Paper",
    "Part",
    "Published",
    "Residual",
    "Router",
    "Settings",
    "Shared",
    "State",
    "TokenMixer",
    "Up",
    "UsageError",
    "bound",
    "build",
    "derived",
    "edit",
    "grid_of",
    "linear",
    "pair",
    "ramp",
    "resolve",
    "walk",
]
