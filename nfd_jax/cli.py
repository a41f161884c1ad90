"""The command line: arguments in, one call of the package, results out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import tyro

from nfd_jax import comparison, datasets, plotting, records
from nfd_jax.task import Task

app = tyro.extras.SubcommandApp()


@app.command
def compare(
    data: Literal["digits", "gaussian"] = "digits",
    samples: int = 16,
    classes: tuple[int, ...] = (0, 1),
    depths: tuple[int, ...] = (4, 16, 64),
    widths: tuple[int, ...] = (32, 64, 128, 256),
    activation: Literal["identity", "relu", "abs", "tanh", "gelu"] = "relu",
    horizon: float = 1.0,
    steps: int = 10,
    learning_rate: float = 0.5,
    seeds: int = 16,
    particles: int = 4096,
    limit_seeds: int = 4,
    seed: int = 0,
    output: Path = Path("results/compare"),
) -> None:
    """Solve both limits, train tied and untied networks beside them, and show which converges to which.

    Prints a table; writes compare.png and compare.nc to the output folder.

    Args:
        data: Handwritten digits, or Gaussian inputs with a teacher.
        samples: Samples P; full-batch training.
        classes: Digits to tell apart.
        depths: Depths L of networks and limits.
        widths: Widths n of the networks.
        activation: Activation phi.
        horizon: Layer time T of the residual stream.
        steps: Training steps.
        learning_rate: The width- and depth-free rate eta.
        seeds: Networks of each kind.
        particles: Particles of a solution of the limit.
        limit_seeds: Solutions of each limit, for its standard error.
        seed: The first seed.
        output: Folder for the figure and the dataset.
    """
    arguments = dict(locals())
    folder = records.output_folder(output)
    task = _task(data, samples, classes)
    dataset = comparison.compare(
        task,
        depths=depths,
        widths=widths,
        activation=activation,
        horizon=horizon,
        steps=steps,
        learning_rate=learning_rate,
        seeds=seeds,
        particles=particles,
        limit_seeds=limit_seeds,
        seed=seed,
        progress=True,
    )
    dataset.attrs["title"] = f"{data}, P = {samples}, {activation}, T = {horizon:g}, eta = {learning_rate:g}"
    print(comparison.table(dataset))
    print("wrote", plotting.save(plotting.comparison(dataset), folder / "compare.png"))
    print("wrote", records.save(dataset, folder / "compare.nc", arguments))


def _task(data: str, samples: int, classes: tuple[int, ...]) -> Task:
    return datasets.digits(samples, classes) if data == "digits" else datasets.gaussian(samples)


def main() -> None:
    """Entry point of `nfd-jax`: bad arguments end with their message, not with a traceback."""
    try:
        app.cli(prog="nfd-jax", description=__doc__)
    except (ValueError, TypeError) as error:
        sys.exit(f"nfd-jax: {error}")
