"""What moves information between tokens."""
