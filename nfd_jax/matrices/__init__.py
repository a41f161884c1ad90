"""Gaussian matrices as something to query: revealed only where asked, or dense (theory sections 4 and 4b)."""
