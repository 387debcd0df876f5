"""Of Long Range Arena there is no reference model to build."""

ABSENT = (
    "there are no official weights of these encoders, and the official code is of a library that is not kept any more"
)
