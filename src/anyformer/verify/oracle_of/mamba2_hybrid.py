"""transformers' Mamba-2 and Nemotron-H with our numbers: the second has the layers of Mamba-2-Hybrid one by one."""

from typing import Any, cast

from torch import Tensor, nn

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of import transformers, unrounded

LEAST_STEP = 1e-30  # Nemotron-H's steps have a floor, those of Mamba-2-Hybrid have none
LAYERS = {"mamba2": "linear_attention", "grouped_query_attention": "full_attention"}


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    library = transformers()
    mixers: list[Any] = [getattr(block, "mixer", None) for block in spec.blocks]
    kinds = [LAYERS[mixer.part.name] if mixer else "mlp" for mixer in mixers]
    mamba = mixers[0]
    sizes = {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.dim,
        "n_groups": mamba.groups,
        "conv_kernel": mamba.convolution.kernel,
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": isinstance(spec.head.linear, core.Shared.Config),
        "chunk_size": 16,
        "use_cache": False,
    }
    if set(kinds) == {"linear_attention"}:
        config = library.Mamba2Config(
            **sizes,
            num_hidden_layers=len(kinds),
            num_heads=mamba.heads,
            head_dim=mamba.p,
            state_size=mamba.state,
            expand=mamba.heads * mamba.p // spec.dim,
        )
        return unrounded(lambda: library.Mamba2ForCausalLM(config))
    attention, perceptron = mixers[kinds.index("full_attention")], spec.blocks[kinds.index("mlp")].channel_mixer
    config = library.NemotronHConfig(
        **sizes,
        layers_block_type=kinds,
        mamba_num_heads=mamba.heads,
        mamba_head_dim=mamba.p,
        ssm_state_size=mamba.state,
        num_attention_heads=attention.kv_heads * attention.group,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        intermediate_size=perceptron.hidden,
        mlp_hidden_act=perceptron.activation,
        time_step_min=LEAST_STEP,
        attn_implementation="eager",
    )
    return unrounded(lambda: library.NemotronHForCausalLM(config))


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Features after every block but the last, the final ones, normalised, and the scores."""
    theirs = cast(Any, model)
    given = theirs(ids, output_hidden_states=True)
    hidden = given.hidden_states  # Mamba-2's begin after the first block, Nemotron-H's before it
    blocks = hidden[:-2] if theirs.config.model_type == "mamba2" else hidden[1:-1]
    return [*blocks, hidden[-1], given.logits]
