"""One training step of a network: explicit passes over matrices, and autodiff (theory sections 2 and 3)."""
