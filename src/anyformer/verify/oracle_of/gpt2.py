"""transformers' GPT-2 with our numbers."""

from typing import Any

from torch import nn

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    library, block = transformers(), spec.blocks[0]
    config = library.GPT2Config(
        vocab_size=spec.vocabulary,
        n_positions=spec.embed.context,
        n_embd=spec.dim,
        n_layer=len(spec.blocks),
        n_head=block.mixer.kv_heads,
        n_inner=block.channel_mixer.hidden,
        layer_norm_epsilon=block.norm1.eps,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="eager",
    )
    return unrounded(lambda: library.GPT2LMHeadModel(config))
