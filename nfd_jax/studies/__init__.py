"""The papers' claims as runnable studies: `nfd-jax study NAME`, `nfd-jax claims`, or `run(STUDIES[NAME])`.

A study is a file: sizes, cells, what is measured in one, what follows from all. `STUDIES` lists them by name.
"""

from nfd_jax.studies import width
from nfd_jax.studies.study import SCALES, Report, Study, run, summary

STUDIES: dict[str, Study] = {study.name: study for study in (width.STUDY,)}

__all__ = ["SCALES", "STUDIES", "Report", "Study", "run", "summary"]
