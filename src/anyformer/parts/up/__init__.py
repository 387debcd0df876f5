"""Parts that bring tokens back."""
