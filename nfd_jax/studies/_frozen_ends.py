"""The source's network of claim 16: h <- sqrt(1 - b^2) h + b W relu(h), He-normal W, ends frozen; b = 1 is an MLP."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

ARCHITECTURES = {"mlp": 0.0, "resnet": -0.5}  # b = L^power


def branch_of(architecture: str, depth: int) -> float:
    """Branch scale b."""
    return float(depth) ** ARCHITECTURES[architecture]


class Ends(NamedTuple):
    """Frozen parts: first features are `embed x`, outputs `multiplier / n` times `readout . h`."""

    embed: Any  # (n, d), N(0, 1/d)
    readout: Any  # (n,), N(0, 1)
    multiplier: Any


def initial(key: Any, depth: int, width: int, inputs: int) -> tuple[Any, Ends]:
    """Hidden matrices `(L, n, n)` and ends; muP's multiplier is 1."""
    keys = jax.random.split(key, 3)
    hidden = jax.random.normal(keys[0], (depth, width, width)) * math.sqrt(2 / width)
    embed = jax.random.normal(keys[1], (width, inputs)) / math.sqrt(inputs)
    return hidden, Ends(embed, jax.random.normal(keys[2], (width,)), jnp.ones(()))


def forward(hidden: Any, ends: Ends, x: Any, branch: float) -> tuple[Any, Any]:
    """Last features `(P, n)` and outputs `(P,)` of inputs `(P, d)`."""

    def block(h: Any, matrix: Any) -> tuple[Any, None]:
        return math.sqrt(1 - branch**2) * h + branch * jax.nn.relu(h) @ matrix.T, None

    last, _ = lax.scan(block, x @ ends.embed.T, hidden)
    return last, last @ ends.readout * (ends.multiplier / ends.readout.size)


def balanced(hidden: Any, ends: Ends, x: Any, branch: float) -> tuple[Any, Ends]:
    """Matrices times the factors with which features have a root mean square of exactly 1 on `x` behind every block.

    With |h|^2 = n before, that of sqrt(1 - b^2) h + s v is quadratic in the factor s of the branch v = b W relu(h).
    """
    kept = math.sqrt(1 - branch**2)

    def block(h: Any, matrix: Any) -> tuple[Any, Any]:
        added = branch * jax.nn.relu(h) @ matrix.T
        along, square = kept * jnp.mean(h * added), jnp.mean(added**2)
        factor = (jnp.sqrt(along**2 + square * branch**2) - along) / square
        return kept * h + factor * added, factor * matrix

    first = x @ ends.embed.T
    size = jnp.sqrt(jnp.mean(first**2))
    _, found = lax.scan(block, first / size, hidden)
    return found, ends._replace(embed=ends.embed / size)
