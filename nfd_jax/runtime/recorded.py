"""Recorded: what a run has seen so far, in pieces, as checkpoints keep it and results are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nfd_jax.dynamics.base import Record
from nfd_jax.dynamics.problem import Data


class Recorded(NamedTuple):
    """What a run has recorded so far: arrays by name along training, in pieces in order."""

    batch: list[dict[str, np.ndarray]]  # `outputs` and `loss` of the batch of every step, before its update
    train: list[dict[str, np.ndarray]]  # those of evaluations
    held_out: list[dict[str, np.ndarray]]
    observed: list[dict[str, np.ndarray]]  # before every update, and after the last; empty where nothing is observed
    ranks: list[dict[str, np.ndarray]]  # after the last update: most directions of a matrix; empty for the exact law

    def add(self, seen: Record, count: int, data: Data, step: int) -> None:
        """The first passes of a chunk that begins at a step. One after the last step has seen no batch, but what an
        evaluation would have where batches are full."""
        observed = {name: np.array(array[:count]) for name, array in seen.observed.items()}
        self.observed.extend([observed] if observed else [])
        seen_by = self.batch if step < data.steps else self.train if data.full_batch else None
        if seen_by is not None:
            seen_by.append({"outputs": np.array(seen.outputs[:count]), "loss": np.array(seen.loss[:count])})

    def since(self, done: Sequence[int]) -> dict[str, np.ndarray]:
        """The pieces beyond so many of each kind, for a checkpoint: every array by kind, number and name."""
        return {
            f"{kind}/{number:06d}/{name}": array
            for kind, pieces, first in zip(self._fields, self, done, strict=True)
            for number, piece in enumerate(pieces[first:], first)
            for name, array in piece.items()
        }

    def results(self, *, full_batch: bool) -> dict[str, np.ndarray]:
        """Arrays along training by the names that they have in a trajectory. Outputs of full batches are those that
        training saw, and the last evaluation."""
        batch, held_out = joined(self.batch), joined(self.held_out)
        train = joined([*self.batch, *self.train] if full_batch else self.train)
        return {
            **train,
            "batch_loss": batch["loss"],
            **{f"held_out_{name}": array for name, array in held_out.items()},
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Recorded:
        """From what `since` gave, of a whole run."""
        recorded, pieces = cls([], [], [], [], []), {}
        for address in sorted(arrays):
            if "/" in address:
                kind, number, name = address.split("/", 2)
                pieces.setdefault((kind, number), {})[name] = arrays[address]
        for (kind, _), piece in pieces.items():
            getattr(recorded, kind).append(piece)
        return recorded


def joined(pieces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Every array along training, from its pieces."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else ())}
