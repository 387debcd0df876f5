"""transformers' Switch Transformers with our numbers."""

from typing import Any, cast

from torch import Tensor, nn

from anyformer import core
from anyformer.core import registry
from anyformer.parts.channel_mixers.capped_experts import CappedExperts
from anyformer.skeletons.encoder_decoder import Texts
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    library = transformers()
    blocks = spec.encoder.blocks
    mixer, dense, routed = blocks[0].mixer, blocks[0].channel_mixer, blocks[1].channel_mixer
    sparse = [sum(b.channel_mixer.part is CappedExperts for b in side.blocks) for side in (spec.encoder, spec.decoder)]
    config = library.SwitchTransformersConfig(
        vocab_size=spec.vocabulary,
        d_model=spec.decoder.dim,
        d_kv=mixer.head_dim,
        d_ff=dense.hidden,
        expert_capacity=routed.capacity,
        num_layers=len(blocks),
        num_sparse_encoder_layers=sparse[0],
        num_decoder_layers=len(spec.decoder.blocks),
        num_sparse_decoder_layers=sparse[1],
        num_heads=mixer.kv_heads,
        num_experts=routed.count,
        router_jitter_noise=routed.router.jitter,
        relative_attention_num_buckets=mixer.position.buckets,
        relative_attention_max_distance=mixer.position.max_distance,
        layer_norm_epsilon=spec.decoder.norm.eps,
        pad_token_id=None,  # one would have no gradient in the table
        decoder_start_token_id=0,
        use_cache=False,
        attn_implementation="eager",
    )
    return unrounded(lambda: library.SwitchTransformersForConditionalGeneration(config))


def stages_and_scores(model: nn.Module, raw: Texts) -> list[Tensor]:
    """What leaves the encoder and every block of the decoder but the last; the final features and the scores."""
    given = cast(Any, model)(
        input_ids=raw.source,
        attention_mask=None if raw.source_keep is None else raw.source_keep.long(),
        decoder_input_ids=raw.target,
        use_cache=False,
        output_hidden_states=True,
    )
    return [given.encoder_last_hidden_state, *given.decoder_hidden_states[1:], given.logits]
