"""The papers' claims as runnable studies: `nfd-jax study NAME`, `nfd-jax claims`, or `run(STUDIES[NAME])`.

A study is a file: sizes, cells, what is measured in one, what follows from all. `STUDIES` lists them by name.
"""

from nfd_jax.studies import (
    collapse,
    degeneracy,
    depth,
    diversity,
    independence,
    interaction,
    nonlinearity,
    plane,
    reuse,
    scaling,
    transfer,
    width,
)
from nfd_jax.studies._study import SCALES, Report, Study, run, summary

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
)
STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in MODULES}

__all__ = ["SCALES", "STUDIES", "Report", "Study", "run", "summary"]
