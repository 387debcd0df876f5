"""transformers' Llama with our numbers."""

from typing import Any

from torch import nn

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    values: Any = registry.system_of(name).folders[0].write(spec)
    library = transformers()
    config = library.LlamaConfig(**values, use_cache=False, attn_implementation="eager")
    return unrounded(lambda: library.LlamaForCausalLM(config))
