"""A literal transcription of Gated DeltaNet: :mod:`anyformer.verify.oracle_of.linear_attention_models`."""

from anyformer.verify.oracle_of.linear_attention_models import oracle, stages_and_scores

__all__ = ["oracle", "stages_and_scores"]
