"""The command line: arguments in, one call of the package, results out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import jax
import tyro
import xarray as xr

from nfd_jax import datasets, studies
from nfd_jax._checks import positive_int
from nfd_jax.io import records
from nfd_jax.io.cluster import Cluster
from nfd_jax.runtime import files, parts
from nfd_jax.runtime.parts import Incomplete, Part
from nfd_jax.studies import _comparison_table as comparison_table
from nfd_jax.studies import compare as comparison
from nfd_jax.studies.compare import Comparison
from nfd_jax.task import Task

app = tyro.extras.SubcommandApp()


class Setup(Comparison):
    """A `Comparison` as it is given."""

    def __post_init__(self) -> None:
        """Nothing: the command checks, as tyro would report a ValueError under a name of its own."""


class Processes(Cluster):
    """A `Cluster` as it is given."""

    def __post_init__(self) -> None:
        """Nothing, as for `Setup`."""


# every command takes these options, and joins before it computes
OptionalCluster = Annotated[Processes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff]


@app.command
def compare(
    data: Literal["digits", "gaussian", "cifar10"] = "digits",
    folder: Path | None = None,
    samples: int = 16,
    batch_size: int | None = None,
    held_out: int | None = None,
    classes: tuple[int, ...] = (0, 1),
    setup: Annotated[Setup, tyro.conf.OmitArgPrefixes] = Setup(),  # noqa: B008 (frozen)
    output: Path = Path("results/compare"),
    cluster: OptionalCluster = Processes(),  # noqa: B008 (frozen)
) -> None:
    """Solve both limits, train tied and untied networks beside them, and show which converges to which.

    Prints a table; writes compare.png and compare.nc to the output folder, and finished runs to its folder runs: a
    comparison that was killed, or has more depths and widths, goes on from there.

    Args:
        data: Handwritten digits, Gaussian inputs with a teacher, or CIFAR-10.
        folder: Of the files of CIFAR-10.
        samples: Samples P to train on.
        batch_size: Samples of one training step; all of them where none is given.
        held_out: Test samples whose loss and accuracy are followed beside, 0 for none. By default none with full
            batches; with a batch size as many as there are, up to 60 a class.
        classes: Digits or classes of CIFAR-10 to tell apart.
        setup: Sizes.
        output: Folder for the figure and the dataset.
        cluster: More than one process; the first prints and writes.
    """
    checked, together = Comparison(**asdict(setup)), Cluster(**asdict(cluster))
    written = files.writable_folder("output", output)
    first = together.join()
    task = _compared(data, folder, samples, batch_size, held_out, classes)
    batches = "" if batch_size is None else f", B = {batch_size}"
    title = (
        f"{data}, P = {samples}{batches}, {setup.activation}, block {setup.block}, T = {setup.horizon:g}, "
        f"eta = {setup.learning_rate:g}"
    )
    arguments = {
        "command": "compare",
        "data": data,
        "folder": folder,
        "samples": samples,
        "batch_size": batch_size,
        "held_out": 0 if task.held_out is None else task.held_out.samples,
        "classes": classes,
        **asdict(setup),
        "output": output,
    }

    def show(dataset: xr.Dataset) -> None:
        if first:
            dataset.attrs["title"] = title
            print(comparison_table.table(dataset))
            print("wrote", records.save(dataset, written / "compare.nc", arguments))
            from nfd_jax.io import plotting  # which brings matplotlib along

            print("wrote", plotting.save(plotting.comparison(dataset), written / "compare.png"))

    def first_look(dataset: xr.Dataset) -> None:
        show(dataset)
        if first:
            print("a first look; the whole comparison follows\n", flush=True)

    show(comparison.compare(task, checked, folder=written / "runs", progress=first, first_look=first_look))


if TYPE_CHECKING:
    Scale = str
else:
    Scale = Literal[studies.SCALES]
LISTED = f"{', '.join(studies.STUDIES)}; or one from outside: my_module:STUDY, folder/my_study.py, or its entry point"
StudyName = Annotated[str, tyro.conf.arg(metavar="STUDY", help=f"One of {LISTED}.")]
StudyNames = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[STUDY ...]", help=f"All by default, or of {LISTED}.")]
PartName = Annotated[str, tyro.conf.arg(metavar="k/N|slurm|all")]
DryRun = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@app.command
def study(
    name: tyro.conf.Positional[StudyName],
    scale: Scale = "laptop",
    sizes: str = "{}",
    output: Path = Path("results/studies"),
    part: PartName = parts.SLURM,
    dry_run: DryRun = False,
    cluster: OptionalCluster = Processes(),  # noqa: B008 (frozen)
) -> None:
    """Run one claim's study, or what is missing of it; print its table and draw its figure.

    Writes NAME.nc (findings with provenance), NAME.txt, NAME.svg and NAME.png, and keeps finished cells in NAME/cells:
    a study that was killed goes on from there.

    Args:
        scale: How far it goes.
        sizes: Sizes to change, as JSON: '{"seeds": 16, "depths": [4, 16]}'. A wrong name lists those there are.
        output: Folder for records, table and figure.
        part: Of its cells: k/N measures those of one of N parts, spread evenly by their cost, and the last part to
            finish concludes; slurm is the part of this task of a SLURM array job, and everything elsewhere; all is
            everything.
        dry_run: List the cells that are missing, with about their seconds where recorded cells have theirs, and end.
        cluster: More than one process; the first prints and writes.
    """
    asked = Asked((name,), scale, _json(sizes), output, part)
    if dry_run:
        return _list_missing(asked)
    _, failures = _studies(asked, cluster)
    if failures:
        raise ValueError(failures[0])


@app.command
def claims(
    names: tyro.conf.Positional[StudyNames] = (),
    scale: Scale = "laptop",
    output: Path = Path("results/studies"),
    part: PartName = parts.SLURM,
    dry_run: DryRun = False,
    cluster: OptionalCluster = Processes(),  # noqa: B008 (frozen)
) -> None:
    """Run the studies of all claims, or of those named, and print one table: predicted, measured, verdict.

    Everything that `study` writes, and claims.txt with the whole table. Cells that are there are not run again.

    Args:
        scale: How far they go: smoke in seconds, laptop within an hour and a half on two cores, accelerator within ten
            minutes a study on one device.
        output: Folder for records, tables and figures.
        part: Of the cells of every study, as of `study`.
        dry_run: List the cells that are missing, with about their seconds where recorded cells have theirs, and end.
        cluster: More than one process; the first prints and writes.
    """
    asked = Asked(names or tuple(studies.STUDIES), scale, {}, output, part)
    if dry_run:
        return _list_missing(asked)
    reports, failures = _studies(asked, cluster)
    if len(reports) + len(failures) == len(asked.names) and reports:
        text = studies.summary(reports)
        print(text)
        (output / "claims.txt").write_text(text + "\n")
        print("wrote", output / "claims.txt")
    if failures:
        raise ValueError("\n".join(failures))


class Asked(NamedTuple):
    """What a command about studies was asked for."""

    names: Sequence[str]
    scale: str
    sizes: dict[str, Any]
    output: Path
    part: str

    def each(self) -> Iterator[tuple[str, studies.Study, dict[str, Any]]]:
        """The studies by name, all found before the first is run, each with the options of `run` and `missing`."""
        part = Part.of(self.part)
        for place, (name, study) in enumerate([(name, studies.find(name)) for name in self.names]):
            turned = part.turned(place)  # the dearest cells of all studies are not of one part
            yield name, study, {"scale": self.scale, "folder": self.output, "sizes": self.sizes, "part": turned}

    def announce(self) -> None:
        """Say that this is a part where nobody has asked for one."""
        part = Part.of(self.part)
        if self.part == parts.SLURM and part.count > 1:
            task = f"task {os.environ[parts.TASK]} of a SLURM array job"
            print(f"nfd-jax: {part}, as {task}; --part all runs everything", file=sys.stderr, flush=True)


def _studies(asked: Asked, cluster: Cluster) -> tuple[list[studies.Report], list[str]]:
    """The reports of studies, printed and written as they finish (none in any process but the first, nor of those that
    other parts are still to finish), and why others have none: one that fails does not keep the rest from running."""
    together, chosen = Cluster(**asdict(cluster)), list(asked.each())
    folder, first = files.writable_folder("output", asked.output), together.join()
    if first:
        asked.announce()
    reports: dict[str, studies.Report] = {}
    failures: dict[str, str] = {}
    for last in (False, True):  # once more those that had cells with other parts, which have gone on meanwhile
        for name, each, options in chosen:
            if name in reports or name in failures:
                continue
            jax.clear_caches()  # programs of one study serve no other, and a process has room for so many
            try:
                reports[name] = report = studies.run(each, progress=None if first else False, **options)
            except Incomplete as missing:
                if first and last:
                    print(f"{each.title}: {missing}", end="\n\n", flush=True)
            except (ValueError, TypeError, RuntimeError) as error:
                failures[name] = f"study {name!r}: {error}"
            else:
                if first:
                    print(report.table(), end="\n\n")
                    print("wrote", ", ".join(map(str, report.save(folder))), end="\n\n")
    ordered = [reports[name] for name, _, _ in chosen if name in reports]
    return ordered if first else [], list(failures.values())


def _list_missing(asked: Asked) -> None:
    """The cells to measure, and about how long they take."""
    asked.announce()
    found = [studies.missing(study, **options) for _, study, options in asked.each()]
    print("\n\n".join(each.table() for each in found))
    if len(found) > 1:
        known = [each.seconds for each in found if each.cells and each.seconds is not None]
        unknown = sum(1 for each in found if each.cells and each.seconds is None)
        print(
            f"\ntogether {sum(len(each.cells) for each in found)} of {sum(each.count for each in found)} cells, about "
            f"{studies.clock(sum(known))} in {len(known)} studies; {unknown} have no cell recorded with its seconds"
        )


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--sizes must be JSON such as '{{\"seeds\": 16}}', got {text!r} ({error})") from error
    if not isinstance(found, dict):
        raise TypeError(f"--sizes must be a JSON object such as '{{\"seeds\": 16}}', got {text!r}")
    return found


A_CLASS = 60  # test samples of it, unasked: about all digits that there are


def _compared(
    data: str,
    folder: Path | None,
    samples: int,
    batch_size: int | None,
    held_out: int | None,
    classes: tuple[int, ...],
) -> Task:
    """The task of a comparison, with its batches and what is held out."""
    task = _task(data, folder, samples, classes)
    if batch_size is not None:
        task = task.minibatches(batch_size)
    if held_out is None:
        held_out = 0 if batch_size is None else A_CLASS * len(classes)
        most = datasets.digits(None, classes, split="test").samples if data == "digits" else held_out
        held_out = min(held_out, most)
    if not positive_int("held_out", held_out, 0):
        return task
    try:
        return task.holding_out(_task(data, folder, held_out, classes, "test"))
    except ValueError as error:
        raise ValueError(f"held_out={held_out} can't be drawn: {error}") from error


def _task(data: str, folder: Path | None, samples: int, classes: tuple[int, ...], split: str = "train") -> Task:
    if data == "cifar10":
        if folder is None:
            raise ValueError("--data cifar10 needs --folder, where its files are")
        return datasets.cifar10(folder, samples, classes, split=split)
    if data == "digits":
        return datasets.digits(samples, classes, split=split)
    return datasets.gaussian(samples, split=split)


def main() -> None:
    """Entry point of `nfd-jax`: bad arguments end with their message, not with a traceback."""
    sys.path.append("")  # studies from outside are looked for in the current folder too, behind all others
    try:
        app.cli(prog="nfd-jax", description=__doc__)
    except (ValueError, TypeError) as error:
        sys.exit(f"nfd-jax: {error}")
