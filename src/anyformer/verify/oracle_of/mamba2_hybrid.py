"""transformers' Mamba-2 and Nemotron-H with our numbers: the second has the layers of Mamba-2-Hybrid one by one."""

from typing import Any, cast

from torch import Tensor, nn

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of import transformers, unrounded


def oracle(name: str) -> nn.Module:
    """The reference model of a name of ours. Raises UsageError where transformers is not installed."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    library = transformers()
    folder, values = next((f, v) for f in registry.system_of(name).folders if (v := f.write(spec)) is not None)
    if folder.model_type == "mamba2":
        config = library.Mamba2Config(**values, chunk_size=16, use_cache=False)
    else:
        config = library.NemotronHConfig(**values, chunk_size=16, use_cache=False, attn_implementation="eager")
    return unrounded(lambda: getattr(library, folder.architecture)(config))


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Features after every block but the last, the final ones, normalised, and the scores."""
    theirs = cast(Any, model)
    given = theirs(ids, output_hidden_states=True)
    hidden = given.hidden_states  # Mamba-2's begin after the first block, Nemotron-H's before it
    blocks = hidden[:-2] if theirs.config.model_type == "mamba2" else hidden[1:-1]
    return [*blocks, hidden[-1], given.logits]
