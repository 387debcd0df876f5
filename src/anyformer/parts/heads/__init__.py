"""From features to scores."""
