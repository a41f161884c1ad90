"""The papers' claims as runnable studies: `nfd-jax study NAME`, `nfd-jax claims`, or `run(STUDIES[NAME])`.

A study is a file: sizes, cells, what is measured in one, what follows from all. `STUDIES` lists those of this package
by name. One from outside is a `Study` made with the names exported here; `find` reads it by its import path, by its
file, or by the name under which an installed package gives it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nfd_jax._functions import blamed
from nfd_jax.studies import (
    alignment,
    collapse,
    control,
    degeneracy,
    depth,
    diversity,
    independence,
    interaction,
    isometry,
    nonlinearity,
    persistence,
    plane,
    regimes,
    reuse,
    scaling,
    speed_identity,
    stability,
    transfer,
    updates,
    width,
)
from nfd_jax.studies._findings import Finding, Prediction, Verdict, about, at_least, at_most
from nfd_jax.studies._missing import Missing, clock, missing
from nfd_jax.studies._panels import Level, Line, Map, Panel
from nfd_jax.studies._study import SCALES, Report, Results, Study, run, summary

MODULES = (
    width,
    depth,
    reuse,
    independence,
    degeneracy,
    scaling,
    collapse,
    transfer,
    plane,
    diversity,
    nonlinearity,
    interaction,
    speed_identity,
    alignment,
    isometry,
    control,
    regimes,
    stability,
    updates,
    persistence,
)
STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in MODULES}
GROUP = "nfd_jax.studies"  # of entry points, by which an installed package gives studies a name

__all__ = [
    "SCALES",
    "STUDIES",
    "Finding",
    "Level",
    "Line",
    "Map",
    "Missing",
    "Panel",
    "Prediction",
    "Report",
    "Results",
    "Study",
    "Verdict",
    "about",
    "at_least",
    "at_most",
    "clock",
    "find",
    "missing",
    "run",
    "summary",
]


def find(name: str) -> Study:
    """A study by its name, in `STUDIES` or among the entry points `nfd_jax.studies` of installed packages, or by where
    it is: `my_package.my_module:STUDY`, or `folder/my_study.py:STUDY`, of which `:STUDY` may be left out.

    Raises ValueError or TypeError where there is none, where reading it fails, and for one with the name of another.
    """
    given = {point.name: point.value for point in entry_points(group=GROUP)}
    if name in STUDIES:
        return STUDIES[name]
    module, colon, attribute = given.get(name, name).rpartition(":")
    if not colon:
        module, attribute = attribute, "STUDY"
    if not colon and not module.endswith(".py"):
        known = ", ".join(map(repr, (*STUDIES, *given)))
        raise ValueError(f"unknown study {name!r}; choose one of {known}, or say where it is: my_module:STUDY")
    with blamed(f"study {name!r} is read from {module!r}, which"):
        study = getattr(
            _of_file(Path(module)) if module.endswith(".py") else importlib.import_module(module), attribute
        )
    if not isinstance(study, Study):
        raise TypeError(f"{name!r} must be an nfd_jax.studies.Study, got {type(study).__name__}")
    if study.name in STUDIES:
        raise ValueError(
            f"study {name!r} has the name {study.name!r} of another, and would share its records; rename it"
        )
    return study


def _of_file(path: Path) -> Any:
    name = f"nfd_jax study {path.resolve()}"  # no other module's
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module can be made of {str(path)!r}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
