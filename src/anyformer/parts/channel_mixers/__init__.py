"""What moves information between the channels of a token."""
