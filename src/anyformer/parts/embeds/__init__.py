"""From raw data to features."""
