"""The wiring: the only place that decides what follows what."""
