"""transformers' Jamba with our numbers."""

from typing import Any

from torch import nn

from anyformer import core
from anyformer.core import registry
from anyformer.parts.channel_mixers.experts import Experts
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.parts.token_mixers.mamba import Mamba
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    library = transformers()
    mixers = [block.mixer for block in spec.blocks]
    channels = [block.channel_mixer for block in spec.blocks]
    attention = next(mixer for mixer in mixers if mixer.part is GroupedQueryAttention)
    mamba = next(mixer for mixer in mixers if mixer.part is Mamba)
    experts = next(mixer for mixer in channels if mixer.part is Experts)
    attention_period, attention_offset = _regular([mixer.part is GroupedQueryAttention for mixer in mixers])
    expert_period, expert_offset = _regular([mixer.part is Experts for mixer in channels])
    config = library.JambaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.dim,
        intermediate_size=experts.experts[0].hidden,
        num_hidden_layers=len(spec.blocks),
        num_attention_heads=attention.kv_heads * attention.group,
        num_key_value_heads=attention.kv_heads,
        rms_norm_eps=spec.norm.eps,
        attn_layer_period=attention_period,
        attn_layer_offset=attention_offset,
        expert_layer_period=expert_period,
        expert_layer_offset=expert_offset,
        num_experts=experts.count,
        num_experts_per_tok=experts.router.k,
        mamba_d_state=mamba.state,
        mamba_d_conv=mamba.convolution.kernel,
        mamba_expand=mamba.inner // spec.dim,
        mamba_dt_rank=mamba.step_rank,
        tie_word_embeddings=False,
        pad_token_id=None,  # one would have no gradient in the table
        use_cache=False,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return unrounded(lambda: library.JambaForCausalLM(config))


def _regular(marks: list[bool]) -> tuple[int, int]:
    """Every how many layers a mark stands, and the first that has it; a single one comes back after all of them."""
    places = [index for index, mark in enumerate(marks) if mark]
    return (places[1] - places[0] if len(places) > 1 else len(marks)), places[0]
