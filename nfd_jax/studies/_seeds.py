"""Seeds of the cells of a grid: of their own for every place, or shared out in halves."""

from __future__ import annotations

import zlib

from nfd_jax._checks import positive_int


def own_seeds(count: int, *place: object) -> range:
    """Seeds of one place of a grid, so that no two places share random numbers and their errors are independent."""
    first = zlib.crc32(repr(place).encode()) >> 2  # of 30 bits: places overlap once in a million
    return range(first, first + count)


def halved(name: str, seeds: int) -> int:
    """`seeds` where both halves, of which one chooses a rate and the other judges it, have two for a standard error."""
    return positive_int(f"{name} (one half chooses the rate, the other judges it)", seeds, minimum=4)
