"""transformers' BERT with our numbers."""

from typing import Any

from torch import nn

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    library, block = transformers(), spec.blocks[0]
    config = library.BertConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.dim,
        num_hidden_layers=len(spec.blocks),
        num_attention_heads=block.mixer.heads,
        intermediate_size=block.channel_mixer.hidden,
        max_position_embeddings=spec.embed.tokens.context,
        type_vocab_size=spec.embed.kinds,
        layer_norm_eps=block.norm1.eps,
        pad_token_id=None,  # one would have no gradient in the table
        attn_implementation="eager",
    )
    model: Any = unrounded(lambda: library.BertForMaskedLM(config))
    for layer in model.bert.encoder.layer:
        # A bias of the keys adds the same to all logits of a query: its gradient is rounding alone, and is not compared.
        key = layer.attention.self.key
        bias = key.bias.detach()
        del key.bias
        key.register_buffer("bias", bias)
    return model


def stages_and_scores(model: nn.Module, ids: Any) -> list[Any]:
    """What is compared: the features after every block, whose last are the final ones, and the scores."""
    theirs: Any = model
    given = theirs(ids, output_hidden_states=True)
    return [*given.hidden_states[1:], given.logits]
