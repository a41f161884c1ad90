"""For users' own models."""
