"""Convolutions on features, and what is made of them."""
