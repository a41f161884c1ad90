"""Parts: the cells of a grid divided over processes that know nothing of each other but how many they are.

Each works out the same division from the costs of all cells: the dearest first, each to the part that has least so far.
A part makes its own cells and no others, and what is to be concluded from all of them waits until all are there.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfd_jax._checks import MOST, positive_int

ARRAY = "SLURM_ARRAY_TASK_"  # variables of an array job: ID, MIN, MAX, COUNT and STEP
TASK = f"{ARRAY}ID"
ALL, SLURM = "all", "slurm"
WANTED = f"'k/N' with k from 1 to N, {SLURM!r} (the part of this SLURM array task) or {ALL!r}"


class Incomplete(Exception):  # noqa: N818 (nothing went wrong)
    """A part is done, and cells of other parts are not there yet: nothing can be concluded so far."""


@dataclass(frozen=True)
class Part:
    """Part `index`, from 1, of `count`."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        positive_int("part (its N)", self.count, maximum=MOST)
        if not 1 <= self.index <= self.count:
            raise ValueError(f"part must be {WANTED}, got '{self.index}/{self.count}'")

    @classmethod
    def of(cls, given: Any, environment: Mapping[str, str] = os.environ) -> Part:
        """The part that `given` says, a Part or a string; everything where it is None or 'all', or 'slurm' outside an
        array job. ValueError or TypeError for anything else."""
        if isinstance(given, Part):
            return given
        if given is not None and not isinstance(given, str):
            raise TypeError(f"part must be {WANTED}, got {given!r} of type {type(given).__name__}")
        if given in (None, ALL):
            return cls()
        if given == SLURM:
            return cls._of_array(environment) if TASK in environment else cls()
        if (found := re.fullmatch(r"(\d{1,9})/(\d{1,9})", given)) is None:
            raise ValueError(f"part must be {WANTED}, got {given!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def _of_array(cls, environment: Mapping[str, str]) -> Part:
        """That of this task of an array job, whose numbers are evenly spaced."""
        said = {name: environment.get(f"{ARRAY}{name}") for name in ("ID", "MIN", "MAX", "COUNT", "STEP")}
        found = {name: int(text) for name, text in said.items() if text is not None and re.fullmatch(r"\d+", text)}
        places = range(found.get("MIN", 0), found.get("MAX", -1) + 1, max(found.get("STEP", 1), 1))
        if len(places) != found.get("COUNT") or found.get("ID") not in places:
            shown = ", ".join(f"{ARRAY}{name}={text}" for name, text in said.items())
            raise ValueError(
                f"part {SLURM!r} needs an array of evenly spaced numbers, such as --array=1-8 or 0-14:2, got {shown}; "
                f"say which part this is, k/N, or {ALL!r}"
            )
        return cls(places.index(found["ID"]) + 1, len(places))

    def __str__(self) -> str:
        return f"part {self.index} of {self.count}"

    def places(self, costs: Sequence[float]) -> set[int]:
        """Those of its cells, of all with these costs."""
        loads = [(0.0, part, 0) for part in range(1, self.count + 1)]  # the loads, then whose, then of how many cells
        own = set()
        for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
            load, part, cells = loads[0]
            heapq.heapreplace(loads, (load + costs[place], part, cells + 1))
            if part == self.index:
                own.add(place)
        return own

    def turned(self, by: int) -> Part:
        """The part that many further on, after the last the first: so that of several grids the dearest cells are not
        all of one part."""
        return Part((self.index - 1 + by) % self.count + 1, self.count)
