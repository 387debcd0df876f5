"""Where tokens stand."""
