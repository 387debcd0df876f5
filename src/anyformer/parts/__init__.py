"""Mechanisms that two systems or more use, by slot."""
