"""Independent seeds from one: every random stream is a pure function of the run's seed and of where it is used."""

import hashlib


def derive_seed(seed: int, *place: str | int) -> int:
    """A 63-bit seed for one place of a run, unrelated to the seed of any other place.

    Args:
        seed: The run's seed.
        place: What the stream is for, such as ``("order", epoch)``.

    Returns:
        A number in ``[0, 2**63)``, the same on every machine and with every version of every library.
    """
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
