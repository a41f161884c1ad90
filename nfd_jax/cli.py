"""The command line: arguments in, one call of the package, results out."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nfd_jax import comparison, datasets, plotting, records
from nfd_jax.cluster import Cluster
from nfd_jax.comparison import Comparison
from nfd_jax.task import Task

app = tyro.extras.SubcommandApp()
# every command takes these options, and joins before it computes
OptionalCluster = Annotated[Cluster, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff]


@app.command
def compare(
    data: Literal["digits", "gaussian"] = "digits",
    samples: int = 16,
    classes: tuple[int, ...] = (0, 1),
    setup: Annotated[Comparison, tyro.conf.OmitArgPrefixes] = Comparison(),  # noqa: B008 (frozen)
    output: Path = Path("results/compare"),
    cluster: OptionalCluster = Cluster(),  # noqa: B008 (frozen)
) -> None:
    """Solve both limits, train tied and untied networks beside them, and show which converges to which.

    Prints a table; writes compare.png and compare.nc to the output folder.

    Args:
        data: Handwritten digits, or Gaussian inputs with a teacher.
        samples: Samples P; full-batch training.
        classes: Digits to tell apart.
        setup: Sizes.
        output: Folder for the figure and the dataset.
        cluster: More than one process; the first prints and writes.
    """
    folder = records.output_folder(output)
    first = cluster.join()
    task = _task(data, samples, classes)
    dataset = comparison.compare(task, setup, progress=first)
    if not first:
        return
    dataset.attrs["title"] = (
        f"{data}, P = {samples}, {setup.activation}, T = {setup.horizon:g}, eta = {setup.learning_rate:g}"
    )
    print(comparison.table(dataset))
    arguments = {"data": data, "samples": samples, "classes": classes, **asdict(setup), "output": output}
    print("wrote", records.save(dataset, folder / "compare.nc", {"command": "compare", **arguments}))
    print("wrote", plotting.save(plotting.comparison(dataset), folder / "compare.png"))


def _task(data: str, samples: int, classes: tuple[int, ...]) -> Task:
    return datasets.digits(samples, classes) if data == "digits" else datasets.gaussian(samples)


def main() -> None:
    """Entry point of `nfd-jax`: bad arguments end with their message, not with a traceback."""
    try:
        app.cli(prog="nfd-jax", description=__doc__)
    except (ValueError, TypeError) as error:
        sys.exit(f"nfd-jax: {error}")
