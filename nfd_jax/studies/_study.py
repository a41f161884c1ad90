"""Study: a claim made runnable. What studies share is here: sizes, cells that are never run twice, and reports.

A study is a grid of cells. `measure` turns the arguments of one cell into labelled arrays, which are recorded at once,
under a name made of what decides them: the arguments, the revisions of the study and of the numerical core, jax and its
settings. A run that was killed, or is asked for more, measures only the cells that are missing; records of another
configuration have other names, so nothing is ever mixed, and processes with one folder share the cells. `conclude` and
`draw` see all cells of a run and nothing else.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from nfd_jax import activations
from nfd_jax._checks import LARGEST, MOST, boolean, finite_float, folder_path, one_of, positive_int
from nfd_jax.io import records
from nfd_jax.runtime.files import writable_folder
from nfd_jax.runtime.identity import identity
from nfd_jax.runtime.parts import Part
from nfd_jax.runtime.store import Record, shared
from nfd_jax.statistics import Sampled
from nfd_jax.studies import _findings as conclusions
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding
from nfd_jax.studies._panels import Map, Panel
from nfd_jax.verdict import Verdict

if TYPE_CHECKING:
    from nfd_jax.io.plotting import Figure

SCALES = ("smoke", "laptop", "accelerator")
SMOKE = "smoke scale: these sizes are too small to say anything about the claim"
MANY = 4  # cells that a line names

PADDING = ("capacity",)  # arguments for which programs are larger, and numbers of one law: evenly spread ones count it

Cell = Mapping[str, Any]  # arguments of `measure`, each of a type that JSON knows
Arrays = Mapping[str, Any]  # by name, `(axes, values)` as xarray takes them, or a number


@dataclass(frozen=True, eq=False)
class Study:
    """One claim.

    Args:
        name: On the command line, and of its folder.
        claim: What its source states.
        sizes: A frozen dataclass of sizes by scale: all of `SCALES`, or some.
        cells: The grid of these sizes: what differs from cell to cell.
        measure: The labelled arrays of one cell. Pure: what it returns depends on its arguments alone. Arguments that a
            cell leaves out are the sizes of the same name.
        conclude: Findings of all cells.
        draw: Panels of all cells; without any there is no figure.
        number: Of the claim (theory section 7), where it has one.
        source: Where it is stated.
        setting: What is run here. Where the source's own setting is not fully known, it says so.
        cost: Of a cell, in any unit, for the time left.
        revision: Of `measure`. Raise it with any change after which the same arguments give other numbers.
        least: How many entries its fits need of a size that is a grid, by name, where one is too few.
    """

    name: str
    claim: str
    sizes: Mapping[str, Any]
    cells: Callable[[Any], Sequence[Cell]]
    measure: Callable[..., Arrays]
    conclude: Callable[[Results], Sequence[Finding]]
    draw: Callable[[Results], Sequence[Panel | Map]] = lambda results: ()
    number: int | None = None
    source: str = ""
    setting: str = ""
    cost: Callable[[Cell], float] = lambda cell: 1.0
    revision: int = 1
    least: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Number and name."""
        return self.name if self.number is None else f"{self.number} {self.name}"


def told_apart(cells: Sequence[Cell]) -> list[Cell]:
    """Of every cell the arguments that differ from cell to cell."""
    shared = {name for name, value in cells[0].items() if all(cell.get(name) == value for cell in cells)}
    return [{name: value for name, value in cell.items() if name not in {*shared, *PADDING}} for cell in cells]


@dataclass(frozen=True, eq=False)
class Results:
    """The cells of a run with their records, in the order of the grid."""

    sizes: Any
    cells: Sequence[tuple[Cell, xr.Dataset]]

    def where(self, **arguments: Any) -> Results:
        """The cells with these arguments."""
        chosen = [(cell, record) for cell, record in self.cells if arguments.items() <= dict(cell).items()]
        return Results(self.sizes, chosen)

    def one(self, **arguments: Any) -> xr.Dataset:
        """The record of the only cell with these arguments."""
        chosen = self.where(**arguments).cells
        if len(chosen) != 1:
            raise LookupError(f"{len(chosen)} cells have the arguments {arguments}")
        return chosen[0][1]

    def diverged(self) -> list[Cell]:
        """The cells in whose record some number is not finite, each by the arguments that differ from cell to cell."""
        named = told_apart([cell for cell, _ in self.cells])
        return [
            name
            for name, (_, record) in zip(named, self.cells, strict=True)
            if any(not np.isfinite(each.values).all() for each in record.values() if each.dtype.kind == "f")
        ]

    def along(self, argument: str) -> Iterator[tuple[Any, xr.Dataset]]:
        """Every value of an argument with its record, in the order of the grid."""
        return ((cell[argument], record) for cell, record in self.cells)

    def curve(self, argument: str, measure: Callable[[xr.Dataset], Sampled]) -> Curve:
        """What `measure` makes of the records along an argument, of those that have it."""
        found = [(value, measure(record)) for value, record in self.along(argument) if value is not None]
        return Curve.of([value for value, _ in found], [sampled for _, sampled in found])


@dataclass(frozen=True, eq=False)
class Report:
    """What a study found at one scale: `findings`, `results` of all cells, `table()`, `figure()`, `save(folder)`."""

    study: Study
    scale: str
    results: Results
    findings: tuple[Finding, ...]

    def table(self) -> str:
        """The claim, the setting, and every finding with its verdict."""
        lines = conclusions.table(self.findings).splitlines()
        return "\n".join([*self.heading(len(lines[0])), *lines])

    def heading(self, width: int) -> list[str]:
        """The claim as its source states it, and the setting in which it was run, in lines of this width."""
        study = self.study
        claim = f"{study.title}{f' ({study.source})' if study.source else ''}: {study.claim}"
        below = [*([f"run here: {study.setting}"] if study.setting else []), *self.warnings()]
        lines = [f"  {line}" for text in below for line in textwrap.wrap(text, width - 2)]
        return [*textwrap.wrap(claim, width), *lines]

    def warnings(self) -> list[str]:
        """What has to be known before any verdict is read: that sizes are too small, and where something diverged."""
        cells = self.results.diverged()
        where = "; ".join(", ".join(f"{key} {value}" for key, value in cell.items()) for cell in cells[:MANY])
        rest = f"; and {len(cells) - MANY} more" if len(cells) > MANY else ""
        what = "not finite (diverged, or beyond all that was tried)"
        lost = f"{what} in {len(cells)} of {len(self.results.cells)} cells: {where}{rest}"
        return [*([SMOKE] if self.scale == "smoke" else []), *([lost] if cells else [])]

    @cached_property
    def panels(self) -> Sequence[Panel | Map]:
        """Of the figure; none where a study has nothing to draw."""
        return self.study.draw(self.results)

    def figure(self) -> Figure:
        """What the reader of the source would look for."""
        from nfd_jax.io import plotting  # a slow import, only needed here

        title = f"{self.study.title}: {self.study.claim}"
        return plotting.panels(title, self.panels, note="; ".join(self.warnings()))

    def save(self, folder: str | Path) -> list[Path]:
        """Write findings as netCDF with provenance, the table as text, and any figure as SVG and PNG."""
        from nfd_jax.io import plotting

        folder = writable_folder("folder", folder)
        arguments = {"study": self.study.name, "scale": self.scale, "sizes": asdict(self.results.sizes)}
        dataset = conclusions.to_dataset(self.findings).assign_attrs(
            claim=self.study.claim, claim_source=self.study.source, setting=self.study.setting
        )
        text = folder / f"{self.study.name}.txt"
        text.write_text(self.table() + "\n")
        pictures = []
        if self.panels:
            figure = self.figure()
            pictures = [plotting.save(figure, folder / f"{self.study.name}.{kind}") for kind in ("svg", "png")]
        return [records.save(dataset, folder / f"{self.study.name}.nc", arguments), text, *pictures]


def run(
    study: Study,
    scale: str = "laptop",
    *,
    folder: str | Path = "results/studies",
    sizes: Mapping[str, Any] | None = None,
    part: Part | str | None = None,
    progress: bool | None = None,
) -> Report:
    """Measure the cells of a `study` at a `scale` that are missing from `folder`, and conclude from all of them.

    `sizes`: changes to the sizes of the scale, by name. `part`: `"k/N"` measures the cells of that part only, spread
    evenly by their cost, so that N processes on any machines with this folder measure all; `"slurm"` is the part of
    this task of a SLURM array job, and everything outside one; None or `"all"`, everything. `progress`: show a bar; by
    default on a terminal.

    Raises ValueError or TypeError for names and values that do not fit, before anything is measured, and
    `nfd.Incomplete` where the part is done and cells of others are not there yet: the last part to finish concludes.
    """
    if not isinstance(study, Study):
        raise TypeError(f"study must be a Study, such as studies.STUDIES['width'], got {study!r}")
    if progress is not None:
        boolean("progress", progress)
    chosen = sized(study, scale, sizes)
    cells = grid(study, chosen)
    costs = [float(study.cost(cell)) for cell in cells]
    own = Part.of(part).places(costs)
    writable_folder("folder", cells_folder(study, folder))
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}{postfix}"
    disable = None if progress is None else not progress
    total = sum(costs[place] for place in own)
    with tqdm(total=total, desc=study.name, bar_format=form, leave=False, disable=disable) as bar:

        def measured(place: int) -> dict[str, np.ndarray]:
            bar.set_postfix_str(", ".join(f"{key} {value}" for key, value in cells[place].items()))
            return _plain(study.measure(**cells[place]))

        records = [record_of(study, folder, cell) for cell in cells]
        found = shared(records, measured, lambda place: bar.update(costs[place] if place in own else 0), own)
    results = Results(chosen, list(zip(cells, map(_labelled, found), strict=True)))
    try:
        return Report(study, scale, results, tuple(study.conclude(results)))
    except (ValueError, LookupError, RuntimeError) as error:
        raise ValueError(f"study {study.name!r} can't conclude from these cells: {error}") from error


def sized(study: Study, scale: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The sizes of a scale with changes; sequences become tuples.

    Grids must not be empty nor shorter than the study's fits need, and have distinct entries. Numbers must be positive,
    or 0 where those of the scale are.
    """
    sizes = study.sizes[one_of("scale", scale, study.sizes)]
    if changes is not None and not isinstance(changes, Mapping):
        raise TypeError(f"sizes of study {study.name!r} must map names to sizes, got {changes!r}")
    known = {field.name for field in fields(sizes)}
    for name in changes or {}:
        one_of(f"size of study {study.name!r}", name, sorted(known))
    changed = {name: tuple(value) if isinstance(value, list) else value for name, value in (changes or {}).items()}
    for name, value in changed.items():
        was = getattr(sizes, name)
        if was is not None and isinstance(was, tuple) != isinstance(value, tuple):
            raise TypeError(f"size {name!r} of study {study.name!r} must be like {was!r}, got {value!r}")
        called = f"size {name!r} of study {study.name!r}"
        for old, new in zip(_items(was)[:1] * len(_items(value)), _items(value), strict=True):
            kinds = (int, float) if isinstance(old, float) else (type(old),)
            if isinstance(new, bool) or not isinstance(new, kinds):
                raise TypeError(f"{called} must be like {was!r}, got {value!r}")
            _check_entry(called, name, _items(was), new)
        if "seeds" in name and isinstance(value, int) and value < 2:
            raise ValueError(f"{called} must be at least 2 for standard errors, got {value}")
        least = study.least.get(name, 1)
        if isinstance(value, tuple) and (len(value) < least or len(set(value)) < len(value)):
            need = "its fits need them" if least > 1 else "there is nothing to run without"
            raise ValueError(f"{called} must be at least {least} different entries ({need}), got {list(value)}")
    try:
        return replace(sizes, **changed)
    except ValueError as error:
        raise ValueError(f"study {study.name!r}: {error}") from error


def _check_entry(called: str, name: str, was: Sequence[Any], new: Any) -> None:
    """ValueError where one entry of a size could not be run."""
    if isinstance(new, str):
        if "activation" in name:
            activations.check(new)
        return
    zero = 0 in was
    if isinstance(new, int):
        positive_int(called, new, 0 if zero else 1, MOST if "seeds" in name or name == "steps" else LARGEST)
    else:
        finite_float(called, new, strict=not zero)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]


def grid(study: Study, sizes: Any) -> list[Cell]:
    """The cells of these sizes, each with all arguments of `measure` that have no default."""
    parameters = inspect.signature(study.measure).parameters.values()
    required = [
        each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty
    ]
    return [
        {name: getattr(sizes, name) for name in required if name not in cell} | dict(cell)
        for cell in study.cells(sizes)
    ]


def depends_on(study: Study, cell: Cell) -> dict[str, Any]:
    """Everything that decides the numbers of a cell. Padding does not."""
    arguments = {name: value for name, value in cell.items() if name not in PADDING}
    return identity({"study": study.name, **arguments, "study revision": study.revision})


def cells_folder(study: Study, folder: str | Path) -> Path:
    """Where its cells are recorded."""
    return folder_path("folder", folder) / study.name / "cells"


def record_of(study: Study, folder: str | Path, cell: Cell) -> Record:
    """That of a cell, whether it is there or not."""
    return Record(cells_folder(study, folder), depends_on(study, cell))


def _plain(measured: Arrays) -> dict[str, np.ndarray]:
    """Arrays by name and axes, in the order of memory in which they are read back: sums round alike."""
    arrays = xr.Dataset(dict(measured)).variables
    return {"/".join((str(name), *map(str, each.dims), "")): np.array(each, order="C") for name, each in arrays.items()}


def _labelled(arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
    """What was measured, from what `_plain` made of it."""
    named = {tuple(key.split("/")[:-1]): values for key, values in arrays.items()}
    return xr.Dataset({name: (axes, values) for (name, *axes), values in named.items()})


def summary(reports: Sequence[Report]) -> str:
    """All findings of several studies, in their `reports`, as one table under the claims and settings that they belong
    to, and how many of each verdict there are."""
    rows = [conclusions.line(finding) for report in reports for finding in report.findings]
    head, *lines = conclusions.in_columns([conclusions.HEAD, *rows]).splitlines()
    text = [head, "-" * len(head)]
    for report in reports:
        own, lines = lines[: len(report.findings)], lines[len(report.findings) :]
        text += [*report.heading(len(head)), *own, ""]
    verdicts = [finding.verdict for report in reports for finding in report.findings]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict)
    smoke = [f"({SMOKE})"] if any(report.scale == "smoke" for report in reports) else []
    return "\n".join([*text, counts, *smoke])
