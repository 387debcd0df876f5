"""transformers' Mamba with our numbers."""

from typing import Any, cast

from torch import Tensor, nn

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    values: Any = registry.system_of(name).folders[0].write(spec)
    library = transformers()
    config = library.MambaConfig(**values, use_mambapy=False, use_cache=False)
    return unrounded(lambda: library.MambaForCausalLM(config))


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Features after every block but the last, the final ones, normalised, and the scores."""
    given = cast(Any, model)(ids, output_hidden_states=True)
    *blocks, _, final = given.hidden_states  # theirs begin after the first block, not before it
    return [*blocks, final, given.logits]
