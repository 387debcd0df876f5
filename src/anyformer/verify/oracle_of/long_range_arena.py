"""Of Long Range Arena there is no reference model to build; its encoder is written out in the system's unit test."""

ABSENT = "no weights of these encoders are public, and the official code, of flax.deprecated, is not run here"
