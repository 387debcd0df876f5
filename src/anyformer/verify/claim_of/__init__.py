"""The experiments behind the claims, a module a slug: ``CLAIM``, a :class:`anyformer.verify.claim.Claim`."""
