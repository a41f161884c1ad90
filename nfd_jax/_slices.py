"""Parts of arrays at traced places, which are counted from the start: jax's own functions also take negative ones, and
compare, add and select for it at every index of every slice, a sixth of all that a step of training was made of."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Index

take = partial(lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False)  # one row, or one matrix
put = partial(lax.dynamic_update_index_in_dim, axis=0, allow_negative_indices=False)
take_rows = partial(lax.dynamic_slice_in_dim, allow_negative_indices=False)  # several in a row
put_rows = partial(lax.dynamic_update_slice_in_dim, axis=0, allow_negative_indices=False)
take_block = partial(lax.dynamic_slice, allow_negative_indices=False)  # along all axes
put_block = partial(lax.dynamic_update_slice, allow_negative_indices=False)


def indices(*places: Index | int) -> tuple[Index, ...]:
    """Places in numbers of one type, such as where a block starts."""
    return tuple(jnp.asarray(place, jnp.int32) for place in places)
