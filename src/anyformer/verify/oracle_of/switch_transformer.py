"""transformers' Switch Transformers with our numbers."""

from typing import Any, cast

from torch import Tensor, nn

from anyformer import core
from anyformer.core import registry
from anyformer.skeletons.encoder_decoder import Texts
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    system = registry.system_of(name)
    values: Any = system.folders[0].write(core.resolve(system.pattern(name)))
    library = transformers()
    config = library.SwitchTransformersConfig(**values, use_cache=False, attn_implementation="eager")
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
