"""transformers' GPT-Neo with our numbers, and with masks of blocks in its sparse layers."""

from typing import Any

import torch
from torch import Tensor, nn

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    library, first = transformers(), spec.blocks[0]
    config = library.GPTNeoConfig(
        vocab_size=spec.vocabulary,
        max_position_embeddings=spec.embed.context,
        hidden_size=spec.dim,
        num_layers=len(spec.blocks),
        attention_types=[[["global"], len(spec.blocks)]],
        num_heads=first.mixer.kv_heads,
        intermediate_size=first.channel_mixer.hidden,
        activation_function="gelu_new",
        layer_norm_epsilon=spec.norm.eps,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="eager",
    )
    model: Any = unrounded(lambda: library.GPTNeoForCausalLM(config))
    for layer, block in zip(model.transformer.h, spec.blocks, strict=True):
        if hasattr(block.mixer, "block"):
            sees = layer.attn.attention
            sees.bias = _blocks(spec.embed.context, block.mixer.block, block.mixer.before, sees.bias.device)
    return model


def _blocks(tokens: int, block: int, before: int, device: torch.device) -> Tensor:
    """Who sees whom: (1, 1, tokens, tokens), queries by keys."""
    place = torch.arange(tokens, device=device)
    apart = place[:, None] // block - place // block
    return ((apart <= before) & (place <= place[:, None]))[None, None]
