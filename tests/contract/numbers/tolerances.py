"""The tolerances of the numbers contract and what is excused from it, all of it here: a change is a decision to review.

Distances are the largest difference over the largest reference value; a NaN on either side is further than any tolerance.
"""

import torch

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6}
"""Between two ways of getting the same numbers in one type: in another batch, from another layout, beside padding."""

SINGLE = 1e-5
"""Between float32 and float64: what rounding does within one part."""

EXCUSED: dict[tuple[str, str], str] = {
    (
        "batches",
        "capped_experts",
    ): "an expert multiplies as many rows as it has tokens, and float32 rounds by that",
    ("padding", "cross_covariance_attention"): "its weights are sums over all tokens of an image, which no embed masks",
}
"""(check, part) -> why the check is not asked of the part. What a part says itself in ``refuses`` is not repeated here."""

KNOWN: dict[tuple[str, str], str] = {}
"""(check, part) -> what is wrong with the part and still to be mended; a check that holds again makes its entry an error."""
