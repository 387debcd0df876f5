"""transformers' Llama with our numbers."""

from typing import Any

from torch import nn

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    library, block = transformers(), spec.blocks[0]
    config = library.LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.dim,
        intermediate_size=block.channel_mixer.hidden,
        num_hidden_layers=len(spec.blocks),
        num_attention_heads=block.mixer.kv_heads * block.mixer.group,
        num_key_value_heads=block.mixer.kv_heads,
        head_dim=block.mixer.head_dim,
        rms_norm_eps=spec.norm.eps,
        rope_parameters={"rope_type": "default", "rope_theta": block.mixer.position.base},
        tie_word_embeddings=isinstance(spec.head.linear, core.Shared.Config),
        use_cache=False,
        attn_implementation="eager",
    )
    return unrounded(lambda: library.LlamaForCausalLM(config))
