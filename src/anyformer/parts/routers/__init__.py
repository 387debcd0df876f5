"""Routers: which expert sees which token."""
