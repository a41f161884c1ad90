"""What a study has still to measure, and about how long that takes; nothing is measured for it or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfd_jax.runtime.parts import Part
from nfd_jax.studies._study import Cell, Study, grid, record_of, sized, told_apart


@dataclass(frozen=True, eq=False)
class Missing:
    """The cells of a part of a study that are not recorded yet.

    Args:
        study: The study.
        part: Of its cells.
        cells: Of every missing one the arguments that differ from cell to cell.
        costs: Theirs, in the study's own unit.
        count: Of all cells of the part.
        rates: Seconds per unit of cost of the cells of the study that are recorded, in this part or another.
        mean_rate: All their seconds over all their costs; None where none is recorded.
        devices: Where they were measured.
    """

    study: Study
    part: Part
    cells: Sequence[Cell]
    costs: Sequence[float]
    count: int
    rates: Sequence[float]
    mean_rate: float | None
    devices: Sequence[str]

    @property
    def seconds(self) -> float | None:
        """About what the missing cells take, compilation included; None where no recorded cell says."""
        return None if self.mean_rate is None else self.mean_rate * sum(self.costs)

    def table(self) -> str:
        """A line a cell, with its share of the cost or about its seconds, and a line for all."""
        of_part = "" if self.part.count == 1 else f" of {self.part}"
        head = f"{self.study.title}: {len(self.cells)} of {self.count} cells{of_part} to measure"
        if not self.cells:
            return head
        names = [", ".join(f"{name} {value}" for name, value in cell.items()) for cell in self.cells]
        width, total = max(map(len, names)), sum(self.costs)
        shares = [f"{cost / total:7.1%} of the cost" if total else "" for cost in self.costs]
        if self.mean_rate is not None:
            shares = [
                f"{share}, about {clock(cost * self.mean_rate)}" for share, cost in zip(shares, self.costs, strict=True)
            ]
        lines = [f"  {name:<{width}}  {share}" for name, share in zip(names, shares, strict=True)]
        return "\n".join([head, *lines, f"  {self._total()}"])

    def _total(self) -> str:
        if self.seconds is None:
            return "no cell is recorded with its seconds: costs are relative"
        least, most = (clock(rate * sum(self.costs)) for rate in (min(self.rates), max(self.rates)))
        by = f"{len(self.rates)} recorded cells on {' and '.join(self.devices)}"
        return f"together about {clock(self.seconds)} by {by} ({least} to {most} by the fastest and the slowest)"


def missing(
    study: Study,
    scale: str = "laptop",
    *,
    folder: str | Path = "results/studies",
    sizes: Mapping[str, Any] | None = None,
    part: Part | str | None = None,
) -> Missing:
    """What `run` with these arguments would measure, and about how long that takes, by recorded cells of this study.

    Raises ValueError or TypeError as `run` does, for records that are not whole too.
    """
    cells = grid(study, sized(study, scale, sizes))
    costs, chosen = [float(study.cost(cell)) for cell in cells], Part.of(part)
    own, absent, seconds, done = chosen.places(costs), [], [], []
    devices = set()
    for place, cell in enumerate(cells):
        record = record_of(study, folder, cell)
        if record.read() is None:
            absent += [place] if place in own else []
        elif costs[place] > 0 and "seconds" in record.made:
            seconds.append(float(record.made["seconds"]))
            done.append(costs[place])
            devices.add(str(record.made["device"]))
    named = told_apart(cells)
    return Missing(
        study,
        chosen,
        [named[place] for place in absent],
        [costs[place] for place in absent],
        len(own),
        [each / cost for each, cost in zip(seconds, done, strict=True)],
        sum(seconds) / sum(done) if done else None,
        sorted(devices),
    )


def clock(seconds: float) -> str:
    """Some `seconds` for people, to two digits or so."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
